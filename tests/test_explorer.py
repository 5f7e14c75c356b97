"The explorer without a browser: its logic, its threads, and the notebook that the command line writes."

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from typer.testing import CliRunner

from attnbootreg import load_vit, make_scenes, regularize
from attnbootreg import explorer as logic
from attnbootreg.cli import app
from attnbootreg.explorer import Lab, Recent, Run, View, code
from attnbootreg.widget import Explorer, Picture

MINUTE = 60


@pytest.fixture
def photo(tmp_path, picture):
    picture.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def first_view(lab, **changes):
    own = {name: changes.pop(name) for name in list(changes) if name in View.__dataclass_fields__}
    return View(Run(next(iter(lab.images)), next(iter(lab.models)), **changes), **own)


def done(vit="scenes", images=None, **how):
    "An explorer that has finished its first run."
    explorer = Explorer(vit, images, **how)
    explorer.wait(MINUTE)
    return explorer


# ---- logic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        dict(n_boot=5),
        dict(n_boot=9, bootstrap="patch", recipe="paper", alpha=0.1, z_min=0.5),
        dict(n_boot=4, recipe="released", lam=0.2, seed=3),
        dict(n_boot=6, width=2.0, layer=2, level=0.3),
    ],
)
@pytest.mark.filterwarnings("ignore:z. the Poisson fit failed")
def test_what_is_shown_is_what_regularize_gives(vit, photo, how):
    lab = Lab(vit, photo)
    ours, theirs = lab.result(first_view(lab, **how)), regularize(photo, vit, **{"seed": 0, **how}, batch_size=4)
    assert ours.settings == theirs.settings
    for name in ("image", "scores", "null", "beside", "found", "z", "z0", "p", "q", "lfdr", "pi0"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    for name, map in theirs.maps.items():
        np.testing.assert_array_equal(ours.maps[name], map, err_msg=name)


def small_vit(**how):
    torch.manual_seed(0)
    return load_vit(
        VisionTransformer(**{"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 2, **how})
    )


MODELS = {
    "scenes": lambda: load_vit(device="cpu"),
    "not square": lambda: load_vit("vit_tiny_patch16_224", pretrained=False, img_size=(32, 64), device="cpu"),
    "one patch": lambda: small_vit(img_size=8),
    "bfloat16": lambda: load_vit("vit_tiny_patch16_224", pretrained=False, img_size=64, device="cpu", dtype="bfloat16"),
    "module": small_vit,
    "gpu": lambda: load_vit("vit_tiny_patch16_224", pretrained=False, img_size=64, device="cuda", dtype="bfloat16"),
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("model", [pytest.param(name, marks=needs_gpu if name == "gpu" else ()) for name in MODELS])
@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.filterwarnings("ignore:p. .* scores are too few")
def test_the_code_repeats_the_view(model, crop, photo):
    lab = Lab(MODELS[model](), {"photo": photo, "in memory": Image.open(photo)}, crop=crop)
    plain = first_view(lab, n_boot=6, alpha=0.2, level=0.15, lam=0.4, z_min=0.1, layer=0)
    side = 3
    for view in (
        plain,
        replace(plain, head=1),
        replace(plain, run=replace(plain.run, square=(2, 1, side), image="in memory", bootstrap="pixel", seed=5)),
        replace(plain, head=0, run=replace(plain.run, square=(0, 0, side))),
    ):
        names = {"explorer": lab}
        exec(code(lab, view), names)
        theirs = names["res"].maps if view.head is None else names["maps"]
        for name, map in lab.maps(view).items():
            np.testing.assert_array_equal(map, theirs[name], err_msg=name)


@pytest.mark.filterwarnings("ignore:p. .* scores are too few")
def test_the_code_names_a_checkpoint(tmp_path, photo):
    model = load_vit("vit_tiny_patch16_224", pretrained=False, img_size=32, device="cpu")
    torch.save(model.model.state_dict(), tmp_path / "weights.pth")
    lab = Lab(load_vit("vit_tiny_patch16_224", tmp_path / "weights.pth", img_size=32, device="cpu"), photo)
    names = {}
    exec(code(lab, first_view(lab, n_boot=4)), names)
    np.testing.assert_array_equal(names["res"].maps["p"], lab.maps(first_view(lab, n_boot=4))["p"])


def test_noise_is_measured_as_in_a_simulation(vit, scene):
    from attnbootreg import coverage, inject_noise, load_image, roi_metrics, roi_percentile, sensitivity, specificity, square_mask
    from attnbootreg.loading import to_pixels

    lab = Lab(vit, [scene])
    view = first_view(lab, n_boot=5, square=(4, 90, 30))
    mask = square_mask(vit.img_size, 30, at=[(4, 90)])
    result, inside = (
        regularize(to_pixels(inject_noise(load_image(scene, vit), mask, 0), vit), vit, n_boot=5, seed=0, batch_size=4),
        coverage(mask, vit.grid),
    )
    numbers = lab.numbers(view)
    assert numbers["attention"]["D"] == 1 and numbers["attention"]["noise_left"] == 1
    for name, map in result.maps.items():
        assert numbers[name]["sensitivity"] == sensitivity(map, result.scores, inside)
        assert numbers[name]["specificity"] == pytest.approx(specificity(map, result.scores, inside))
        assert numbers[name]["noise_left"] == roi_metrics(map, result.scores, inside)["nonzero"] / 100
        assert numbers[name]["D"] == roi_percentile(map, result.scores, inside) / roi_percentile(result.scores, result.scores, inside)


def test_a_square_that_covers_the_picture_has_no_metrics(photo):
    lab = Lab(small_vit(), photo)
    assert "D" not in lab.numbers(first_view(lab, n_boot=3, square=(0, 0, 32)))["p"]


def test_results_are_remembered_and_forgotten(photo, monkeypatch):
    calls, real = [], logic.attention_scores
    monkeypatch.setattr(logic, "attention_scores", lambda *args: calls.append(1) or real(*args))
    lab = Lab(small_vit(), photo, cache_mb=0.1)
    view = first_view(lab, n_boot=4)
    for head in (None, 0, 2):
        lab.maps(replace(view, head=head))
    assert len(calls) == 2  # the image, and one batch of null images, for all heads
    for seed in range(1, 60):
        lab.score(replace(view.run, seed=seed))
    assert 1 < len(lab._scored) < 60 and not lab.known(view.run)
    assert len(Recent(0)._kept) == 0


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda: Lab(3, "a.png"), "vit: expected one, a list"),
        (lambda: Lab("scenes", 3), "images: expected one, a list"),
        (lambda: Lab([], "a.png"), "vit: there are none"),
        (lambda: Lab("scenes", []), "images: there are none"),
        (lambda: Lab([3], "a.png"), "vit: expected what load_vit gives, or a name, not int"),
        (lambda: Lab("scenes", "a.png", batch_size=0), "batch_size"),
        (lambda: Lab("scenes", "a.png").score(Run("b.png", "scenes")), "there is no 'b.png' here; choose from a.png"),
        (lambda: Lab("scenes", "a.png").score(Run("a.png", "other")), "there is no 'other' here; choose from scenes"),
        (lambda: Lab(small_vit(), make_scenes(1).images).scores(View(Run("image 1", "VisionTransformer", n_boot=1), head=3)), "use 0 to 2"),
        (lambda: Run("a", "b", n_boot=0), "n_boot"),
        (lambda: Run("a", "b", bootstrap="pixel", width=2.0), "width: 2.0 has no meaning for 'pixel'"),
        (lambda: Run("a", "b", seed=-1), "seed"),
        (lambda: View(Run("a", "b"), level=2), "level"),
    ],
)
def test_wrong_arguments(wrong, says):
    with pytest.raises((ValueError, TypeError), match=says):
        wrong()


def test_names(photo, picture):
    lab = Lab([small_vit(), small_vit()], [photo, picture, str(photo)])
    assert list(lab.images) == ["photo.png", "image 2", "photo.png (2)"]
    assert list(lab.models) == ["VisionTransformer", "VisionTransformer (2)"]
    assert lab.add("photo.png", photo.read_bytes()) == "photo.png (3)"
    assert list(Lab("scenes", make_scenes(2).images).images) == ["image 1", "image 2"]
    assert list(Lab("scenes", {"a": photo}).images) == ["a"] and list(Lab("scenes", photo).images) == ["photo.png"]


# ---- the widget ----------------------------------------------------------------------------------------------------


def test_a_slider_needs_no_model(vit, scene, monkeypatch):
    explorer = done(vit, scene, n_boot=4)
    monkeypatch.setattr(logic, "attention_scores", lambda *args: pytest.fail("the model was asked"))
    before, frame = explorer._picture.maps, explorer._picture.frame
    explorer._controls["alpha"].value = 0.05
    explorer._controls["z_min"].value = 1.5
    assert (explorer.view.alpha, explorer.view.z_min, explorer._picture.frame) == (0.05, 1.5, frame + 2)
    assert explorer._picture.maps != before and "alpha=0.05" in explorer._picture.code
    maps = np.frombuffer(explorer._picture.maps, np.float32).reshape(6, *vit.grid)
    np.testing.assert_array_equal(maps[1], explorer.maps["p"].astype(np.float32))
    explorer._controls["head"].value = 1
    explorer._controls["recipe"].value = "paper"
    assert (explorer.view.head, explorer.view.recipe) == (1, "paper")


def test_a_click_and_its_undoing(vit, scene):
    explorer = done(vit, scene, n_boot=4)
    clean = explorer._picture.pixels
    explorer._message({"kind": "noise", "y": 0.01, "x": 0.99})
    explorer.wait(MINUTE)
    assert explorer.view.run.square == (0, 102, 26) and explorer._picture.square == [0, 102, 26]
    assert explorer._picture.pixels != clean and {"D", "sensitivity", "specificity"} <= set(explorer._picture.rows["p"])
    explorer._side.value = 40
    explorer.wait(MINUTE)
    assert explorer.view.run.square == (0, 88, 40)
    explorer._remove.click()
    assert not explorer.running and explorer._picture.pixels == clean and explorer._remove.disabled


class Gate:
    "A model that waits in the middle of a run until it is let on."

    def __init__(self, monkeypatch):
        self.reached, self.open, self.real = threading.Event(), threading.Event(), logic.bootstrap_images
        monkeypatch.setattr(logic, "bootstrap_images", self)

    def __call__(self, *args):
        self.reached.set()
        assert self.open.wait(MINUTE)
        return self.real(*args)


def test_cancel_keeps_what_is_shown(vit, scene, monkeypatch):
    explorer = done(vit, scene, n_boot=4)
    before = explorer._picture.frame
    gate = Gate(monkeypatch)
    explorer._controls["n_boot"].value = 400
    assert gate.reached.wait(MINUTE) and explorer.running and not explorer._cancel.disabled
    explorer._controls["alpha"].value = 0.01  # a slider goes on meanwhile, on what is shown
    assert explorer.view.alpha == 0.01 and explorer.view.run.n_boot == 4 and explorer._controls["n_boot"].value == 400
    explorer._cancel.click()
    gate.open.set()
    explorer.wait(MINUTE)
    assert explorer.status.startswith("Cancelled.") and explorer._cancel.disabled
    assert explorer.view.run.n_boot == explorer._controls["n_boot"].value == 4 and explorer._picture.frame == before + 1
    assert not explorer._lab.known(replace(explorer.view.run, n_boot=400))


def test_thresholds_moved_during_a_run_hold_after_it(vit, scene, monkeypatch):
    explorer = done(vit, scene, n_boot=4)
    gate = Gate(monkeypatch)
    explorer.show(n_boot=8)
    assert gate.reached.wait(MINUTE)
    explorer.show(alpha=0.07, head=1)
    gate.open.set()
    explorer.wait(MINUTE)
    assert (explorer.view.run.n_boot, explorer.view.alpha, explorer.view.head) == (8, 0.07, 1)


def test_a_second_run_takes_the_place_of_the_first(vit, scene, monkeypatch):
    explorer = done(vit, scene, n_boot=4)
    gate = Gate(monkeypatch)
    explorer.show(n_boot=400)
    assert gate.reached.wait(MINUTE)
    first = explorer._job
    explorer.show(n_boot=6)
    explorer.show(n_boot=7)
    gate.open.set()
    explorer.wait(MINUTE)
    assert first.stopped() and not first.is_alive()
    assert explorer.view.run.n_boot == 7 and explorer.status == "" and len(explorer._lab._scored) == 2


def test_a_remembered_result_stops_a_run(vit, scene, monkeypatch):
    explorer = done(vit, scene, n_boot=4)
    gate = Gate(monkeypatch)
    explorer.show(n_boot=400)
    assert gate.reached.wait(MINUTE)
    job = explorer._job
    explorer.show(n_boot=4)
    gate.open.set()
    job.join(MINUTE)
    assert not explorer.running and explorer.view.run.n_boot == 4 and explorer._cancel.disabled


def test_errors_are_words_and_the_state_stays(vit, scene, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    explorer = done([vit, "no_such_vit"], {"good": scene, "bad": tmp_path / "bad.png", "gone": tmp_path / "gone.png"}, n_boot=4)
    frame = explorer._picture.frame
    for name, value, says in (
        ("image", "bad", "is not a picture"),
        ("image", "gone", "there is no file"),
        ("model", "no_such_vit", "there is no 'no_such_vit'"),
    ):
        explorer._controls[name].value = value
        explorer.wait(MINUTE)
        assert says in explorer._picture.error and "\n" not in explorer._picture.error
        assert explorer._controls["image"].value == "good" and explorer._controls["model"].value == "scenes"
    explorer._message({"kind": "noise", "y": "nowhere", "x": 0})
    assert "nowhere" in explorer._picture.error
    explorer._uploaded([{"name": "../a.txt", "content": memoryview(b"no picture")}])
    assert explorer._picture.error == "image: 'a.txt' is not a picture that Pillow can read (or is empty)"
    assert explorer._picture.frame == frame
    explorer.show(alpha=0.2)
    assert explorer._picture.error == "" and explorer._picture.frame == frame + 1


def test_nothing_to_show(tmp_path):
    explorer = done("scenes", tmp_path / "gone.png")
    with pytest.raises(ValueError, match="there is nothing to show yet; image: there is no file"):
        explorer.view


def test_upload(vit, scene, photo):
    explorer = done(vit, {"scene": scene}, n_boot=4)
    explorer._uploaded([{"name": "photo.png", "content": memoryview(photo.read_bytes())}])
    explorer.wait(MINUTE)
    assert explorer.view.run.image == "photo.png" and explorer._controls["image"].options == ("scene", "photo.png")
    np.testing.assert_array_equal(explorer.maps["p"], regularize(photo, vit, n_boot=4, seed=0).maps["p"])


def test_another_model_has_other_layers_heads_and_squares(vit, scene):
    explorer = done({"scenes": vit, "small": small_vit()}, {"scene": scene}, n_boot=4)
    explorer.show(layer=2, head=1, square=(10, 10, 26))
    explorer.wait(MINUTE)
    explorer._controls["model"].value = "small"
    explorer.wait(MINUTE)
    run = explorer.view.run
    assert (run.layer, run.square, explorer.view.head) == (-1, None, None)
    assert (len(explorer._controls["layer"].options), len(explorer._controls["head"].options), explorer._side.max) == (2, 4, 32)


def test_a_picture_of_one_patch(scene):
    explorer = done(small_vit(img_size=8), scene)
    assert explorer._picture.grid == [1, 1] and "too few" in explorer._picture.summary
    explorer._controls["recipe"].value = "paper"
    assert "no density can be fitted" in explorer._picture.error and explorer._controls["recipe"].value == "calibrated"


def test_closing_stops_the_run(vit, scene, monkeypatch):
    explorer = done(vit, scene, n_boot=4)
    gate = Gate(monkeypatch)
    explorer.show(n_boot=400)
    assert gate.reached.wait(MINUTE)
    explorer.close()
    gate.open.set()
    explorer.wait(MINUTE)
    assert explorer.status.startswith("Cancelled.")


def test_files_go_to_the_browser(vit, scene, monkeypatch):
    sent = []
    monkeypatch.setattr(Picture, "send", lambda self, content, buffers=None: sent.append((content, buffers)))
    explorer = done(vit, {"my scene": scene}, n_boot=4)
    for what in ("png", "npz"):
        explorer._message({"kind": "export", "what": what})
    assert [content["name"] for content, _ in sent] == ["my scene.png", "my scene.npz"]
    assert sent[0][1][0].startswith(b"\x89PNG") and sent[1][1][0].startswith(b"PK")


def test_numbers_that_cross_to_the_browser_are_plain(vit, scene):
    explorer = done(vit, scene, n_boot=4)
    explorer.show(square=(0, 0, 26))
    explorer.wait(MINUTE)
    picture = explorer._picture
    json.dumps([picture.rows, picture.histograms, picture.titles, picture.square], allow_nan=False)
    h, w = picture.grid
    assert len(picture.stats) == 5 * h * w * 4 and len(picture.maps) == 6 * h * w * 4 and len(picture.pixels) == 3 * np.prod(picture.size)


def test_the_page_ships_with_the_package(root):
    listed = (root / "setup.py").read_text()
    assert '"explorer.js"' in listed and '"explorer.css"' in listed


# ---- the command line ----------------------------------------------------------------------------------------------


def explore(*arguments):
    return CliRunner().invoke(app, ["explore", *map(str, arguments)])


def test_explore_writes_a_notebook_that_runs(tmp_path, picture, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some where").mkdir()
    picture.save(tmp_path / "some where" / "it's.png")
    outcome = explore("some where/it's.png", "--out", "play.ipynb", "--img-size", "64x96", "--no-start")
    assert outcome.exit_code == 0, outcome.output
    notebook = nbformat.read("play.ipynb", 4)
    nbformat.validate(notebook)
    names = {}
    exec(notebook.cells[0].source, names)
    explorer = names["explorer"]
    explorer.wait(MINUTE)
    assert explorer.maps["p"].shape == (8, 12) and list(explorer.images.values()) == ["some where/it's.png"]


def test_explore_says_what_is_wrong(tmp_path, picture, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.ipynb").write_text("mine")
    for arguments, says in (
        (["--out", "there.ipynb"], "is there already"),
        (["--out", "notebook.py"], "does not end in .ipynb"),
        (["gone.png"], "there is no file 'gone.png'"),
        (["--img-size", "large"], "img-size"),
    ):
        outcome = explore(*arguments, "--no-start")
        assert outcome.exit_code == 2 and says in outcome.stderr and isinstance(outcome.exception, SystemExit)
    assert [path.name for path in tmp_path.iterdir()] == ["there.ipynb"] and (tmp_path / "there.ipynb").read_text() == "mine"


def test_explore_starts_jupyterlab(tmp_path, monkeypatch):
    from attnbootreg import cli

    monkeypatch.chdir(tmp_path)
    started = []

    class Server:
        "Is interrupted once, and then ends."

        def __init__(self, command):
            started.append(command[1:])
            self.ends = iter([KeyboardInterrupt, 3])

        def wait(self):
            if (end := next(self.ends)) is KeyboardInterrupt:
                raise end
            return end

    monkeypatch.setattr(cli.subprocess, "Popen", Server)
    assert explore("--no-browser").exit_code == 3
    assert started == [["-m", "jupyterlab", "explorer.ipynb", "--no-browser"]]
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    outcome = explore("--out", "other.ipynb")
    assert outcome.exit_code == 2 and "pip install 'jupyterlab>=4'" in outcome.stderr and not (tmp_path / "other.ipynb").exists()
