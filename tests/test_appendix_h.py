"The commands of appendix H, as the page on the paper's figures gives them, with a small model of the same form."

import json
import re
import shlex

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from typer.testing import CliRunner

from attnbootreg import load_study, make_scenes
from attnbootreg.cli import app


@pytest.fixture(scope="module")
def commands(root):
    "The lines of the page that begin with attnbootreg, with its variable filled in."
    page = json.loads((root / "nbs" / "tutorials" / "paper_figures.ipynb").read_text(encoding="utf-8"))
    (text,) = ("".join(cell["source"]) for cell in page["cells"] if "DINOV2=" in "".join(cell["source"]))
    first, second = re.findall(r'^DINOV2="(.*)"$', text, re.M)
    options = second.replace("$DINOV2", first)
    return [line.replace("$DINOV2", options) for line in re.findall(r"^attnbootreg (.*)$", text, re.M)]


def test_dinov2_with_registers_through_simulate_and_study_unfiltered(commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=518).state_dict()
    torch.save(state, "dinov2_vitb14_reg4_pretrain.pth")
    for i, image in enumerate(make_scenes(4, seed=0).images):
        category = tmp_path / "imagenette2" / "val" / f"n{i % 2}"
        category.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((image.permute(1, 2, 0).numpy() * 255).astype(np.uint8))
        picture.save(category / f"{i}.png")
        picture.save("n02102040_821.JPEG")
    small = lambda line: line.replace("vit_base_patch14_reg4_dinov2.lvd142m", "vit_small_patch14_reg4_dinov2").replace("490", "112")
    assert len(commands) == 3 and "--z-filter" not in commands[-1]
    for line in commands:
        done = CliRunner().invoke(app, shlex.split(small(line)), catch_exceptions=False)
        assert done.exit_code == 0, done.output
    card = json.loads((tmp_path / "s17" / "n02102040_821.json").read_text())
    assert np.load(tmp_path / "s17" / "n02102040_821.npz")["scores"].shape == (8, 8) and "patch14" in json.dumps(card)
    rows = load_study("studies/dinov2")
    assert rows["image"].nunique() == 4 and set(rows["category"]) == {"n0", "n1"} and rows["error"].isna().all()
    assert re.search(r"n0 .*\n.*n1 ", done.output)
