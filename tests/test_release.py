"What is published: the wheel and the sdist hold what they should, their page on PyPI has no dead link, and recipes name what settings.ini names."

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SETTINGS = ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]
TUTORIALS = sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb"))


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    "Wheel and sdist, made by setuptools from a copy of the repository; nothing is downloaded."
    root, out = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("dist")
    for name in ("attnbootreg", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, root)
    code = f"from setuptools.build_meta import build_sdist as s, build_wheel as w; s({str(out)!r}); w({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_wheel_holds_the_package(dist):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    ours = {
        f"attnbootreg/{path.relative_to(ROOT / 'attnbootreg').as_posix()}" for path in (ROOT / "attnbootreg").rglob("*") if path.is_file()
    }
    ours = {name for name in ours if "__pycache__" not in name}
    assert {name for name in names if name.startswith("attnbootreg/")} == ours
    assert {name.partition("/")[0] for name in names} == {"attnbootreg", f"attnbootreg-{SETTINGS['version']}.dist-info"}


def test_sdist_builds_the_wheel_again(dist, tmp_path):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        sdist.extractall(tmp_path, filter="data")
    top = next(tmp_path.iterdir())
    assert {"settings.ini", "setup.py", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"} <= {path.name for path in top.iterdir()}
    code = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run([sys.executable, "-c", code], cwd=top, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as again, zipfile.ZipFile(next(dist.glob("*.whl"))) as first:
        assert sorted(again.namelist()) == sorted(first.namelist())


def test_metadata_and_its_links(dist):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("METADATA"))
        metadata = Parser().parsestr(wheel.read(name).decode())
    assert metadata["Version"] == SETTINGS["version"] and metadata["Description-Content-Type"] == "text/markdown"
    needed = [requirement for requirement in metadata.get_all("Requires-Dist") if "extra ==" not in requirement]
    assert needed == SETTINGS["requirements"].split()
    text = re.sub(r"```.*?```", "", metadata.get_payload(), flags=re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 20 and not [link for link in links if not re.match(r"https://|#", link)]
    for link in links:
        if found := re.match(rf"https://raw\.githubusercontent\.com/[^/]+/[^/]+/v{SETTINGS['version']}/(.*)", link):
            assert (ROOT / found[1]).exists()
        elif found := re.match(r"https://attnbootreg\.github\.io/attnbootreg/(tutorials/|reference/)?(\w+)\.html", link):
            pages = [path for path in (ROOT / "nbs" / (found[1] or "")).iterdir() if re.fullmatch(rf"(\d\d_)?{found[2]}", path.stem)]
            assert pages, f"{link} leads nowhere"


def test_conda_recipe_names_what_the_settings_name():
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())
    names = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    needed = {names.get(name, name): version for name, version in (one.split(">=") for one in SETTINGS["requirements"].split())}
    runs = dict(one.split(" >=") for one in recipe["requirements"]["run"])
    assert runs.pop("python") == "${{ python_min }}" and runs == needed
    assert yaml.safe_load((ROOT / "conda" / "variants.yaml").read_text()) == {"python_min": [SETTINGS["min_python"]]}
    assert recipe["context"]["version"] == SETTINGS["version"]
    assert recipe["build"]["python"]["entry_points"] == [SETTINGS["console_scripts"].replace("=", " = ")]


def test_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == SETTINGS["version"] and citation["preferred-citation"]["year"] == 2026
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert changes.partition("\n## ")[2].startswith(SETTINGS["version"])


def test_workflows_and_forms_are_yaml():
    files = sorted((ROOT / ".github").rglob("*.yml"))
    assert len(files) >= 7
    for path in files:
        content = yaml.safe_load(path.read_text())
        if path.parent.name == "workflows":
            for job in content["jobs"].values():
                assert "uses" in job or job["steps"]
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"} and "password" not in str(release)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_open_elsewhere(path):
    "Badges lead to this page, and the cell that installs does nothing here."
    cells = {cell["id"]: "".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]}
    page = path.relative_to(ROOT).as_posix()
    assert cells["badges"].count(f"main/{page})") == 1 and cells["badges"].count(f"lab/tree/{page})") == 1, "run tools/badges.py"
    assert cells["install"].startswith("#| hide")
    extras = re.search(r"\[([\w,]+)\]", cells["install"])[1]
    assert all(f"{extra}_requirements" in SETTINGS for extra in extras.split(","))
    exec(compile(cells["install"], "install", "exec"), {})  # outside Colab
