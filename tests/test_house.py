"The repository itself: notebooks and modules agree, pages have titles, public names are documented."

import ast
import inspect
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.version import Version

import attnbootreg

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts and "_proc" not in path.parts)
PUBLIC = [getattr(attnbootreg, name) for name in attnbootreg.__all__ if name != "RECIPES"]  # a dictionary


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def test_modules_are_the_exported_notebooks(tmp_path):
    from nbdev.export import nb_export

    package = tmp_path / "attnbootreg"
    package.mkdir()
    for path in NOTEBOOKS:
        nb_export(path, lib_path=package)
    exported = {path.name: path.read_text() for path in package.glob("*.py")}
    ours = {path.name: path.read_text() for path in (ROOT / "attnbootreg").glob("*.py") if not path.name.startswith("_")}
    assert sorted(exported) == sorted(ours)
    for name in ours:  # the comment above each cell names the notebook relative to the module, which moves with tmp_path
        strip = lambda text: re.sub(r"^# %% .*$", "# %%", text, flags=re.M)
        assert strip(exported[name]).splitlines()[3:] == strip(ours[name]).splitlines()[3:], (
            f"run nbdev_export: {name} differs from its notebook"
        )


def test_readme_is_made_from_the_index(tmp_path):
    command = [sys.executable, "-m", "nbconvert", "--config", "tools/readme.py", "--output-dir", tmp_path, "nbs/index.ipynb"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text(), "run make readme"
    pictures = re.findall(r"!\[.*?\]\((nbs/images/.*?)\)", (ROOT / "README.md").read_text())
    made = [name for name in pictures if (tmp_path / name).exists()]
    assert made and all((ROOT / name).exists() for name in pictures)
    for name in made:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes(), "run make readme"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_a_page(path):
    first = "".join(cells(path, "markdown")[0]["source"])
    assert re.match(r"# .+\n\n> .+", first), "a page begins with a title and a one-line description"
    outputs = [output for cell in cells(path, "code") for output in cell["outputs"]]
    assert outputs, "a page stores its outputs"
    assert not [output for output in outputs if output["output_type"] == "error"]


@pytest.mark.parametrize("path", [*NOTEBOOKS, ROOT / "README.md"], ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    text = path.read_text() if path.suffix == ".md" else "".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (path.parent / target).exists(), target


def modules_in_order():
    "Modules by the numbers of their notebooks."
    made = {re.search(r"#\| default_exp (\w+)", code)[1]: path for path in NOTEBOOKS if "default_exp" in (code := code_of(path))}
    return sorted(made.items(), key=lambda item: item[1].name)


def code_of(path):
    return "\n".join("".join(cell["source"]) for cell in cells(path, "code"))


def test_modules_import_only_modules_above():
    order = [name for name, _ in modules_in_order()]
    for i, name in enumerate(order):
        imported = re.findall(r"^\s*from (?:attnbootreg)?\.(\w+) import", (ROOT / "attnbootreg" / f"{name}.py").read_text(), re.M)
        assert set(imported) <= set(order[:i]), f"{name} imports a module below"


def test_notebooks_are_numbered_without_gaps():
    order = modules_in_order()
    assert [path.stem for _, path in order] == [f"{i:02}_{name}" for i, (name, _) in enumerate(order)]


def test_site_lists_every_notebook():
    site = (ROOT / "_quarto.yml").read_text()
    for path in NOTEBOOKS:
        assert str(path.relative_to(ROOT / "nbs")) in site
    assert (ROOT / "nbs" / "_quarto.yml").resolve() == ROOT / "_quarto.yml"


@pytest.mark.parametrize("item", PUBLIC, ids=lambda item: item.__name__)
def test_public_name_is_documented(item):
    assert inspect.getdoc(item) and not inspect.getdoc(item).startswith(f"{item.__name__}(")
    if inspect.isfunction(item):
        signature = inspect.signature(item)
        assert all(parameter.annotation is not parameter.empty for parameter in signature.parameters.values())
        assert signature.return_annotation is not signature.empty


def test_editors_and_python_know_the_same_names():
    "The names that are fetched when they are used are those that type checkers see."
    tree = ast.parse((ROOT / "attnbootreg" / "__init__.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("attnbootreg.")]
    seen = {alias.name: node.module.removeprefix("attnbootreg.") for node in imports for alias in node.names}
    assert seen == attnbootreg._MODULE_OF and sorted(seen) == attnbootreg.__all__
    assert set(attnbootreg.__all__) < set(dir(attnbootreg))


def test_the_package_imports_no_module_by_itself():
    code = "import sys, attnbootreg, attnbootreg.cli; assert not {'torch', 'timm', 'pandas', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_needs_no_extra():
    "help(attnbootreg) and import * work where only the core is installed: they see no name that needs an extra."
    code = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in ("pyarrow", "anywidget") else found(name, *more)
import attnbootreg
assert not {"Study", "compare_studies", "Explorer"} & {*dir(attnbootreg), *attnbootreg.__all__}
assert set(attnbootreg.__all__) < set(dir(attnbootreg)) and "regularize" in attnbootreg.__all__
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_oldest_versions_are_those_of_the_settings():
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    needed = " ".join(settings["DEFAULT"][f"{extra}requirements"] for extra in ("", "study_", "explore_", "medical_")).split()
    least = {name: Version(version) for name, version in (one.split(">=") for one in needed)}
    lines = [line for line in (ROOT / "tests" / "oldest.txt").read_text().splitlines() if not line.startswith("#")]
    assert {name: Version(version) for name, version in (line.split("==") for line in lines)} == least
    for extra in ("ray_", "dev_"):
        again = dict(one.split(">=") for one in settings["DEFAULT"][f"{extra}requirements"].split() if ">=" in one)
        assert all(Version(version) == least[name] for name, version in again.items() if name in least)


def test_embedded_models_are_small():
    files = list((ROOT / "attnbootreg" / "weights").glob("*.safetensors"))
    assert sorted(path.stem for path in files) == ["scenes", "scenes-plain", "trap"]
    assert all(path.stat().st_size <= 6e6 for path in files)
