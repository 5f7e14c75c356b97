"""The site: what Quarto will be given, page by page, as nbdev prepares it.

Quarto itself is not needed. Each check is a function of a page that returns complaints; at the end each is shown to complain.
"""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from posixpath import normpath
from urllib.parse import unquote

import pytest
import yaml

import attnbootreg

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="nbdev cannot read widgets' signatures on Python 3.10; the site is made on a newer one"
)
ROOT = Path(__file__).parent.parent
HOST = "https://attnbootreg.github.io/attnbootreg/"
SOURCE = "https://github.com/attnbootreg/attnbootreg/blob/main/"
SITE = yaml.safe_load((ROOT / "_quarto.yml").read_text())

# ---- pages


@dataclass
class Page:
    "A page as Quarto reads it."

    name: str  # path in the site, "tutorials/nulls.ipynb"
    front: dict  # its front matter
    text: str  # all its markdown, that of outputs included
    cells: list = field(default_factory=list)  # code cells
    metadata: dict = field(default_factory=dict)  # of the notebook

    @property
    def html(self) -> str:
        "Path of the rendered page."
        return str(PurePosixPath(self.name).with_name(self.front.get("output-file", PurePosixPath(self.name).stem + ".html")))


def parse(name: str, content: str) -> Page:
    "A page from the text of its file."
    if name.endswith(".qmd"):
        front = re.match(r"---\n(.*?)\n---\n", content, re.S)
        return Page(name, yaml.safe_load(front[1]) if front else {}, content[front.end() :] if front else content)
    notebook = json.loads(content)
    front, texts, cells = {}, [], []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "raw" and source.startswith("---"):
            front = yaml.safe_load(source.strip().strip("-"))
        elif cell["cell_type"] == "markdown":
            texts.append(source)
        elif cell["cell_type"] == "code":
            cells.append(cell)
            texts += ["".join(output["data"]["text/markdown"]) for output in cell["outputs"] if "text/markdown" in output.get("data", {})]
    return Page(name, front, "\n\n".join(texts), cells, notebook["metadata"])


def without_fences(text: str) -> str:
    return re.sub(r"^[ \t]*(```+|~~~+).*?^[ \t]*\1[ \t]*$", "", text, flags=re.S | re.M)


def without_code(text: str) -> str:
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "code", without_fences(text), flags=re.S)


def without_math(text: str) -> str:
    text = re.sub(r"\$\$.+?\$\$", "", text.replace(r"\$", ""), flags=re.S)
    return re.sub(r"\$(?!\s)(?:[^$\n]|\n(?!\s*\n))+?(?<!\s)\$(?!\d)", "", text)


def anchors(page: Page) -> set[str]:
    "Names of the headings, by pandoc's rule, and those that are given."
    text, seen, names = without_fences(page.text), Counter(), set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", text, re.M):
        given = re.search(r"\{[^}]*#([\w.-]+)[^}]*\}$", heading)
        if given:
            names.add(given[1])
            continue
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        plain = "".join(c for c in plain if c.isalnum() or c in "_-. ").lower()
        name = re.sub(r"\s+", "-", re.sub(r"^[\W\d_]+", "", plain).strip()) or "section"  # from the first letter on
        names.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names | set(re.findall(r"\bid=[\"']([^\"']+)", text))


# ---- checks


def check_front_matter(page: Page, site: "Site") -> list[str]:
    return [f"no {key}" for key in ("title", "description") if not str(page.front.get(key) or "").strip()]


def check_links(page: Page, site: "Site") -> list[str]:
    "Every link that stays on the site, or leads to a file of the repository, leads to something."
    complaints = []
    text = without_math(without_code(page.text))
    targets = re.findall(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)[^)]*\)", text) + re.findall(r"href=[\"']([^\"']+)", text)
    for target in targets:
        path, _, anchor = unquote(target).partition("#")
        if path.startswith(SOURCE):
            if not (ROOT / path.removeprefix(SOURCE)).exists():
                complaints.append(f"{target}: no such file")
            continue
        if path.startswith(HOST):
            path = path.removeprefix(HOST) or "index.html"
        elif re.match(r"\w+:", path):
            continue
        else:
            path = normpath((PurePosixPath(page.name).parent / path).as_posix()) if path else page.name
        other = site.find(path)
        if other is None:
            if path.endswith((".ipynb", ".qmd", ".html")) or not (site.folder / path).exists():
                complaints.append(f"{target}: no such page or file")
        elif anchor and anchor not in anchors(other):
            complaints.append(f"{target}: {other.name} has no such heading")
    return complaints


def check_pictures(page: Page, site: "Site") -> list[str]:
    "Every picture is there and says what it shows."
    complaints = []
    for alt, target, attributes in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)(\{[^}]*\})?", without_code(page.text)):
        if not (alt.strip() or re.search(r"fig-alt=\"[^\"]+\"", attributes)):
            complaints.append(f"{target}: no alt text")
        if not (re.match(r"\w+:", target) or (site.folder / PurePosixPath(page.name).parent / target).exists()):
            complaints.append(f"{target}: no such picture")
    outputs = ["".join(o["data"]["text/html"]) for cell in page.cells for o in cell["outputs"] if "text/html" in o.get("data", {})]
    for tag in re.findall(r"<img\b[^>]*>", "\n".join([without_code(page.text), *outputs])):
        if not re.search(r"\balt=[\"'][^\"']+", tag):
            complaints.append(f"{tag[:60]}: no alt text")
    for cell in page.cells:
        pictures = [o for o in cell["outputs"] if any(kind.startswith("image/") for kind in o.get("data", {}))]
        if pictures:
            source = "".join(cell["source"])
            given = re.search(r"^#\|\s*fig-alt:(.+)$", source, re.M)
            alts = yaml.safe_load(given[1]) if given else []
            alts = [alts] if isinstance(alts, str) else alts
            if "%" in given[1] if given else False:
                complaints.append(f"Quarto stumbles over a % in an alt text: {given[1][:80]!r}")
            if len(alts) != len(pictures) or not all(isinstance(alt, str) and len(alt) > 20 for alt in alts):
                complaints.append(f"{len(pictures)} pictures, {len(alts)} alt texts: {source[:80]!r}")
    return complaints


def check_math(page: Page, site: "Site") -> list[str]:
    "Dollar signs come in pairs, as pandoc pairs them, and so do braces, left and right."
    text = without_code(page.text).replace(r"\$", "")
    complaints = [f"a lone $: {line.strip()[:80]!r}" for line in without_math(text).splitlines() if "$" in line]
    display = re.findall(r"\$\$(.+?)\$\$", text, re.S)
    inline = re.findall(r"\$((?:[^$\n]|\n(?!\s*\n))+?)\$", re.sub(r"\$\$.+?\$\$", "", text, flags=re.S))
    for formula in display + inline:
        bare = re.sub(r"\\[{}\\]", "", formula)
        if bare.count("{") != bare.count("}") or len(re.findall(r"\\left\b", formula)) != len(re.findall(r"\\right\b", formula)):
            complaints.append(f"unbalanced: {formula[:80]!r}")
    return complaints


def check_outputs(page: Page, site: "Site") -> list[str]:
    "No errors, and no widgets, which need a kernel."
    outputs = [output for cell in page.cells for output in cell["outputs"]]
    complaints = [f"error: {output['ename']}" for output in outputs if output["output_type"] == "error"]
    complaints += [f"widget: {kind}" for output in outputs for kind in output.get("data", {}) if "widget" in kind]
    states = [widgets["state"] for widgets in page.metadata.get("widgets", {}).values()]
    return complaints + ["widget state" for state in states if state]


def check_machine(page: Page, site: "Site") -> list[str]:
    "Nothing tells on which machine the page was made."
    texts = [page.text]
    for cell in page.cells:
        texts.append("".join(cell["source"]))
        for output in cell["outputs"]:
            texts.append("".join(output.get("text", "")))
            texts += ["".join(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return [f"a path of this machine: {found}" for found in re.findall(r"(?<![\w.])/(?:work|tmp|root|home)/\S*", "\n".join(texts))]


WIDTH = 83  # characters of code that fit the column of a page
LINES = 50  # of a cell that is not folded, in a tutorial


def shown_code(cell) -> list[str]:
    "Lines of code that a reader sees; none of a cell that is not echoed."
    lines = "".join(cell["source"]).splitlines()
    options = [line for line in lines if line.startswith("#|")]
    hidden = any(re.match(r"#\|\s*(echo:\s*false|include:\s*false|hide\b)", line) for line in options)
    return [] if hidden else [line for line in lines if not line.startswith("#|")]


def check_widths(page: Page, site: "Site") -> list[str]:
    "Code and printed results fit the column, and no cell of a tutorial is long, unless it is folded."
    complaints = []
    for cell in page.cells:
        lines = shown_code(cell)
        complaints += [f"code of {len(line)} characters: {line.strip()[:70]}" for line in lines if len(line) > WIDTH]
        folded = "code-fold: true" in "".join(cell["source"])
        if page.name.startswith("tutorials/") and len(lines) > LINES and not folded:
            complaints.append(f"a cell of {len(lines)} lines: {lines[0][:70]}")
        if "output: false" in "".join(cell["source"]):
            continue
        for output in cell["outputs"]:
            data = output.get("data", {})
            richer = any(kind in data for kind in ("text/html", "text/markdown", "image/png", "image/svg+xml"))
            text = "".join(output.get("text", "") or ("" if richer else data.get("text/plain", "")))
            aligned = [line for line in text.splitlines() if re.search(r"\S {2,}\S", line)]  # a table; prose is wrapped by styles.css
            complaints += [f"output of {len(line)} characters: {line[:70]}" for line in aligned if len(line) > WIDTH]
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", page.text, re.S | re.M):
        complaints += [f"code of {len(line)} characters: {line.strip()[:70]}" for line in block.splitlines() if len(line) > WIDTH]
    return complaints


CHECKS = [check_front_matter, check_links, check_pictures, check_math, check_outputs, check_machine, check_widths]

# ---- the site


class Site:
    def __init__(self, folder: Path):
        self.folder = folder
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".ipynb", ".qmd"))
        self.pages = [parse(path.relative_to(folder).as_posix(), path.read_text()) for path in files]

    def find(self, path: str) -> Page | None:
        return next((page for page in self.pages if path in (page.name, page.html)), None)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The pages after nbdev's processing, made in a copy of the repository."
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "nbs", root / "nbs", symlinks=True, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("settings.ini", "_quarto.yml"):
        shutil.copy(ROOT / name, root)
    code = "import os; from nbdev.serve import proc_nbs; proc_nbs(n_workers=0); os._exit(0)"  # its shells take ten seconds to say goodbye
    done = subprocess.run([sys.executable, "-W", "ignore::SyntaxWarning", "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, f"nbdev cannot make the pages:\n{done.stderr[-2000:]}"
    assert "imports and other code" not in done.stderr, f"nbdev runs cells that hold imports: give these a cell of their own\n{done.stderr}"
    return Site(root / "_proc")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_pages(site, check):
    pages = [page for page in site.pages if check is not check_widths or not page.name[:2].isdigit()]
    complaints = [f"{page.name}: {complaint}" for page in pages for complaint in check(page, site)]
    assert not complaints, "\n".join(complaints)


def test_widths_of_module_pages(site):
    "Strings and tables of cases that nothing can fold: few, and no more than there were."
    modules = [page for page in site.pages if page.name[:2].isdigit()]
    complaints = [f"{page.name}: {complaint}" for page in modules for complaint in check_widths(page, site)]
    assert len(complaints) <= 110, "\n".join(complaints)


def listed(contents):
    "All pages of a sidebar or menu."
    for item in contents:
        if isinstance(item, str):
            yield item
        else:
            yield from [item["href"]] if "href" in item else []
            yield from listed(item.get("contents", item.get("menu", [])))


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_no_text_is_lost(path):
    "nbdev makes front matter of the whole first cell, so that what stands below title and description would not be seen."
    first = next(cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown")
    assert re.fullmatch(r"# [^\n]+\n\n> [^\n]+\n*", "".join(first["source"])), "give the text below the description a cell of its own"


def test_sidebar_lists_each_page_once(site):
    entries = list(listed(SITE["website"]["sidebar"]["contents"]))
    assert sorted(entries) == sorted(page.name for page in site.pages if page.name != "404.qmd")
    assert len({page.html for page in site.pages}) == len(site.pages), "two pages would be written to one file"


def test_menu_leads_to_pages(site):
    navbar = SITE["website"]["navbar"]
    menu = Page("menu.qmd", {}, "\n".join(f"[x]({href})" for href in listed([*navbar["left"], *navbar["right"]])))
    assert not check_links(menu, site)
    website = SITE["website"]
    assert (site.folder / website["image"]).exists() and (site.folder / website["favicon"]).exists()
    assert website["open-graph"]["image"] == website["twitter-card"]["image"] == HOST + website["image"]
    assert {website["image"], website["favicon"]} <= set(SITE["project"]["resources"])
    assert (site.folder / SITE["format"]["html"]["include-after-body"]).exists()


def test_names_become_links(site):
    "nbdev links a name in backticks to where it is defined, and each public name is there."
    quickstart = site.find("tutorials/quickstart.ipynb").text
    assert f"[`find_regions`]({HOST}regions.html#find_regions)" in quickstart
    from nbdev.doclinks import NbdevLookup

    lookup = NbdevLookup()
    modules = {name: module for name, module in attnbootreg._MODULE_OF.items() if name != "RECIPES"}  # a dictionary has no heading
    links = {name: lookup[f"attnbootreg.{module}.{name}"] for name, module in modules.items()}
    public = Page("public.qmd", {}, "\n".join(f"[x]({found[0] if found else 'nowhere.html'})" for found in links.values()))
    assert not check_links(public, site)


# ---- the configuration: keys that Quarto's reference documents, as far as they are used here

ITEM = {"text", "href", "icon", "aria-label", "menu"}
DOCUMENTED = {
    "": {"project", "lang", "format", "website", "metadata-files"},
    "project": {"type", "output-dir", "render", "resources"},
    "format": {"html", "commonmark"},
    "format.html": {
        "theme", "respect-user-color-scheme", "css", "toc", "toc-depth", "code-copy", "code-overflow", "link-external-newwindow",
        "include-after-body",
    },
    "format.commonmark": {"variant"},
    "format.html.theme": {"light", "dark"},
    "website": {
        "title", "description", "site-url", "repo-url", "repo-branch", "repo-actions", "image", "image-alt", "favicon", "open-graph",
        "twitter-card", "search", "navbar", "sidebar", "page-footer", "page-navigation", "back-to-top-navigation", "bread-crumbs",
    },
    "website.open-graph": {"title", "description", "image", "image-alt", "image-width", "image-height", "locale", "site-name"},
    "website.twitter-card": {"title", "description", "image", "image-alt", "image-width", "image-height", "card-style", "creator", "site"},
    "website.search": {"location", "type", "limit", "collapse-after", "copy-button", "keyboard-shortcut", "show-item-context"},
    "website.navbar": {"title", "logo", "logo-alt", "background", "foreground", "search", "pinned", "collapse", "collapse-below", "left", "right"},
    "website.navbar.left": ITEM,
    "website.navbar.left.menu": ITEM,
    "website.navbar.right": ITEM,
    "website.sidebar": {"id", "title", "style", "background", "contents", "collapse-level", "search", "border", "alignment"},
    "website.sidebar.contents": {"section", "contents", "text", "href"},
    "website.sidebar.contents.contents": {"section", "contents", "text", "href"},
    "website.page-footer": {"left", "center", "right", "border", "background", "foreground"},
    "website.page-footer.right": ITEM,
}  # fmt: skip


def unknown_keys(value, where=""):
    "Keys of a configuration that are not in `DOCUMENTED`."
    where = re.sub(r"(contents\.contents)(\.contents)+$", r"\1", where)  # sections in sections
    if isinstance(value, list):
        return [found for item in value for found in unknown_keys(item, where)]
    if not isinstance(value, dict):
        return []
    inside = lambda key: f"{where}.{key}" if where else key
    return [inside(key) for key in value if key not in DOCUMENTED.get(where, set())] + [
        found for key, item in value.items() for found in unknown_keys(item, inside(key))
    ]


def test_reading_order():
    "Next at the foot of a page: first page, tutorials, then the reference, then how it is made, in the order of the modules."
    entries = list(listed(SITE["website"]["sidebar"]["contents"]))
    modules = [name for name in entries if name[:2].isdigit()]
    assert entries[:4] == ["index.ipynb", "guide.qmd", "gallery.qmd", "tutorials/quickstart.ipynb"] and modules == sorted(modules)
    assert entries.index("tutorials/speed.ipynb") < entries.index("reference/regularize.qmd") < entries.index(modules[0])


def test_nbdev_leaves_the_readme_alone():
    "nbdev_docs would write it from this notebook, if there were one."
    settings = (ROOT / "settings.ini").read_text()
    assert not (ROOT / "nbs" / re.search(r"^readme_nb = (.+)$", settings, re.M)[1]).exists()
    assert "renderer = attnbootreg._docs.Renderer" in settings


def test_reference_pages_have_tables(site):
    "Below each exported function stands a table of its parameters, not a signature with comments."
    text = site.find("24_method.ipynb").text
    assert "| `image` |" in text or "| `image`" in text
    assert not re.search(r"^def regularize\(", text, re.M)


def test_configuration_has_documented_keys(site):
    assert not unknown_keys(SITE)
    assert not unknown_keys(yaml.safe_load((ROOT / "nbs" / "nbdev.yml").read_text()))
    assert (site.folder / "_quarto.yml").read_text() == (ROOT / "_quarto.yml").read_text()
    assert (site.folder / SITE["format"]["html"]["css"]).exists()
    assert unknown_keys({"website": {"navbar": {"colour": 1}}, "theem": 2}) == ["theem", "website.navbar.colour"]


# ---- the checks can fail


def notebook(source, **output):
    cell = {"cell_type": "code", "source": source, "outputs": [{"output_type": "display_data", **output}]}
    return json.dumps({"cells": [cell], "metadata": {}})


BROKEN = [
    (check_front_matter, "x.qmd", "---\ntitle: A\ndescription: ''\n---\nText.", "no description"),
    (check_links, "x.qmd", "[a](nowhere.ipynb)", "no such page"),
    (check_links, "tutorials/x.qmd", "[a](24_method.ipynb)", "no such page"),
    (check_links, "x.qmd", "[a](24_method.ipynb#nothing)", "no such heading"),
    (check_links, "x.qmd", f"[`a`]({HOST}method.html#nothing)", "no such heading"),
    (check_links, "x.qmd", f"[a]({SOURCE}nothing.py)", "no such file"),
    (check_pictures, "x.qmd", "![](images/card.png)", "no alt"),
    (check_pictures, "x.qmd", "![a](images/nothing.png)", "no such picture"),
    (check_pictures, "x.ipynb", notebook("plot()", data={"image/png": ""}), "1 pictures, 0 alt texts"),
    (check_pictures, "x.ipynb", notebook("f()", data={"text/html": "<img src='a.png'>"}), "no alt"),
    (check_pictures, "x.ipynb", notebook('#| fig-alt: "A rate of 5 % and more."', data={"image/png": ""}), "stumbles"),
    (check_math, "x.qmd", "It is $x_i and so on.", "lone"),
    (check_math, "x.qmd", "$$ x = 1\n\nand so on", "lone"),
    (check_math, "x.qmd", "$x_{i$", "unbalanced"),
    (check_outputs, "x.ipynb", notebook("f()", ename="ValueError").replace("display_data", "error"), "error"),
    (check_outputs, "x.ipynb", notebook("f()", data={"application/vnd.jupyter.widget-view+json": {}}), "widget"),
    (check_widths, "x.ipynb", notebook("f(" + 90 * "x" + ")"), "code of 93"),
    (check_widths, "x.ipynb", notebook("f()", text="x  " + 90 * "x"), "output of 93"),
    (check_widths, "tutorials/x.ipynb", notebook(60 * "f()\n"), "a cell of 60"),
    (check_widths, "x.qmd", "```sh\n" + 90 * "x" + "\n```", "code of 90"),
    (check_machine, "x.ipynb", notebook("f()", text=["in /tmp/x"]), "/tmp/x"),
]  # fmt: skip


@pytest.mark.parametrize("check, name, content, expected", BROKEN, ids=[f"{case[0].__name__}-{i}" for i, case in enumerate(BROKEN)])
def test_checks_can_fail(site, check, name, content, expected):
    complaints = check(parse(name, content), site)
    assert len(complaints) == 1 and expected in complaints[0]


def test_checks_can_pass(site):
    text = "---\ntitle: A\ndescription: B\n---\n```sh\n# $no heading\n```\n\n## A `b`, π₀!\n\n[x](#a-b-π₀) [`r`](24_method.ipynb#regularize) `$x` costs \\$5, $a_{i}$\n\n$$\n\\left(x\\right)\n$$"
    page = parse("x.qmd", text)
    site_and_page = Site.__new__(Site)
    site_and_page.folder, site_and_page.pages = site.folder, [*site.pages, page]
    assert not [complaint for check in CHECKS for complaint in check(page, site_and_page)]


def test_links_of_a_rendered_site(tmp_path):
    "tools/links.py, which checks what Quarto has made, finds what is broken and nothing else."
    import importlib.util

    spec = importlib.util.spec_from_file_location("links", ROOT / "tools" / "links.py")
    links = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(links)
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text(f'<h1 id="a">A</h1><a href="sub/b.html#c">b</a><a href="{HOST}sub/b.html">b</a><a href="#a">a</a>')
    (tmp_path / "sub" / "b.html").write_text(
        '<p id="c"><a href="../index.html#a">a</a><a href="../">a</a><a href="https://x.org/n">x</a><a href="#top">t</a>'
    )
    assert links.broken(tmp_path) == []
    (tmp_path / "sub" / "b.html").write_text(
        f'<a href="../no.html">a</a><a href="#c">c</a><a href="{HOST}index.html#no">i</a><img src="no.png">'
    )
    assert [found.split()[1] for found in links.broken(tmp_path)] == ["sub/b.html#c", "../no.html", "#c", f"{HOST}index.html#no", "no.png"]
