"The command line, as it is typed."

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from attnbootreg import Regularized
from attnbootreg.cli import app

COMMAND = Path(sys.executable).parent / "attnbootreg"


def attnbootreg(*arguments, cwd=None):
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=cwd)


def test_demo(tmp_path):
    done = attnbootreg("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["scene.json", "scene.npz", "scene.png"]
    for word in ("attention", "lfdr", "posterior", "on_object", "on_noise"):
        assert word in done.stdout
    with Image.open(tmp_path / "demo" / "scene.png") as image:
        assert min(image.size) > 500 and len(image.convert("L").getcolors(256)) > 50


def test_regularize_goes_on_after_a_bad_picture(tmp_path, picture):
    (tmp_path / "other").mkdir()
    picture.save(tmp_path / "a.png")
    picture.rotate(90).save(tmp_path / "other" / "a.jpg")
    (tmp_path / "bad.png").write_text("no picture")
    done = attnbootreg("regularize", "a.png", "bad.png", "other/a.jpg", "--out", "out", "--n-boot", "2", "--seed", "4", cwd=tmp_path)
    assert done.returncode == 1
    assert "bad.png" in done.stderr and "1 of 3" in done.stderr and "bad.png" not in done.stdout
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a-2.json", "a-2.npz", "a-2.png", "a.json", "a.npz", "a.png"]
    card = json.loads((tmp_path / "out" / "a-2.json").read_text())
    assert card["settings"]["seed"] == 6 and card["settings"]["n_boot"] == 2 and 0 <= card["pi0"] <= 1


def test_regularize_equals_the_function(tmp_path, picture):
    from attnbootreg import load_vit, regularize

    picture.save(tmp_path / "a.png")
    options = "--model vit_tiny_patch16_224 --no-pretrained --img-size 64x96 --bootstrap pixel --recipe paper --n-boot 3 --alpha 0.1 --lam 0.2 --seed 1 --device cpu"
    done = attnbootreg("regularize", "a.png", "--out", "out", *options.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = Regularized.load(tmp_path / "out" / "a")
    assert loaded.scores.shape == (4, 6)
    for name, value in dict(bootstrap="pixel", recipe="paper", n_boot=3, alpha=0.1, lam=0.2, seed=1, model="vit_tiny_patch16_224").items():
        assert loaded.settings[name] == value

    done = attnbootreg("regularize", "a.png", "--out", "out", "--n-boot", "3", "--seed", "1", "--dtype", "float32", cwd=tmp_path)
    ours = regularize(tmp_path / "a.png", load_vit(device="cpu"), n_boot=3, seed=1)
    np.testing.assert_allclose(Regularized.load(tmp_path / "out" / "a").scores, ours.scores, atol=1e-6)


def test_names_on_the_command_line_are_those_of_the_rooms():
    from attnbootreg import cli
    from attnbootreg.bootstrap import METHODS
    from attnbootreg.statistics import CHOICES, RECIPES

    assert [one.value for one in cli.Method] == list(METHODS) and [one.value for one in cli.Recipe] == list(RECIPES)
    assert tuple(one.value for one in cli.Standardize) == CHOICES["standardize"]


def test_auto(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    done = attnbootreg("regularize", "a.png", "--out", "out", "--n-boot", "auto", "--max-boot", "20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    settings = Regularized.load(tmp_path / "out" / "a").settings
    assert settings["auto"] and settings["n_boot"] == 20 and settings["overrides"] == {}


def test_what_the_command_line_chooses(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    options = "--n-boot 20 --beside --standardize position --bootstrap block --level 0.2 --seed 1"
    done = attnbootreg("regularize", "a.png", "--out", "out", *options.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    settings = Regularized.load(tmp_path / "out" / "a").settings
    assert settings["beside"] and settings["n_boot"] == 20 and settings["level"] == 0.2
    assert settings["bootstrap"] == "block" and settings["overrides"] == {"standardize": "position"}


@pytest.mark.parametrize(
    "wrong, says",
    [
        (["--alpha", "1.5"], "alpha"),
        (["--n-boot", "0"], "n-boot"),
        (["--n-boot", "some"], "n-boot: must be a whole number of at least 1 or 'auto'"),
        (["--n-boot", "auto", "--max-boot", "0"], "max-boot"),
        (["--n-boot", "5", "--standardize", "position"], "at least 20"),
        (["--n-boot", "auto", "--beside"], "n-boot: 'auto' does not go"),
        (["--model", "vit_tiny_patch16_225"], "did you mean vit_tiny_patch16_224"),
        (["--recipe", "released!"], "calibrated"),
        (["--img-size", "large"], "large"),
        (["--checkpoint", "nowhere.pth"], "nowhere.pth"),
        (["--device", "tpu9"], "device"),
    ],
)
def test_a_senseless_command_writes_nothing(tmp_path, picture, monkeypatch, wrong, says):
    picture.save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["regularize", "a.png", "--out", "out", *wrong])  # in this process: starting another takes seconds
    assert done.exit_code == 2 and says in done.stderr and isinstance(done.exception, SystemExit)
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    done = attnbootreg("regularize", "a.png", "--out", "a.png", "--n-boot", "1", cwd=tmp_path)
    assert done.returncode == 2 and "give a folder" in done.stderr and "Traceback" not in done.stderr


def test_the_picture_itself_is_never_overwritten(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    done = attnbootreg("regularize", "a.png", "--out", ".", "--n-boot", "1", cwd=tmp_path)
    assert done.returncode == 2 and "would be overwritten" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_bytes() == before


def test_odd_names(tmp_path, picture):
    names = ["m$_$.png", "ünï cödé.png", "x" * 150 + ".png"]
    for name in names:
        picture.save(tmp_path / name)
    done = attnbootreg("regularize", *names, "--out", "out", "--n-boot", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 9


def test_random_weights_are_always_the_same(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    for out in ("one", "two"):
        attnbootreg(
            "regularize",
            "a.png",
            "--out",
            out,
            "--model",
            "vit_tiny_patch16_224",
            "--no-pretrained",
            "--n-boot",
            "1",
            "--seed",
            "0",
            cwd=tmp_path,
        )
    one, two = (Regularized.load(tmp_path / out / "a") for out in ("one", "two"))
    np.testing.assert_array_equal(one.p, two.p)
    assert one.settings["weights"] == "random"


def test_models():
    done = attnbootreg("models", "*tiny_patch16*")
    assert done.returncode == 0 and "vit_tiny_patch16_224" in done.stdout.split()
    assert attnbootreg("models").stdout.split()[0] == "scenes"
    assert attnbootreg("models", "resnet*").returncode == 1


def test_train_scenes_makes_a_model_that_loads(tmp_path):
    done = attnbootreg("train-scenes", "--steps", "2", "--out", "new/scenes.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["scenes.safetensors"]
    assert (tmp_path / "new" / "scenes.safetensors").stat().st_mode & 0o044
    assert attnbootreg("train-scenes", "--out", "model.pt", cwd=tmp_path).returncode == 2
    assert attnbootreg("train-scenes", "--steps", "0", cwd=tmp_path).returncode == 2


def test_help_names_every_command():
    done = attnbootreg("--help")
    for command in ("demo", "regularize", "models", "train-scenes"):
        assert command in done.stdout


def test_simulate(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    done = attnbootreg("simulate", "a.png", "--noise", "diffuse", "--side", "30", "--n-boot", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "900 pixels of noise" in done.stdout and "on_noise" in done.stdout
    assert sorted(path.name for path in (tmp_path / "simulation").iterdir()) == ["a.json", "a.npz", "a.png"]


def test_study_and_summarize(tmp_path, picture, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats").mkdir()
    for i in range(3):
        picture.rotate(10 * i).save(tmp_path / "cats" / f"{i}.png")
    (tmp_path / "cats" / "bad.png").write_text("no picture")
    settings = "--n-boot 1 --n-boot 3 --recipe calibrated --recipe paper --noise square --noise diffuse"
    for _ in range(2):  # the second time there is nothing to do
        done = attnbootreg("study", "cats", "--out", "out", *settings.split(), cwd=tmp_path)
        assert done.returncode == 0 and "3 images done, 1 with an error; 24 rows" in done.stdout, done.stderr
    done = attnbootreg("summarize", "out", "--by", "category", "--by", "recipe", cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2 + 8 and "D_lfdr_error" in done.stdout
    for wrong, says in (
        (["study", "cats", "--out", "out", "--n-boot", "2"], "n_boot is [1, 3] there and [2] here"),
        (["study", "nowhere", "--out", "new"], "images: there are none"),
        (["study", "scenes", "--out", "new"], "limit"),
        (["summarize", "cats"], "no study"),
        (["summarize", "out", "--by", "colour"], "no column 'colour'"),
    ):
        done = CliRunner().invoke(app, wrong)
        assert done.exit_code == 2 and says in done.stderr and isinstance(done.exception, SystemExit)
    assert not (tmp_path / "new").exists()


def test_json_for_other_programs(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    picture.rotate(90).save(tmp_path / "b.png")
    done = attnbootreg("regularize", "a.png", "b.png", "--out", "out", "--n-boot", "2", "--json", cwd=tmp_path)
    cards = [json.loads(line) for line in done.stdout.splitlines()]
    assert [card["image"] for card in cards] == ["a.png", "b.png"] and all(
        (tmp_path / file).exists() for card in cards for file in card["files"]
    )
    assert cards[0]["maps"]["p"]["patches"] == int((Regularized.load(tmp_path / "out" / "a").maps["p"] > 0).sum())
    card = json.loads(attnbootreg("simulate", "a.png", "--n-boot", "2", "--json", cwd=tmp_path).stdout)
    assert 0 <= card["shares"]["on_noise"]["attention"] <= 1
    card = json.loads(attnbootreg("study", "*.png", "--out", "study", "--n-boot", "1", "--json", cwd=tmp_path).stdout)
    assert card["images"] == 2 and card["errors"] == 0 and card["images_a_second"] > 0
    (row,) = json.loads(attnbootreg("summarize", "study", "--json", cwd=tmp_path).stdout)
    assert row["images"] == 2 and "D_p" in row
    assert json.loads(attnbootreg("models", "scenes", "--json").stdout) == ["scenes"]


def test_quiet_says_nothing_but_errors(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("no picture")
    for command in ("regularize a.png --out out --n-boot 1", "simulate a.png --n-boot 1", "study a.png --out study --n-boot 1", "demo"):
        done = attnbootreg(*command.split(), "--quiet", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), command
    done = attnbootreg("regularize", "bad.png", "--out", "out", "--quiet", cwd=tmp_path)
    assert done.returncode == 1 and "bad.png" in done.stderr and not done.stdout


def test_completion_for_the_shell():
    done = attnbootreg("--show-completion", "bash")
    assert done.returncode == 0 and "_attnbootreg_completion" in done.stdout


def test_pictures_of_others_are_never_overwritten(tmp_path, picture):
    picture.save(tmp_path / "a.jpg")
    picture.rotate(90).save(tmp_path / "a.png")
    kept = (tmp_path / "a.png").read_bytes()
    for command in (
        "regularize a.jpg --out . --n-boot 1",
        "simulate a.jpg --out . --n-boot 1",
        "regularize a.jpg a.png --out . --n-boot 1",
    ):
        done = attnbootreg(*command.split(), cwd=tmp_path)
        assert done.returncode == 2 and "a.png" in done.stderr and (tmp_path / "a.png").read_bytes() == kept, command
    for _ in range(2):  # results of ours are written anew
        assert attnbootreg("regularize", "a.jpg", "--out", "out", "--n-boot", "1", cwd=tmp_path).returncode == 0
    done = attnbootreg("regularize", "a.jpg", "--out", "a.png", "--n-boot", "1", cwd=tmp_path)
    assert done.returncode == 2 and "is a file; give a folder" in done.stderr


def test_a_study_that_failed_says_so(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no picture")
    done = attnbootreg("study", "bad", "--out", "out", "--n-boot", "1", cwd=tmp_path)
    assert done.returncode == 1 and "not a picture" in done.stderr and "0 images done, 1 with an error" in done.stdout
