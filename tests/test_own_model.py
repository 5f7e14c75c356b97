'The recipes of the page "Your own model": eight, each of at most ten lines, each works alone.'

import json
import logging

import numpy as np
import pytest

RECIPES = range(1, 9)


@pytest.fixture(scope="module")
def cells(root):
    page = json.loads((root / "nbs" / "tutorials" / "own_model.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def prepared(cells, tmp_path_factory):
    "The names that the page has before its first recipe, and a folder with the files that recipes name."
    pytest.importorskip("transformers", reason="needs attnbootreg[hf]")
    pytest.importorskip("open_clip", reason="needs open_clip_torch")
    import transformers

    levels = [(logger, logger.level) for logger in map(logging.getLogger, ("root", "transformers"))]
    names = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("recipes"))
        for code in cells:
            if "import textwrap" in code or "import open_clip" in code and not code.startswith("# recipe"):
                exec(code, names)
        yield names
    for logger, level in levels:
        logger.setLevel(level)
    transformers.utils.logging.enable_progress_bar()


def recipe(cells, number):
    (code,) = (code for code in cells if code.startswith(f"# recipe {number}\n"))
    return code.split("\n", 1)[1]


@pytest.mark.parametrize("number", RECIPES)
def test_a_recipe_works_alone(cells, prepared, number):
    names = {name: value for name, value in prepared.items() if name not in ("vit", "res", "load_vit", "regularize", "Attention")}
    exec(recipe(cells, number), names)
    vit, res = names["vit"], names["res"]
    assert res.scores.shape == vit.grid and (res.scores > 0).all() and res.scores.sum() < 1 + 1e-5
    assert res.settings["score"]["query"] == vit.query == "cls" and np.isfinite(res.sig.p).all()


def test_recipes_are_short(cells):
    assert sum(code.startswith("# recipe") for code in cells) == len(RECIPES)
    for number in RECIPES:
        lines = [line for line in recipe(cells, number).splitlines() if line.strip()]
        assert len(lines) <= 10 and max(map(len, lines)) <= 83
