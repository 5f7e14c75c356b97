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

from attnbootreg import Attention, Cuts, Masked, Null, Recipe, Score, bootstrap, load_vit, make_scenes, regularize
from attnbootreg import explorer as logic
from attnbootreg.cli import app
from attnbootreg.controls import Canvas
from attnbootreg.explorer import Lab, Recent, Run, View, changed, code, noise_mask, numbers
from attnbootreg.widget import Explorer

MINUTE = 60


@pytest.fixture
def photo(tmp_path, picture):
    picture.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def first_view(lab, **changes):
    "Of whole null images, unless it is said what they are."
    whole = {} if {"null", "groups"} & changes.keys() else {"groups": 1}
    return changed(View(Run(next(iter(lab.images)), next(iter(lab.models)))), **whole, **changes)


def done(vit="scenes", images=None, **how):
    "An explorer that has finished its first run."
    explorer = Explorer(vit, images, **how)
    explorer.wait(MINUTE)
    return explorer


def canvas_of(explorer):
    return explorer._screen.canvas


def controls_of(explorer):
    return explorer._screen.controls


def contrast(vit, x):
    "A score of a user: how much each patch differs from its image, in brightness and in red; signed, and zero in the left column."
    light = torch.nn.functional.avg_pool2d(torch.stack([x.mean(1), x[:, 0]], 1), vit.patch_size)
    return (light - light.mean((2, 3), keepdim=True)) * (torch.arange(light.shape[-1], device=x.device) > 0)


def brightness(vit, x):
    return contrast(vit, x)[:, 0]


def lightness(vit, x):
    return contrast(vit, x)[:, 0].abs()


def dim(x, generator):
    "Null images of a user: half of the noise."
    return x.mean() + 0.5 * torch.randn(x.shape, generator=generator, device=x.device)


def assert_same(ours, theirs):
    assert ours.settings == theirs.settings
    for name in ("image", "scores"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    np.testing.assert_array_equal(ours.null.values, theirs.null.values)
    for name in ("z", "z0", "p", "q", "lfdr", "pi0", "recipe"):
        np.testing.assert_array_equal(getattr(ours.sig, name), getattr(theirs.sig, name), err_msg=name)
    assert list(ours.maps) == list(theirs.maps)
    for name, map in theirs.maps.items():
        np.testing.assert_array_equal(ours.maps[name], map, err_msg=name)


# ---- logic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        dict(null=Null(n=2)),
        dict(null=Null("patch", n=9, groups=1), recipe="paper", cuts=Cuts(p=0.1, z=0.5)),
        dict(null=Null(n=4, groups=1), recipe="released", cuts=Cuts(lfdr=0.2), seed=3),
        dict(null=Null(n=6, width=2.0, groups=1), score=Attention(layer=2), cuts=Cuts(q=0.3)),
        dict(null=Null(n=2), score=Attention(layer=2, heads=1)),
        dict(null=Null(n=20, groups=1), score=Attention(heads="max", query="mean"), recipe=Recipe(standardize="position")),
        dict(null=Null(n=2, keep=np.eye(16) > 0), score=Score(brightness, signed=True)),
        dict(null=Null(dim, n=3, groups=1), score=lightness, recipe=Recipe(alternative="two-sided")),
    ],
)
@pytest.mark.filterwarnings("ignore:z. the Poisson fit failed")
def test_what_is_shown_is_what_regularize_gives(vit, photo, how):
    lab = Lab(vit, photo)
    assert_same(lab.result(first_view(lab, **how)), regularize(photo, vit, **{"seed": 0, **how}, batch_size=4))


def test_a_chosen_map_is_the_one_of_regularize(vit, photo):
    lab, score = Lab(vit, photo), Score(contrast, signed=True, maps=("brightness", "red"))
    view = first_view(lab, score=score, n=5, p=0.2)
    theirs = regularize(photo, vit, score, Null(n=5, groups=1), cuts=Cuts(p=0.2), seed=0, batch_size=4)
    for j in range(2):
        assert_same(lab.result(replace(view, map=j)), theirs[j])
    assert_same(lab.result(view), theirs[0])
    each = regularize(photo, vit, Attention(layer=(1, 2), heads="each"), Null(n=5, groups=1), seed=0, batch_size=4)
    assert_same(lab.result(first_view(lab, score=Attention(layer=(1, 2), heads="each"), n=5, map=3)), each[3])


def test_a_part_of_a_picture_is_left_out(vit, scene):
    masked = Masked(scene, np.arange(128)[:, None] + np.zeros((1, 128)) >= 40)
    lab = Lab(vit, {"part": masked})
    ours, theirs = lab.result(first_view(lab, n=5)), regularize(masked, vit, null=Null(n=5, groups=1), seed=0, batch_size=4)
    assert_same(replace(ours, settings=theirs.settings), theirs)
    assert ours.sig.tested.sum() == 16 * 11


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
    plain = first_view(lab, n=6, p=0.2, q=0.15, lfdr=0.4, z=0.1, layer=0)
    side = 3
    for view in (
        plain,
        changed(plain, map=1),
        changed(plain, square=(2, 1, side), image="in memory", kind="pixel", seed=5),
        changed(plain, map=0, square=(0, 0, side)),
    ):
        assert_repeats(lab, view)


class Shown:
    "As much of an explorer as the lines of code may name."

    def __init__(self, lab, view):
        self.images, self.models, self.score, self.null = lab.images, lab.models, view.score, view.run.null


def assert_repeats(lab, view):
    "The lines run, are one call, and give the same maps."
    lines = code(lab, view)
    assert lines.count("regularize(") == 1 and all(len(line) <= 140 for line in lines.splitlines())
    names = {"explorer": Shown(lab, view)}
    exec(lines, names)
    for name, map in lab.result(view).maps.items():
        np.testing.assert_array_equal(map, names["res"].maps[name], err_msg=name)
    return lines


def test_the_code_names_scores_and_nulls(vit, photo, scene):
    lab = Lab(vit, {"photo": photo, "part": Masked(scene, np.arange(128)[:, None] + np.zeros((1, 128)) >= 40)})
    two = first_view(lab, n=4, score=Score(contrast, signed=True, maps=("brightness", "red")), map=1)
    assert "score=Score(contrast, signed=True, maps=('brightness', 'red'))" in (lines := assert_repeats(lab, two))
    assert f"from {__name__} import contrast" in lines and ")[1]\n" in lines
    own = first_view(lab, n=4, score=lambda vit, x: lightness(vit, x))
    assert "score=explorer.score," in assert_repeats(lab, own)
    assert "score=Attention(layer=2, heads=1)," in assert_repeats(lab, first_view(lab, n=4, layer=2, map=1))
    assert "null=Null(kind=dim, n=4, groups=16)," in assert_repeats(lab, first_view(lab, null=Null(dim, n=4)))
    assert "null=explorer.null," in assert_repeats(lab, first_view(lab, null=Null(n=4, keep=np.eye(16) > 0)))
    position = first_view(lab, n=20, groups=1, recipe=Recipe(standardize="position"))
    assert "recipe=Recipe(standardize='position')," in assert_repeats(lab, position)
    for square in (None, (60, 2, 20)):
        assert_repeats(lab, changed(position, image="part", square=square))


@pytest.mark.filterwarnings("ignore:p. .* scores are too few")
def test_the_code_names_a_checkpoint(tmp_path, photo):
    model = load_vit("vit_tiny_patch16_224", pretrained=False, img_size=32, device="cpu")
    torch.save(model.model.state_dict(), tmp_path / "weights.pth")
    lab = Lab(load_vit("vit_tiny_patch16_224", tmp_path / "weights.pth", img_size=32, device="cpu"), photo)
    names = {}
    exec(code(lab, first_view(lab, n=4)), names)
    np.testing.assert_array_equal(names["res"].maps["p"], lab.result(first_view(lab, n=4)).maps["p"])


def test_noise_is_measured_as_in_a_simulation(vit, scene):
    from attnbootreg import coverage, inject_noise, load_image, roi_metrics, roi_percentile, sensitivity, specificity, square_mask
    from attnbootreg.images import to_pixels

    lab = Lab(vit, [scene])
    view = first_view(lab, n=5, square=(4, 90, 30))
    mask = square_mask(vit.img_size, 30, at=[(4, 90)])
    result, inside = (
        regularize(to_pixels(inject_noise(load_image(scene, vit), mask, 0), vit), vit, null=Null(n=5, groups=1), seed=0, batch_size=4),
        coverage(mask, vit.grid),
    )
    rows = numbers(lab.result(view), coverage(noise_mask(vit, view.run.square), vit.grid))
    assert rows["scores"]["D"] == 1 and rows["scores"]["noise_left"] == 1
    for name, map in result.maps.items():
        assert rows[name]["sensitivity"] == sensitivity(map, result.scores, inside)
        assert rows[name]["specificity"] == pytest.approx(specificity(map, result.scores, inside))
        assert rows[name]["noise_left"] == roi_metrics(map, result.scores, inside)["nonzero"] / 100
        assert rows[name]["D"] == roi_percentile(map, result.scores, inside) / roi_percentile(result.scores, result.scores, inside)


def test_a_square_that_covers_the_picture_has_no_metrics(photo):
    lab = Lab(small_vit(), photo)
    assert "D" not in numbers(lab.result(first_view(lab, n=3, square=(0, 0, 32))), np.ones((4, 4)))["p"]


def test_noise_without_scores_has_nothing_to_divide_by(vit, scene):
    lab = Lab(vit, scene)
    view = first_view(lab, score=Score(brightness, signed=True), n=3, square=(20, 0, 8))
    rows = numbers(lab.result(view), (np.arange(16) == 0) * np.ones((16, 1)))
    assert (rows["p"]["sensitivity"], rows["p"]["D"], rows["p"]["noise_left"]) == (None, None, 0)


def watch(monkeypatch, score_maps):
    "Let each call of the model go through a function of ours: those of the observed image, and those of null images."
    monkeypatch.setattr(logic, "score_maps", score_maps)
    monkeypatch.setattr(bootstrap, "score_maps", score_maps)


def test_results_are_remembered_and_forgotten(photo, monkeypatch):
    calls, real = [], logic.score_maps
    watch(monkeypatch, lambda *args: calls.append(1) or real(*args))
    lab = Lab(small_vit(), photo, cache_mb=0.1)
    view = first_view(lab, n=4, groups=1)
    for head in (None, 0, 2):
        lab.result(replace(view, map=head))
    assert len(calls) == 2  # the image, and one batch of null images, for all heads
    for seed in range(1, 60):
        lab.score(replace(view.run, seed=seed))
    assert 1 < len(lab._scored) < 60 and not lab.known(view.run)
    assert len(Recent(0)._kept) == 0


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda file: Lab(3, file), "vit: expected one, a list"),
        (lambda file: Lab("scenes", 3), "images: expected one, a list"),
        (lambda file: Lab([], file), "vit: there are none"),
        (lambda file: Lab("scenes", []), "images: there are none"),
        (lambda file: Lab([3], file), "vit: expected what load_vit gives, or a name, not int"),
        (lambda file: Lab("scenes", [file, "gone.png"]), "images: there is no file 'gone.png'"),
        (lambda file: Lab("scenes", file.parent), "is a directory; give the pictures in it one by one"),
        (lambda file: Lab("scenes", file, batch_size=0), "batch_size"),
        (lambda file: Lab("scenes", file, crop="yes"), "crop: must be True or False"),
        (lambda file: Lab("scenes", file, cache_mb=-1), "cache_mb"),
        (lambda file: Lab("scenes", file).score(Run("b.png", "scenes")), "there is no 'b.png' here; choose from photo.png"),
        (lambda file: Lab("scenes", file).score(Run("photo.png", "other")), "there is no 'other' here; choose from scenes"),
        (lambda file: Lab("scenes", file).score(Run("photo.png", "scenes", Attention(layer=9))), "layer: 9 is not a block of scenes"),
        (lambda file: Lab(small_vit(), make_scenes(1).images).result(View(Run("image 1", "VisionTransformer", null=1), 3)), "use 0 to 2"),
        (lambda file: Run("a", "b", null=0), "n: must be a whole number of at least 1"),
        (lambda file: Run("a", "b", null=Null(n="auto")), "give a number of null images"),
        (lambda file: Run("a", "b", null=Null("pixel", width=2.0)), "width: 2.0 has no meaning for 'pixel'"),
        (lambda file: Run("a", "b", seed=-1), "seed"),
        (lambda file: Run("a", "b", score="attention"), "score: expected Attention"),
        (lambda file: Run("a", "b", square=(1, 2)), "square: expected top, left and side"),
        (lambda file: View(Run("a", "b"), cuts=2), "cuts: expected Cuts"),
        (lambda file: View(Run("a", "b"), recipe="other"), "recipe"),
        (lambda file: changed(View(Run("a", "b")), q=2), "q: must be a number in"),
        (lambda file: changed(View(Run("a", "b", score=brightness)), layer=2), "layer: nothing here is called so"),
    ],
)
def test_wrong_arguments(wrong, says, photo):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=says):
        wrong(photo)


def test_names(photo, picture):
    lab = Lab([small_vit(), small_vit()], [photo, picture, str(photo)])
    assert list(lab.images) == ["photo.png", "image 2", "photo.png (2)"]
    assert list(lab.models) == ["VisionTransformer", "VisionTransformer (2)"]
    assert lab.add("photo.png", photo.read_bytes()) == "photo.png (3)"
    assert list(Lab("scenes", make_scenes(2).images).images) == ["image 1", "image 2"]
    assert list(Lab("scenes", {"a": photo}).images) == ["a"] and list(Lab("scenes", photo).images) == ["photo.png"]


# ---- the widget ----------------------------------------------------------------------------------------------------


def test_a_slider_needs_no_model(vit, scene, monkeypatch):
    explorer = done(vit, scene, null=4)
    watch(monkeypatch, lambda *args: pytest.fail("the model was asked"))
    canvas, controls = canvas_of(explorer), controls_of(explorer)
    before, frame = canvas.maps, canvas.frame
    controls["p"].value = 0.05
    controls["z"].value = 1.5
    assert (explorer.view.cuts, canvas.frame) == (Cuts(p=0.05, z=1.5), frame + 2)
    assert canvas.maps != before and "p=0.05" in canvas.code
    maps = np.frombuffer(canvas.maps, np.float32).reshape(6, *vit.grid)
    np.testing.assert_array_equal(maps[1], explorer.maps["p"].astype(np.float32))
    controls["map"].value = 1
    controls["recipe"].value = "paper"
    assert (explorer.view.map, explorer.view.recipe) == (1, "paper")
    assert "score=Attention(heads=1)" in explorer.code and canvas.titles["scores"] == "scores: head 1"
    controls["map"].value = -1
    assert explorer.view.map is None and canvas.titles["scores"] == "scores"


def test_any_score_is_explored(vit, scene):
    explorer = done(vit, scene, score=Score(contrast, signed=True, maps=("brightness", "red")), null=4)
    controls, canvas = controls_of(explorer), canvas_of(explorer)
    assert controls["map"].options == (("brightness", 0), ("red", 1)) and not controls["map"].disabled
    assert controls["layer"].disabled and controls["map"].description == "map" and controls["z"].description == "|z| ≥"
    assert (np.frombuffer(canvas.maps, np.float32) < 0).any() and canvas.titles["z"] == "|z| ≥ 0"
    controls["map"].value = 1
    controls["z"].value = 2
    assert not explorer.running and explorer.view.map == 1 and canvas.titles["scores"] == "scores: red"
    assert canvas.histograms[0]["marks"] == [-2, 2] and canvas.histograms[0]["mark_text"] == "|z| ≥ 2"
    theirs = regularize(scene, vit, explorer.score, explorer.null, cuts=Cuts(z=2), seed=0, batch_size=4)[1]
    np.testing.assert_array_equal(explorer.maps["z"], theirs.maps["z"])
    explorer.show(score=Attention(), map=None)
    explorer.wait(MINUTE)
    assert not controls["layer"].disabled and controls["map"].description == "head" and controls["z"].description == "z ≥"


def test_a_single_map_has_nothing_to_choose(vit, scene):
    controls = controls_of(done(vit, scene, score=Score(brightness, signed=True), null=4))
    assert controls["layer"].disabled and controls["map"].disabled and controls["map"].options == (("–", -1),)


def test_patches_that_are_not_tested(vit, scene):
    explorer = done(vit, {"part": Masked(scene, np.arange(128)[:, None] + np.zeros((1, 128)) >= 40)}, null=4)
    canvas = canvas_of(explorer)
    stats = np.frombuffer(canvas.stats, np.float32).reshape(5, *vit.grid)
    assert np.isnan(stats[1:, :5]).all() and np.isfinite(stats[:, 5:]).all() and canvas.rows["scores"]["patches"] == 176
    explorer.show(square=(60, 8, 26))
    explorer.wait(MINUTE)
    json.dumps([canvas.rows, canvas.histograms], allow_nan=False)


def test_the_first_choices_are_those_of_the_arguments(vit, scene):
    how = dict(score=Attention(layer=2, heads=1), recipe="paper", cuts=Cuts(q=0.2), seed=3)
    explorer = done(vit, scene, **how)
    controls = controls_of(explorer)
    assert [controls[name].value for name in ("layer", "map", "recipe", "q", "seed", "n")] == [2, 1, "paper", 0.2, 3, 1]
    theirs = regularize(scene, vit, **how)
    assert_same(replace(explorer.result, settings=theirs.settings), theirs)


def test_a_click_and_its_undoing(vit, scene):
    explorer = done(vit, scene, null=4)
    canvas, controls = canvas_of(explorer), controls_of(explorer)
    clean = canvas.pixels
    explorer._hand.hear({"kind": "noise", "y": 0.01, "x": 0.99})
    explorer.wait(MINUTE)
    assert explorer.view.run.square == (0, 102, 26) and canvas.square == [0, 102, 26]
    assert canvas.pixels != clean and {"D", "sensitivity", "specificity"} <= set(canvas.rows["p"])
    controls.side.value = 40
    explorer.wait(MINUTE)
    assert explorer.view.run.square == (0, 88, 40)
    controls.remove.click()
    assert not explorer.running and canvas.pixels == clean and controls.remove.disabled


class Gate:
    "A model that waits in the middle of a run until it is let on."

    def __init__(self, monkeypatch):
        self.reached, self.open, self.real = threading.Event(), threading.Event(), bootstrap.score_maps
        monkeypatch.setattr(bootstrap, "score_maps", self)  # of null images

    def __call__(self, *args):
        self.reached.set()
        assert self.open.wait(MINUTE)
        return self.real(*args)


def test_cancel_keeps_what_is_shown(vit, scene, monkeypatch):
    explorer = done(vit, scene, null=4)
    before = canvas_of(explorer).frame
    gate = Gate(monkeypatch)
    controls_of(explorer)["n"].value = 400
    assert gate.reached.wait(MINUTE) and explorer.running and not explorer._screen.progress.cancel.disabled
    controls_of(explorer)["p"].value = 0.01  # a slider goes on meanwhile, on what is shown
    assert explorer.view.cuts.p == 0.01 and explorer.view.run.null.n == 4 and controls_of(explorer)["n"].value == 400
    explorer._screen.progress.cancel.click()
    gate.open.set()
    explorer.wait(MINUTE)
    assert explorer.status.startswith("Cancelled.") and explorer._screen.progress.cancel.disabled
    assert explorer.view.run.null.n == controls_of(explorer)["n"].value == 4 and canvas_of(explorer).frame == before + 1
    assert not explorer._session.lab.known(changed(explorer.view, n=400).run)


def test_thresholds_moved_during_a_run_hold_after_it(vit, scene, monkeypatch):
    explorer = done(vit, scene, null=4)
    gate = Gate(monkeypatch)
    explorer.show(n=8)
    assert gate.reached.wait(MINUTE)
    explorer.show(p=0.07, map=1)
    gate.open.set()
    explorer.wait(MINUTE)
    assert (explorer.view.run.null.n, explorer.view.cuts.p, explorer.view.map) == (8, 0.07, 1)


def test_a_second_run_takes_the_place_of_the_first(vit, scene, monkeypatch):
    explorer = done(vit, scene, null=4)
    gate = Gate(monkeypatch)
    explorer.show(n=400)
    assert gate.reached.wait(MINUTE)
    first = explorer._session.runner.job
    explorer.show(n=6)
    explorer.show(n=7)
    gate.open.set()
    explorer.wait(MINUTE)
    assert first.stopped() and not first.is_alive()
    assert explorer.view.run.null.n == 7 and explorer.status == "" and len(explorer._session.lab._scored) == 2


def test_a_remembered_result_stops_a_run(vit, scene, monkeypatch):
    explorer = done(vit, scene, null=4)
    gate = Gate(monkeypatch)
    explorer.show(n=400)
    assert gate.reached.wait(MINUTE)
    job = explorer._session.runner.job
    explorer.show(n=4)
    gate.open.set()
    job.join(MINUTE)
    assert not explorer.running and explorer.view.run.null.n == 4 and explorer._screen.progress.cancel.disabled


def test_errors_are_words_and_the_state_stays(vit, scene, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "gone.png").write_text("soon gone")
    explorer = done([vit, "no_such_vit"], {"good": scene, "bad": tmp_path / "bad.png", "gone": tmp_path / "gone.png"}, null=4)
    (tmp_path / "gone.png").unlink()
    frame = canvas_of(explorer).frame
    for name, value, says in (
        ("image", "bad", "is not a picture"),
        ("image", "gone", "there is no file"),
        ("model", "no_such_vit", "there is no 'no_such_vit'"),
    ):
        controls_of(explorer)[name].value = value
        explorer.wait(MINUTE)
        assert says in canvas_of(explorer).error and "\n" not in canvas_of(explorer).error
        assert controls_of(explorer)["image"].value == "good" and controls_of(explorer)["model"].value == "scenes"
    explorer._hand.hear({"kind": "noise", "y": "nowhere", "x": 0})
    assert "nowhere" in canvas_of(explorer).error
    explorer._hand.take([{"name": "../a.txt", "content": memoryview(b"no picture")}])
    assert canvas_of(explorer).error == "image: 'a.txt' is not a picture that Pillow can read (or is empty)"
    assert canvas_of(explorer).frame == frame
    explorer.show(p=0.2)
    assert canvas_of(explorer).error == "" and canvas_of(explorer).frame == frame + 1


def test_nothing_to_show(tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    explorer = done("scenes", tmp_path / "bad.png")
    with pytest.raises(ValueError, match="there is nothing to show yet; image: .* is not a picture"):
        _ = explorer.view


def test_a_missing_file_is_refused_at_once(tmp_path, scene):
    for images in (tmp_path / "gone.png", [scene, str(tmp_path / "gone.png")], {"mine": tmp_path / "gone.png"}):
        with pytest.raises(FileNotFoundError, match="images: there is no file .*gone.png"):
            Explorer("scenes", images)


def test_upload(vit, scene, photo):
    explorer = done(vit, {"scene": scene}, null=4)
    explorer._hand.take([{"name": "photo.png", "content": memoryview(photo.read_bytes())}])
    explorer.wait(MINUTE)
    assert explorer.view.run.image == "photo.png" and controls_of(explorer)["image"].options == ("scene", "photo.png")
    np.testing.assert_array_equal(explorer.maps["p"], regularize(photo, vit, null=4, seed=0).maps["p"])


def test_another_model_has_other_layers_heads_and_squares(vit, scene):
    explorer = done({"scenes": vit, "small": small_vit()}, {"scene": scene}, null=4)
    explorer.show(layer=2, map=1, square=(10, 10, 26))
    explorer.wait(MINUTE)
    controls_of(explorer)["model"].value = "small"
    explorer.wait(MINUTE)
    run = explorer.view.run
    assert (run.score.layer, run.square, explorer.view.map) == (-1, None, None)
    controls = controls_of(explorer)
    assert (len(controls["layer"].options), len(controls["map"].options), controls.side.max) == (2, 4, 32)


def test_a_picture_of_one_patch(scene):
    explorer = done(small_vit(img_size=8), scene)
    assert canvas_of(explorer).grid == [1, 1] and "too few" in canvas_of(explorer).summary
    controls_of(explorer)["recipe"].value = "paper"
    assert "no density can be fitted" in canvas_of(explorer).error and controls_of(explorer)["recipe"].value == "conditional"


def test_closing_stops_the_run(vit, scene, monkeypatch):
    explorer = done(vit, scene, null=4)
    gate = Gate(monkeypatch)
    explorer.show(n=400)
    assert gate.reached.wait(MINUTE)
    explorer.close()
    gate.open.set()
    explorer.wait(MINUTE)
    assert explorer.status.startswith("Cancelled.")


def test_files_go_to_the_browser(vit, scene, monkeypatch):
    sent = []
    monkeypatch.setattr(Canvas, "send", lambda self, content, buffers=None: sent.append((content, buffers)))
    explorer = done(vit, {"my scene": scene}, null=4)
    for what in ("png", "npz"):
        explorer._hand.hear({"kind": "export", "what": what})
    assert [content["name"] for content, _ in sent] == ["my scene.png", "my scene.npz"]
    assert sent[0][1][0].startswith(b"\x89PNG") and sent[1][1][0].startswith(b"PK")


def test_numbers_that_cross_to_the_browser_are_plain(vit, scene):
    explorer = done(vit, scene, null=4)
    explorer.show(square=(0, 0, 26))
    explorer.wait(MINUTE)
    canvas = canvas_of(explorer)
    json.dumps([canvas.rows, canvas.histograms, canvas.titles, canvas.square], allow_nan=False)
    h, w = canvas.grid
    assert len(canvas.stats) == 5 * h * w * 4 and len(canvas.maps) == 6 * h * w * 4 and len(canvas.pixels) == 3 * np.prod(canvas.size)


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
    assert outcome.exit_code == 2 and "pip install 'attnbootreg[explore]'" in outcome.stderr and not (tmp_path / "other.ipynb").exists()
