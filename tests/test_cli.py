"The command line, as it is typed."

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import attnbootreg as library
from attnbootreg import Regularized
from attnbootreg.cli import app

COMMAND = Path(sys.executable).parent / "attnbootreg"

SCORES = """
import torch
from attnbootreg import Score

def token_norm(vit, x):
    "Length of the patch embeddings."
    tokens = vit.model.patch_embed(x.to(vit.device, vit.dtype))
    return tokens.norm(dim=-1).unflatten(1, vit.grid)

def contrast(vit, x):
    "Positive where a patch is brighter than its image, negative where it is darker, and exactly zero in between."
    bright = torch.nn.functional.avg_pool2d(x.mean(1, keepdim=True), vit.patch_size)[:, 0]
    return torch.nn.functional.softshrink(bright - bright.mean((1, 2), keepdim=True), 0.1)

signed = Score(contrast, signed=True)
two = Score(lambda vit, x: torch.stack([token_norm(vit, x), contrast(vit, x).abs()], 1), maps=("norm", "contrast"), name="two")
shapeless = lambda vit, x: x.mean((1, 2, 3))
number = 3
"""


def in_a_shell(*arguments, cwd=None):
    "The command as users start it."
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=cwd)


def attnbootreg(*arguments, cwd="."):
    "The same in this process, as starting another takes seconds. Modules that were imported from the folder are forgotten."
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        done = CliRunner().invoke(app, [*map(str, arguments)])
    for name in ("my_scores", "broken"):
        sys.modules.pop(name, None)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception  # a traceback, in a shell
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def typed(command):
    return attnbootreg(*command.split())


@pytest.fixture
def folder(tmp_path, picture, monkeypatch):
    "The current folder, with a picture, a.png, and a file of scores, my_scores.py."
    picture.save(tmp_path / "a.png")
    (tmp_path / "my_scores.py").write_text(SCORES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_demo(tmp_path):
    done = in_a_shell("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["scene.json", "scene.npz", "scene.png"]
    for word in ("scores", "lfdr", "posterior", "on_object", "on_noise"):
        assert word in done.stdout
    with Image.open(tmp_path / "demo" / "scene.png") as image:
        assert min(image.size) > 500 and len(image.convert("L").getcolors(256)) > 50


def test_regularize_goes_on_after_a_bad_picture(tmp_path, picture):
    (tmp_path / "other").mkdir()
    picture.save(tmp_path / "a.png")
    picture.rotate(90).save(tmp_path / "other" / "a.jpg")
    (tmp_path / "bad.png").write_text("no picture")
    done = attnbootreg(
        "regularize", "a.png", "bad.png", "other/a.jpg", "--out", "out", "--n", "2", "--groups", "1", "--seed", "4", cwd=tmp_path
    )
    assert done.returncode == 1
    assert "bad.png" in done.stderr and "1 of 3" in done.stderr and "bad.png" not in done.stdout
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a-2.json", "a-2.npz", "a-2.png", "a.json", "a.npz", "a.png"]
    card = json.loads((tmp_path / "out" / "a-2.json").read_text())
    assert card["settings"]["seed"] == 6 and card["settings"]["null"]["n"] == 2 and 0 <= card["pi0"] <= 1


def test_regularize_equals_the_function(tmp_path, picture):
    from attnbootreg import Null, load_vit, regularize
    from attnbootreg.files import plain
    from attnbootreg.recipes import RECIPES, Cuts

    picture.save(tmp_path / "a.png")
    options = "--model vit_tiny_patch16_224 --no-pretrained --img-size 64x96 --null pixel --recipe paper --n 3 --p 0.1 --lfdr 0.2 --seed 1 --device cpu"
    done = attnbootreg("regularize", "a.png", "--out", "out", *options.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = Regularized.load(tmp_path / "out" / "a")
    assert loaded.scores.shape == (4, 6) and loaded.cuts == Cuts(p=0.1, lfdr=0.2)
    assert loaded.sig.recipe == RECIPES["paper"].resolved() and loaded.settings["null"] == plain(Null("pixel", n=3, groups=1))
    assert loaded.settings["seed"] == 1 and loaded.settings["model"]["name"] == "vit_tiny_patch16_224"

    done = attnbootreg(
        "regularize", "a.png", "--out", "out", "--n", "3", "--groups", "1", "--seed", "1", "--dtype", "float32", cwd=tmp_path
    )
    ours = regularize(tmp_path / "a.png", load_vit(device="cpu"), null=Null(n=3, groups=1), seed=1)
    np.testing.assert_allclose(Regularized.load(tmp_path / "out" / "a").scores, ours.scores, atol=1e-6)


def test_names_on_the_command_line_are_those_of_the_modules():
    from attnbootreg import cli
    from attnbootreg.bootstrap import KINDS
    from attnbootreg.loading import DTYPES
    from attnbootreg.recipes import CHOICES, RECIPES

    assert [one.value for one in cli.Kinds] == list(KINDS) and [one.value for one in cli.Recipes] == list(RECIPES)
    assert tuple(one.value for one in cli.Standardizations) == CHOICES["standardize"]
    assert [one.value for one in cli.Dtypes] == list(DTYPES)


def test_auto(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    done = attnbootreg("regularize", "a.png", "--out", "out", "--n", "auto", "--n-max", "20", "--recipe", "calibrated", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = Regularized.load(tmp_path / "out" / "a")
    assert loaded.settings["null"]["n"] == "auto" and len(loaded.null) == 20 and loaded.sig.recipe.name == "calibrated"


def test_what_the_command_line_chooses(tmp_path, picture):
    from attnbootreg import Recipe
    from attnbootreg.recipes import Cuts

    picture.save(tmp_path / "a.png")
    options = "--n 20 --standardize position --null block --q 0.2 --z 0.5 --seed 1 --layer 2 --layer -1 --heads 0,max --query 3,4"
    done = attnbootreg("regularize", "a.png", "--out", "out", *options.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = Regularized.load(tmp_path / "out" / "a")
    assert loaded.cuts == Cuts(q=0.2, z=0.5) and loaded.settings["null"]["kind"] == "block" and len(loaded.null) == 20
    assert loaded.sig.recipe == Recipe(standardize="position").resolved()
    assert loaded.settings["score"] == {"type": "Attention", "layer": [2, -1], "query": [3, 4], "heads": [0, "max"]}
    assert loaded.labels == ("layer 2, head 0", "layer 2, max of heads", "layer 5, head 0", "layer 5, max of heads")


@pytest.mark.parametrize(
    "wrong, says",
    [
        (["--p", "1.5"], "--p: must be a number in [0, 1]"),
        (["--q", "-1"], "--q: must be a number in [0, 1]"),
        (["--lfdr", "2"], "--lfdr: must be a number in [0, 1]"),
        (["--z", "nan"], "--z: must be a finite number"),
        (["--n", "0"], "--n: must be a whole number of at least 1"),
        (["--n", "some"], "--n: must be a whole number of at least 1, 'auto'"),
        (["--n", "auto", "--n-max", "0"], "--n-max: must be a whole number of at least 20"),
        (["--n", "5", "--standardize", "position"], "at least 20"),
        (["--width", "-1"], "--width: must be a number above 0"),
        (["--null", "pixel", "--width", "2"], "--width: 2.0 has no meaning for 'pixel'"),
        (["--layer", "6"], "--layer: 6 is not a block"),
        (["--heads", "media"], "--heads:"),
        (["--heads", "0,9"], "--heads: 9 is not a head"),
        (["--query", "register:0"], "--query: scenes has no 'register:0'"),
        (["--score", "token_norm"], "--score: there is no 'token_norm'"),
        (["--score", "CDMA"], "did you mean 'CDAM'"),
        (["--score", "CDAM", "--target", "redring"], "--target: there is no 'redring'; did you mean 'red ring'"),
        (["--score", "CDAM", "--target", "12"], "--target: scenes has classes 0 to 11, got 12"),
        (["--score", "CDAM", "--heads", "each"], "--heads cannot be used with CDAM"),
        (["--target", "3"], "--target cannot be used with Attention"),
        (["--score", "nowhere_at_all:f"], "--score: nowhere_at_all:f: the module 'nowhere_at_all' cannot be imported"),
        (["--score", "my_scores:f"], "--score: my_scores:f: the module 'my_scores' has no 'f'"),
        (["--score", "my_scores:number"], "--score: my_scores:number: expected"),
        (["--score", "broken:f"], "--score: broken:f: ZeroDivisionError: division by zero"),
        (
            ["--score", "my_scores:token_norm", "--layer", "3", "--heads", "each"],
            "--layer, --heads cannot be used with my_scores:token_norm",
        ),
        (["--score", "my_scores:token_norm", "--query", "mean"], "--query cannot be used with my_scores:token_norm"),
        (["--mask", "nowhere.png"], "--mask: there is no file 'nowhere.png'"),
        (["--mask", "."], "--mask: '.' holds no mask for 'a.png'"),
        (["a.png", "--mask", "a.png"], "--mask: there are 2 pictures"),
        (["--seed", "-1"], "--seed: must be a whole number"),
        (["--model", "vit_tiny_patch16_225"], "--model: there is no 'vit_tiny_patch16_225'; did you mean vit_tiny_patch16_224"),
        (["--recipe", "released!"], "calibrated"),
        (["--img-size", "large"], "--img-size: 'large'"),
        (["--checkpoint", "nowhere.pth"], "nowhere.pth"),
        (["--device", "tpu9"], "--device"),
    ],
)
def test_a_senseless_command_writes_nothing(folder, wrong, says):
    (folder / "broken.py").write_text("1 / 0")
    before = sorted(folder.iterdir())
    done = typed(f"regularize a.png --out out {' '.join(wrong)}")
    assert done.returncode == 2 and says in done.stderr
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before


def test_a_score_of_ones_own(folder):
    from attnbootreg import Null, Score, load_vit, regularize

    done = in_a_shell(
        "regularize",
        "a.png",
        "--out",
        "out",
        "--score",
        "my_scores:token_norm",
        "--n",
        "3",
        "--groups",
        "1",
        "--seed",
        "1",
        "--device",
        "cpu",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    vit = load_vit(device="cpu")
    norm = Score(lambda vit, x: vit.model.patch_embed(x.to(vit.device)).norm(dim=-1).unflatten(1, vit.grid))
    ours, loaded = regularize(folder / "a.png", vit, norm, null=Null(n=3, groups=1), seed=1), Regularized.load(folder / "out" / "a")
    np.testing.assert_allclose(loaded.scores, ours.scores, rtol=1e-5)
    np.testing.assert_allclose(loaded.sig.p, ours.sig.p, atol=2 / 769)
    assert loaded.settings["score"]["function"] == "my_scores:token_norm" and loaded.sig.recipe.scale == "linear"


def test_relevance_maps_by_name(folder):
    from attnbootreg import CDAM, Null, load_study, load_vit, regularize

    options = ("--score", "CDAM", "--target", "red ring", "--target", "4", "--n", "3", "--groups", "1", "--seed", "1")
    done = attnbootreg("regularize", "a.png", "--out", "out", *options, cwd=folder)
    assert done.returncode == 0 and "  red ring: " in done.stdout and "  green bar: " in done.stdout, done.stderr
    loaded, ours = (
        Regularized.load(folder / "out" / "a"),
        regularize(folder / "a.png", load_vit(), CDAM(("red ring", 4)), null=Null(n=3, groups=1), seed=1),
    )
    np.testing.assert_allclose(loaded.scores, ours.scores, rtol=1e-3, atol=1e-6)
    assert loaded.sig.recipe.alternative == "two-sided"
    done = typed("simulate a.png --score GradCAM --layer 3 --n 2 --groups 1 --json")
    assert done.returncode == 0 and 0 <= json.loads(done.stdout)["shares"]["on_noise"]["scores"] <= 1, done.stderr
    done = typed("study a.png --out maps --score Relevance --target 3 --n 2 --groups 1")
    assert done.returncode == 0 and set(load_study(folder / "maps")["score"]) == {"Relevance(target=3)"}, done.stderr


def test_a_signed_score_with_exact_zeros(folder):
    done = typed("regularize a.png --out out --score my_scores:signed --n 3 --groups 1 --seed 1 --json")
    assert done.returncode == 0, done.stderr
    loaded = Regularized.load(folder / "out" / "a")
    assert loaded.scores.min() < 0 < loaded.scores.max() and (loaded.scores == 0).sum() > 5
    assert loaded.sig.recipe.alternative == "two-sided" and loaded.maps["p"].min() < 0 < loaded.maps["p"].max()
    assert json.loads(done.stdout)["maps"]["p"]["patches"] == int((loaded.maps["p"] != 0).sum())
    done = typed("simulate a.png --score my_scores:signed --n 3 --groups 1 --json")
    assert done.returncode == 0 and 0 < json.loads(done.stdout)["shares"]["on_noise"]["scores"] < 1, done.stderr


def test_a_score_that_fails_on_a_picture(folder):
    done = typed("regularize a.png --out out --score my_scores:shapeless --n 3 --groups 1")
    assert done.returncode == 1 and "a.png: --score: <lambda> gives (1,)" in done.stderr


def test_several_maps_are_printed_one_by_one(folder):
    done = typed("regularize a.png --out out --heads each --n 2 --groups 1 --seed 0")
    first, *others = done.stdout.splitlines()
    loaded = Regularized.load(folder / "out" / "a")
    assert done.returncode == 0 and first == "a.png: 2 maps -> out/a.png" and len(loaded) == 2, done.stderr
    for i, line in enumerate(others):
        kept = int((loaded[i].maps["p"] > 0).sum())
        assert line == f"  head {i}: {kept} of 256 patches at p <= 0.3, pi0 {loaded[i].sig.pi0:.2f}"
    card = json.loads(typed("regularize a.png --out out --score my_scores:two --n 2 --groups 1 --json").stdout)
    assert list(card["score_maps"]) == ["norm", "contrast"] and 0 <= card["score_maps"]["norm"]["pi0"] <= 1
    done = typed("simulate a.png --heads 0,1 --n 2 --groups 1")
    assert done.returncode == 0 and "head 0; pi0 = " in done.stdout and done.stdout.count("on_noise") == 2, done.stderr
    card = json.loads(typed("simulate a.png --heads 0,1 --n 2 --groups 1 --json").stdout)
    assert 0 <= card["score_maps"]["head 1"]["shares"]["on_noise"]["q"] <= 1


def test_masks(folder, picture):
    (folder / "masks").mkdir()
    picture.rotate(90, expand=True).save(folder / "b.jpg")
    inside = np.zeros((60, 80), np.uint8)
    inside[:, :40] = 255
    Image.fromarray(inside).save(folder / "masks" / "a.png")
    Image.fromarray(inside.T).save(folder / "masks" / "b.png")
    done = typed("regularize a.png --out one --mask masks/a.png --n 2 --groups 1 --seed 0")
    assert done.returncode == 0 and "of 128 patches at" in done.stdout, done.stderr
    loaded = Regularized.load(folder / "one" / "a")
    assert loaded.sig.tested[:, :8].all() and not loaded.sig.tested[:, 8:].any() and not loaded.maps["z"][:, 8:].any()
    done = typed("regularize a.png b.jpg --out all --mask masks --n 2 --groups 1 --seed 0 --json")
    assert [json.loads(line)["patches"] for line in done.stdout.splitlines()] == [128, 128], done.stderr
    np.testing.assert_array_equal(Regularized.load(folder / "all" / "a").sig.p, loaded.sig.p)
    assert Regularized.load(folder / "all" / "b").sig.tested[:8].all()
    Image.fromarray(inside[:5]).save(folder / "masks" / "b.png")
    done = typed("regularize a.png b.jpg --out all --mask masks --n 2 --groups 1")
    assert done.returncode == 1 and "b.jpg: --mask: is 5 x 80 px" in done.stderr and "1 of 2" in done.stderr


def test_version():
    done = in_a_shell("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"attnbootreg {library.__version__}\n", "")


def test_an_output_folder_that_cannot_be(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    done = attnbootreg("regularize", "a.png", "--out", "a.png", "--n", "1", "--groups", "1", cwd=tmp_path)
    assert done.returncode == 2 and "give a folder" in done.stderr and "Traceback" not in done.stderr


def test_the_picture_itself_is_never_overwritten(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    done = attnbootreg("regularize", "a.png", "--out", ".", "--n", "1", "--groups", "1", cwd=tmp_path)
    assert done.returncode == 2 and "would be overwritten" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_bytes() == before


def test_odd_names(tmp_path, picture):
    names = ["m$_$.png", "ünï cödé.png", "x" * 150 + ".png"]
    for name in names:
        picture.save(tmp_path / name)
    done = attnbootreg("regularize", *names, "--out", "out", "--n", "1", "--groups", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 9


def test_random_weights_are_always_the_same(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    for out in ("one", "two"):
        options = f"--out {out} --model vit_tiny_patch16_224 --no-pretrained --n 1 --groups 1 --seed 0"
        attnbootreg("regularize", "a.png", *options.split(), cwd=tmp_path)
    one, two = (Regularized.load(tmp_path / out / "a") for out in ("one", "two"))
    np.testing.assert_array_equal(one.sig.p, two.sig.p)
    assert one.settings["model"]["weights"] == "random"


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
    done = attnbootreg("train-scenes", "--steps", "0", cwd=tmp_path)
    assert done.returncode == 2 and "--steps: " in done.stderr


def test_info_says_what_is_used():
    card = json.loads(attnbootreg("info", "--json").stdout)
    assert card["attnbootreg"] == library.__version__ and card["extra study"] == "installed"
    assert {"processor", "instruction set", "kernels", "devices", "torch", "python"} <= set(card)


def test_help_names_every_command():
    done = in_a_shell("--help")
    for command in ("demo", "regularize", "simulate", "study", "summarize", "models", "info", "train-scenes", "explore", "--version"):
        assert command in done.stdout


def test_simulate(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    done = attnbootreg("simulate", "a.png", "--noise", "diffuse", "--side", "30", "--n", "3", "--groups", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "900 pixels of noise" in done.stdout and "on_noise" in done.stdout
    assert sorted(path.name for path in (tmp_path / "simulation").iterdir()) == ["a.json", "a.npz", "a.png"]
    done = attnbootreg("simulate", "a.png", "--side", "300", cwd=tmp_path)
    assert done.returncode == 2 and "--side: a square of 300 px" in done.stderr


def test_study_and_summarize(tmp_path, picture):
    (tmp_path / "cats").mkdir()
    for i in range(3):
        picture.rotate(10 * i).save(tmp_path / "cats" / f"{i}.png")
    (tmp_path / "cats" / "bad.png").write_text("no picture")
    settings = "--n 1 --n 3 --recipe calibrated --recipe paper --noise square --noise diffuse"
    for _ in range(2):  # the second time there is nothing to do
        done = attnbootreg("study", "cats", "--out", "out", *settings.split(), cwd=tmp_path)
        assert done.returncode == 0 and "3 images done, 1 with an error; 24 rows" in done.stdout, done.stderr
    done = attnbootreg("summarize", "out", "--by", "category", "--by", "recipe", cwd=tmp_path)
    table, legend = done.stdout.split("\n\n")
    status = attnbootreg("status", "out", cwd=tmp_path)
    assert status.returncode == 0 and status.stdout.startswith("4 of 4 images done; not running"), status.stderr
    plan = attnbootreg(*f"study cats --out plan {settings} --dry-run".split(), cwd=tmp_path)
    assert plan.returncode == 0 and "4 images, 8 settings, 8 forward passes an image: 32 passes" in plan.stdout, plan.stderr
    assert not (tmp_path / "plan").exists()
    assert done.returncode == 0 and len(table.splitlines()) == 2 + 8 and "D_lfdr_error" in table and "0 is best" in legend
    for wrong, says in (
        (["study", "cats", "--out", "out", "--n", "2"], "null.n is [1, 3] there and 2 here"),
        (["study", "nowhere", "--out", "new"], "images: there are none"),
        (["study", "scenes", "--out", "new"], "limit"),
        (["study", "cats", "--out", "new", "--n", "auto"], "n='auto' takes another number for each image"),
        (["study", "cats", "--out", "new", "--p", "2"], "--p: must be a number in [0, 1]"),
        (["summarize", "cats"], "no study"),
        (["summarize", "out", "--by", "colour"], "no column 'colour'"),
    ):
        done = attnbootreg(*wrong, cwd=tmp_path)
        assert done.returncode == 2 and says in done.stderr
    assert not (tmp_path / "new").exists()


def test_study_of_a_score_of_ones_own_at_several_thresholds(folder):
    from attnbootreg import load_study

    done = typed("study a.png --out norms --score my_scores:token_norm --n 3 --groups 1 --p 0.1 --p 0.3")
    assert done.returncode == 0 and "1 images done, 0 with an error; 2 rows" in done.stdout, done.stderr
    rows = load_study(folder / "norms")
    assert sorted(rows["cut_p"]) == sorted(rows["cut_lfdr"]) == [0.1, 0.3] and (rows["cut_q"] == 0.1).all()
    assert (rows["score"] == "token_norm").all()
    done = typed("study a.png --out signs --score my_scores:signed --n 3 --groups 1 --p 0.2 --lfdr 0.5 --q 0.05")
    assert done.returncode == 0 and "1 images done, 0 with an error; 1 rows" in done.stdout, done.stderr
    (row,) = load_study(folder / "signs").to_dict("records")
    assert (row["cut_p"], row["cut_lfdr"], row["cut_q"]) == (0.2, 0.5, 0.05) and row["score"] == "contrast"
    done = typed("study a.png --out heads --heads each --n 2 --groups 1")
    assert done.returncode == 0 and "2 rows" in done.stdout, done.stderr


def test_json_for_other_programs(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    picture.rotate(90).save(tmp_path / "b.png")
    done = attnbootreg("regularize", "a.png", "b.png", "--out", "out", "--n", "2", "--groups", "1", "--json", cwd=tmp_path)
    cards = [json.loads(line) for line in done.stdout.splitlines()]
    assert [card["image"] for card in cards] == ["a.png", "b.png"] and all(
        (tmp_path / file).exists() for card in cards for file in card["files"]
    )
    assert cards[0]["maps"]["p"]["patches"] == int((Regularized.load(tmp_path / "out" / "a").maps["p"] > 0).sum())
    card = json.loads(attnbootreg("simulate", "a.png", "--n", "2", "--groups", "1", "--json", cwd=tmp_path).stdout)
    assert 0 <= card["shares"]["on_noise"]["scores"] <= 1
    card = json.loads(attnbootreg("study", "*.png", "--out", "study", "--n", "1", "--groups", "1", "--json", cwd=tmp_path).stdout)
    assert card["images"] == 2 and card["errors"] == 0 and card["images_a_second"] > 0
    (row,) = json.loads(attnbootreg("summarize", "study", "--json", cwd=tmp_path).stdout)
    assert row["images"] == 2 and "D_p" in row
    assert json.loads(attnbootreg("models", "scenes", "--json").stdout) == ["scenes"]


def test_quiet_says_nothing_but_errors(tmp_path, picture, capfd):
    picture.save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("no picture")
    for start, command in (
        (attnbootreg, "regularize a.png --out out --n 1 --groups 1"),
        (attnbootreg, "simulate a.png --n 1 --groups 1"),
        (attnbootreg, "demo"),
        (in_a_shell, "study a.png --out study --n 1 --groups 1"),  # imports more than the others: no import says anything either
    ):
        done = start(*command.split(), "--quiet", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), command
        assert capfd.readouterr() == ("", ""), command  # nor past Python's streams
    done = in_a_shell("regularize", "bad.png", "--out", "out", "--quiet", cwd=tmp_path)
    assert done.returncode == 1 and "bad.png" in done.stderr and not done.stdout


def test_completion_for_the_shell(monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # CI may run without a shell to be detected
    done = in_a_shell("--show-completion", "bash")
    assert done.returncode == 0 and "_attnbootreg_completion" in done.stdout


def test_pictures_of_others_are_never_overwritten(tmp_path, picture):
    picture.save(tmp_path / "a.jpg")
    picture.rotate(90).save(tmp_path / "a.png")
    kept = (tmp_path / "a.png").read_bytes()
    for command in (
        "regularize a.jpg --out . --n 1 --groups 1",
        "simulate a.jpg --out . --n 1 --groups 1",
        "regularize a.jpg a.png --out . --n 1 --groups 1",
    ):
        done = attnbootreg(*command.split(), cwd=tmp_path)
        assert done.returncode == 2 and "a.png" in done.stderr and (tmp_path / "a.png").read_bytes() == kept, command
    for _ in range(2):  # results of ours are written anew
        assert attnbootreg("regularize", "a.jpg", "--out", "out", "--n", "1", "--groups", "1", cwd=tmp_path).returncode == 0
    done = attnbootreg("regularize", "a.jpg", "--out", "a.png", "--n", "1", "--groups", "1", cwd=tmp_path)
    assert done.returncode == 2 and "is a file; give a folder" in done.stderr


def test_a_study_that_failed_says_so(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no picture")
    done = attnbootreg("study", "bad", "--out", "out", "--n", "1", "--groups", "1", cwd=tmp_path)
    assert done.returncode == 1 and "not a picture" in done.stderr and "0 images done, 1 with an error" in done.stdout


def test_predict(folder):
    import pandas as pd

    from attnbootreg import load_vit, two_stage

    options = "--n 1 --groups 4 --seed 3 --device cpu"
    done = typed(f"predict a.png nowhere.png --out out --figures --rule p --dilate 1 {options}")
    assert done.returncode == 1 and "nowhere.png" in done.stderr and "1 of 2" in done.stderr
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.png", "predictions.csv"]
    from attnbootreg import Null

    two = two_stage("a.png", load_vit(device="cpu"), "p", 1, null=Null(n=1, groups=4), seed=3, progress=False)
    row = pd.read_csv(folder / "out" / "predictions.csv").iloc[0]
    assert (row["class_whole"], row["class_masked"]) == tuple(map(two.name_of, two.top)) and row["share"] == two.share
    assert bool(row["agrees"]) == two.agrees and row["change"] == pytest.approx(two.change, abs=1e-5)
    done = typed(f"predict a.png --q 0 {options}")
    assert done.returncode == 1 and "--rule: q ≤ 0 keeps no patch of a.png" in done.stderr
    card = json.loads(typed(f"predict a.png --q 0 --empty whole --json {options}").stdout)
    assert card[0]["fell_back"] and card[0]["share"] == 1
    for wrong, message in (
        ("--dilate -1", "--dilate:"),
        ("--figures", "--figures: need a folder"),
        ("--out . --figures", "would be overwritten"),
    ):
        done = typed(f"predict a.png {wrong} {options}")
        assert done.returncode == 2 and message in done.stderr


def test_two_stages_are_trained_and_measured(tmp_path):
    train = ["train-faithful", "trap", "--out", "new/two.safetensors", "--steps", "2", "--batch", "4", "--parts", "2", "--device", "cpu"]
    done = attnbootreg(*train, cwd=tmp_path)
    assert done.returncode == 0 and "evaluate-faithful new/two.safetensors trap" in done.stdout
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["two.safetensors"]  # the state is gone
    measure = ["evaluate-faithful", "new/two.safetensors", "trap", "--scenes", "12", "--device", "cpu"]
    report = json.loads(attnbootreg(*measure, "--json", cwd=tmp_path).stdout)
    assert report["n"] == 12 and 0 <= report["worst_group"] <= report["accuracy"] <= 1
    assert "mask_iou" in attnbootreg(*measure, cwd=tmp_path).stdout


def test_two_stages_on_a_folder(tmp_path):
    for split in ("train", "test"):
        for i, name in enumerate(("cat", "dog")):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            Image.new("RGB", (70, 66), (200 * i, 90, 0)).save(tmp_path / "pets" / split / name / f"{split}.png")
    train = ["train-faithful", "pets", "--steps", "1", "--batch", "2", "--shared", "--device", "cpu"]
    done = attnbootreg(*train, cwd=tmp_path)
    assert done.returncode == 2 and "form: say which data set" in done.stderr
    assert attnbootreg(*train, "--form", "metashift", cwd=tmp_path).returncode == 0
    done = attnbootreg("evaluate-faithful", "faithful.safetensors", "pets", "--form", "metashift", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["n"] == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("train-faithful", "trap", "--out", "two.pt"), "not the name of a .safetensors file"),
        (("train-faithful", "trap", "--parts", "0"), "parts"),
        (("train-faithful", "trap", "--model", "eva02_tiny_patch14_224", "--no-pretrained"), "class token"),
        (("train-faithful", "nowhere", "--form", "cub"), "does not exist"),
        (("evaluate-faithful", "nothing", "trap"), "there is no file"),
    ],
)
def test_two_stages_that_cannot_be(tmp_path, arguments, message):
    done = attnbootreg(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr.replace("\n", " "), done.stderr
    assert not list(tmp_path.iterdir())
