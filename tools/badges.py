"""Put badges below the title of each tutorial, which open it on Colab and Binder, and a cell that installs on Colab: python tools/badges.py

On any other machine the cell does nothing; the site does not show it."""

import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
NAME = "attnbootreg/attnbootreg"
EXTRAS = {"medical": "study,medical"}  # of a page; all others need studies alone
OTHERS = "fastcore scikit-image"  # what some pages and their tests use besides


def badges(page: str) -> str:
    "Markdown of the badges of a page, by its path from the top of the repository."
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{NAME}/blob/main/{page}) "
        f"[![Launch on Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/{NAME}/main?urlpath=lab/tree/{page})"
    )


def install(page: str) -> str:
    "Code that installs on Colab, and goes to the folder of the page."
    extras = EXTRAS.get(Path(page).stem, "study")
    return f"""#| hide
# on Colab: install the package, and go to the folder of this page
import sys

if "google.colab" in sys.modules:
    ipython = get_ipython()
    ipython.system("git clone -q --depth 1 https://github.com/{NAME}")
    ipython.run_line_magic("pip", "install -q './attnbootreg[{extras}]' {OTHERS}")
    ipython.run_line_magic("cd", "{Path("attnbootreg") / Path(page).parent}")"""


def put(path: Path) -> bool:
    "Write both cells of a notebook; says whether anything changed."
    notebook, page = nbformat.read(path, 4), path.relative_to(ROOT).as_posix()
    cells = {cell.id: cell for cell in notebook.cells}
    changed = False
    for place, (id_, new, source) in enumerate(
        [("badges", nbformat.v4.new_markdown_cell, badges(page)), ("install", nbformat.v4.new_code_cell, install(page))], start=1
    ):
        if id_ not in cells:
            notebook.cells.insert(place, new(source, id=id_))
        elif cells[id_].source != source:
            cells[id_].source = source
        else:
            continue
        changed = True
    if changed:
        nbformat.write(notebook, path)
    return changed


if __name__ == "__main__":
    for path in sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb")):
        if put(path):
            print(path.relative_to(ROOT), file=sys.stderr)
