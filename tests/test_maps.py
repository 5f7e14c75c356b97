"The benchmark that ranks maps, on pictures and masks as a user has them."

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

from attnbootreg import make_scenes

SPEC = spec_from_file_location("maps", Path(__file__).parent.parent / "benchmarks" / "maps.py")
maps = module_from_spec(SPEC)
SPEC.loader.exec_module(maps)
NAMES = ["Attention", "Rollout", "CDAM", "GradCAM", "Relevance", "LeGrad", "InputGradient"]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    "Two scenes and their masks, and fewer null images than for a table."
    monkeypatch.setattr(maps, "NULLS", 2)
    scenes = make_scenes(2, seed=5, size=96)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for name, image, mask in zip("ab", scenes.images, scenes.masks):
        Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy()).save(tmp_path / "images" / f"{name}.jpg")
        Image.fromarray(mask.numpy().astype(np.uint8) * 255).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "images" / "notes.txt").write_text("no picture")
    return tmp_path


def run(folder, monkeypatch, *more):
    "The table that the command writes."
    command = ["maps.py", "--out", folder / "mine.parquet", "--images", folder / "images", "--masks", folder / "masks", *more]
    monkeypatch.setattr(sys, "argv", [str(one) for one in command])
    maps.main()
    return pd.read_parquet(folder / "mine.parquet")


def test_a_folder_of_pictures_and_masks(folders, monkeypatch, capsys):
    table = run(folders, monkeypatch)
    assert list(table["map"]) == NAMES * 2 and list(table["image"].unique()) == ["a.jpg", "b.jpg"]
    measured = table.filter(regex="^(auroc|precision|.* share|deletion|insertion|noise p)").drop(columns=table.filter(like="size"))
    assert measured.notna().all(axis=None) and measured.ge(0).all(axis=None) and measured.le(1).all(axis=None)
    assert table.loc[table["map"] == "Attention", "auroc raw"].gt(0.7).all()  # the embedded model knows scenes
    assert table["auroc size raw"].notna().groupby(table["map"]).all().to_dict() == {
        name: name in ("CDAM", "InputGradient") for name in NAMES
    }
    said = capsys.readouterr().out
    assert said.startswith("2 pictures\n") and f"{table.groupby('map')['auroc raw'].mean()['Rollout']:.3f} ±" in said
    pd.testing.assert_frame_equal(run(folders, monkeypatch), table)  # nothing is done twice


def test_a_model_without_classes_has_fewer_maps(folders, monkeypatch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=0)
    torch.save(model.state_dict(), folders / "mine.pth")
    table = run(folders, monkeypatch, "--model", "test_vit", "--checkpoint", folders / "mine.pth")
    assert list(table["map"]) == ["Attention", "Rollout"] * 2 and "deletion raw" not in table


def test_wrong_masks_are_named(folders, monkeypatch):
    (folders / "images" / "a.jpg").unlink()
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(folders / "masks" / "b.png")
    with pytest.raises(SystemExit, match="b.jpg: mask: all of it is zero"):
        run(folders, monkeypatch)
    (folders / "masks" / "b.png").unlink()
    with pytest.raises(SystemExit, match="holds 0 of the name b"):
        run(folders, monkeypatch)
