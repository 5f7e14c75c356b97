"""Write the gallery, nbs/gallery.qmd, and its pictures, nbs/images/gallery/, from the stored outputs of the pages: python tools/gallery.py

Each picture leads to the section of the page whose cell made it. tests/test_gallery.py says when the pictures have changed."""

import base64
import hashlib
import io
import json
import re
import sys
from pathlib import Path

import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "nbs" / "images" / "gallery"
WIDTH, COLORS = 480, 128  # of a picture: pixels, and colors of its palette
EACH = {  # how many pictures of a page, at most, in the order of the gallery
    "index": 2, "tutorials/quickstart": 3, "tutorials/photographs": 3, "tutorials/medical": 3, "22_plots": 2,
    "23_regions": 2, "tutorials/beside": 1, "tutorials/maps": 2, "tutorials/faithful": 2, "tutorials/nulls": 2,
    "tutorials/hyperparameters": 2, "tutorials/meaning": 2, "tutorials/choosing": 2, "tutorials/calibration": 1,
    "tutorials/paper_figures": 3, "30_scenes": 1, "38_compare": 1, "14_relevance": 1, "tutorials/own_model": 1,
}  # fmt: skip


def alt_texts(source: str) -> list[str]:
    "The alt texts of a cell."
    found = re.search(r"^#\|\s*fig-alt:(.+)$", source, re.M)
    alts = yaml.safe_load(found[1]) if found else []
    return [alts] if isinstance(alts, str) else alts


def anchor(heading: str) -> str:
    "The name of a heading's place, by pandoc's rule."
    given = re.search(r"\{[^}]*#([\w.-]+)[^}]*\}$", heading)
    if given:
        return given[1]
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    plain = "".join(c for c in plain if c.isalnum() or c in "_-. ").lower()
    return re.sub(r"\s+", "-", re.sub(r"^[\W\d_]+", "", plain).strip()) or "section"


def pictures(page: str, most: int) -> list[tuple[str, str, str, bytes]]:
    "The first pictures of a page: name, where they stand, what they show, and the PNG."
    cells = json.loads((ROOT / "nbs" / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]
    place, found = "", []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            headings = re.findall(r"^##+ +(.+?)\s*$", re.sub(r"^```.*?^```", "", source, flags=re.S | re.M), re.M)
            place = f"#{anchor(headings[-1])}" if headings else place
        pngs = [output["data"]["image/png"] for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
        for i, (png, alt) in enumerate(zip(pngs, alt_texts(source))):
            name = f"{page.replace('/', '_')}_{cell['id']}_{i}"
            found.append((name, f"{page}.ipynb{place}", alt, base64.b64decode("".join(png))))
    return found[:most]


def small(png: bytes) -> bytes:
    "A picture as the gallery shows it: smaller, with few colors."
    with Image.open(io.BytesIO(png)) as image:
        image = image.convert("RGB")
        image.thumbnail((WIDTH, WIDTH))
        out = io.BytesIO()
        image.quantize(COLORS).save(out, "png", optimize=True)
    return out.getvalue()


def gallery() -> tuple[str, dict[str, bytes]]:
    "The text of the page, and its pictures by name."
    found = [one for page, most in EACH.items() for one in pictures(page, most)]
    items = []
    digests = "".join(hashlib.sha1(png).hexdigest()[:6] for *_, png in found)  # so that a changed picture changes the page
    for name, link, alt, _ in found:
        words = alt.replace("[", "(").replace("]", ")").replace('"', "'").strip()
        items.append(f"[![{words}](images/gallery/{name}.png)]({link})")
    front = '---\ntitle: "Gallery"\ndescription: "What the package draws. Each picture leads to the code that made it."\ntoc: false\n---'
    note = f"<!-- written by tools/gallery.py from pictures {digests} -->"
    text = "\n\n".join([front, note, "::: {.gallery}", *items, ":::"]) + "\n"
    return text, {f"{name}.png": png for name, _, _, png in found}


if __name__ == "__main__":
    text, found = gallery()
    (ROOT / "nbs" / "gallery.qmd").write_text(text, encoding="utf-8")
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.png"):
        if path.name not in found:
            path.unlink()
    for name, png in found.items():
        (FOLDER / name).write_bytes(small(png))
    print(f"{len(found)} pictures", file=sys.stderr)
