"Bad input: one clear line that names the argument and the remedy, and nothing half-written."

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from attnbootreg import (
    Attention, Cuts, Masked, Null, Recipe, attention_scores, bootstrap_images, coverage, diffuse_mask, estimate_pi0, familywise_threshold,
    find_regions, hommel_bound, inject_noise, load_image, load_vit, local_fdr, make_scenes, p_errors, p_intervals, perturb, q_values,
    regularize, roi_threshold, run_study, shrink, significance, square_mask, suppression_factor, tradeoff, true_finds, undecided, upsample,
)  # fmt: skip

SCORES, NULL = (np.random.default_rng(0).uniform(1, 2, shape) for shape in ((5, 5), (2, 5, 5)))
POSITION = Recipe(standardize="position")


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- pictures


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("text.png", b"this is no picture", "not a picture"),
        ("empty.jpg", b"", "not a picture"),
        ("cut.jpg", lambda jpeg: jpeg[: len(jpeg) // 2], "damaged or cut short"),
        ("cut.png", None, "damaged or cut short"),
    ],
)
def test_damaged_files(tmp_path, vit, picture, name, content, says):
    kind = "PNG" if content is None else "JPEG"
    picture.save(tmp_path / "whole", kind)
    whole = (tmp_path / "whole").read_bytes()
    content = whole[: len(whole) // 2] if content is None else content(whole) if callable(content) else content
    with pytest.raises(ValueError, match=says) as error:
        load_image(write(tmp_path / name, content), vit)
    assert name in one_line(error)


def test_missing_file_and_directory(tmp_path, vit):
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        load_image(tmp_path / "nowhere.png", vit)
    with pytest.raises(ValueError, match="is a directory"):
        load_image(tmp_path, vit)


def test_one_pixel(tmp_path, vit):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    with pytest.raises(ValueError, match="1 x 1 px"):
        load_image(tmp_path / "dot.png", vit)


def test_decompression_bomb(tmp_path, vit, picture, monkeypatch):
    picture.save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # the limit stays on; only a smaller file is needed to reach it
    with pytest.raises(ValueError, match="bomb.png.*safety limit"):
        load_image(tmp_path / "bomb.png", vit)


@pytest.mark.parametrize(
    "pixels, says",
    [
        (np.full((8, 8, 3), np.nan), "NaN"),
        (np.full((8, 8, 3), np.inf), "NaN or infinite"),
        (np.full((8, 8, 3), 255.0), r"in \[0, 1\]"),
        (np.zeros((8, 8, 2)), "shape"),
        (np.zeros((2, 8, 8, 3)), "shape"),
        (np.zeros((0, 8, 3)), "shape"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (np.zeros((8, 8), complex), "complex"),
        (torch.zeros(8, 8, 3, 3), "shape"),
        ({"a": 1}, "dict"),
        (None, "NoneType"),
    ],
)
def test_arrays_that_are_no_pictures(vit, pixels, says):
    with pytest.raises((ValueError, TypeError), match=f"image: .*{says}") as error:
        load_image(pixels, vit)
    one_line(error)


def test_one_constant_color(tmp_path, vit):
    Image.new("RGB", (64, 64), "gray").save(tmp_path / "gray.png")
    with pytest.raises(ValueError, match="gray.png.*one color.*zero variance"):
        regularize(tmp_path / "gray.png", vit)


def test_unreadable_file(tmp_path, vit, picture, monkeypatch):
    picture.save(tmp_path / "secret.png")
    refuse = lambda *args, **kwargs: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "secret.png")))
    monkeypatch.setattr(Image, "open", refuse)  # root may read everything, so a refusal has to be made
    with pytest.raises(PermissionError, match="secret.png"):
        load_image(tmp_path / "secret.png", vit)


# ---- arguments


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(null=0), "n: .*at least 1"),
        (dict(null=-3), "n: "),
        (dict(null=2.0), "null: expected Null"),
        (dict(null=True), "null: expected Null"),
        (dict(null="norml"), "kind: .*did you mean 'normal'"),
        (dict(null=["normal"]), "null: expected Null"),
        (dict(null="many"), "kind: there is no 'many'"),
        (dict(null=Null), "null: expected Null.*class"),
        (dict(null=lambda x, generator: None), "must return a tensor"),
        (dict(null=Null(lambda x, generator: x.flip(1), n=20, groups=1), recipe=POSITION), "all null images are alike"),
        (dict(null=10, recipe=POSITION), "n: .*position.*at least 20"),
        (dict(null=Null(keep=np.zeros((4, 4), bool))), "keep: .*grid"),
        (dict(recipe="relased"), "recipe: .*did you mean 'released'"),
        (dict(recipe=["paper"]), "recipe"),
        (dict(recipe=Recipe), "recipe: expected a name"),
        (dict(score=lambda vit, x: torch.ones(len(x), *vit.grid)), "zero variance"),
        (dict(cuts=0.3), "cuts: expected Cuts"),
        (dict(cuts={"p": 0.3}), "cuts: expected Cuts"),
        (dict(cuts=None), "cuts: expected Cuts"),
        (dict(score="attention"), "score: expected Attention"),
        (dict(score=Attention), "score: .*make one: Attention()"),
        (dict(score=Attention(layer=99)), "layer: 99"),
        (dict(score=Attention(heads=2)), "heads: 2 .*use 0 to 1"),
        (dict(score=Attention(query="dist")), "query: .*'cls', 'mean'"),
        (dict(score=lambda vit, x: x), "score: .*must give"),
        (dict(seed=1.5), "seed"),
        (dict(crop="yes"), "crop: must be True or False"),
        (dict(batch_size=0), "batch_size"),
        (dict(n_boot=5), "n_boot"),
        (dict(alpha=0.3), "alpha"),
        (dict(layer=3), "layer"),
    ],
)
def test_arguments_of_regularize(vit, scene, wrong, says):
    with pytest.raises((ValueError, TypeError), match=says) as error:
        regularize(scene, vit, **wrong)
    one_line(error)


def test_all_images_are_checked_before_any_work(vit, scene):
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        regularize([scene, "nowhere.png"], vit, lambda vit, x: pytest.fail("work was done"))


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda vit: load_vit("vit_smal_patch16_224"), "model: .*did you mean vit_small_patch16_224"),
        (lambda vit: load_vit("vit_tiny_patch16_224", img_size=100, pretrained=False), "img_size: .*use 96 or 112"),
        (lambda vit: load_vit("vit_tiny_patch16_224", img_size=10, pretrained=False), "use 16"),
        (lambda vit: load_vit(img_size=-8), "img_size"),
        (lambda vit: load_vit(img_size=(8, 8, 8)), "img_size"),
        (lambda vit: load_vit(device="tpu9"), "device"),
        (lambda vit: load_vit(dtype="float16"), "dtype"),
        (lambda vit: load_vit(torch.nn.Linear(2, 2)), "does not say how it cuts images into patches"),
        (lambda vit: load_vit(7), "model"),
        (lambda vit: load_vit("vit_tiny_patch16_224.augreg"), "did you mean vit_tiny_patch16_224.augreg_in21k"),
        (lambda vit: make_scenes(0), "n: "),
        (lambda vit: make_scenes(1, noise=2), "noise: "),
        (lambda vit: inject_noise(torch.zeros(3, 8, 8, dtype=torch.uint8), np.ones((8, 8), bool)), "floats"),
        (lambda vit: coverage(255 * np.ones((8, 8)), (2, 2)), "mask: "),
        (lambda vit: significance(SCORES, NULL, POSITION), "at least 20 null images"),
        (lambda vit: significance(SCORES, NULL, Recipe), "recipe: expected a name"),
        (lambda vit: q_values([0.5], method="holm"), "method: .*'by'"),
        (lambda vit: estimate_pi0([0.5], "best"), "method"),
        (lambda vit: p_errors(SCORES, NULL[:1]), "z0: .*at least 2"),
        (lambda vit: p_intervals(SCORES, NULL, 1.0), "confidence"),
        (lambda vit: undecided(SCORES, NULL[:, :2], 0.1), "z0: .*shape"),
        (lambda vit: find_regions(significance(SCORES, NULL), alpha=2), "alpha"),
        (lambda vit: find_regions(significance(SCORES, NULL), confidence=0.0), "confidence"),
        (lambda vit: find_regions(significance(SCORES[None], NULL[None])), "sig: .*one by one"),
        (lambda vit: familywise_threshold(significance(SCORES, NULL), 0.05), "alpha: .*at least 19 null images"),
        (lambda vit: true_finds(SCORES / 2, np.ones(3, bool)), "chosen"),
        (lambda vit: true_finds(SCORES, SCORES > 1), r"p: .*\[0, 1\]"),
        (lambda vit: significance(SCORES, NULL, mask=np.zeros((5, 5), bool)), "mask: leaves 0 patches"),
        (lambda vit: significance(SCORES, NULL, mask=SCORES), "mask: expected True and False"),
        (lambda vit: significance(SCORES, NULL[..., :4], mask=SCORES > 0), "null: "),
        (lambda vit: hommel_bound(SCORES - 1, 5), "alpha"),
        (lambda vit: undecided(SCORES, NULL, 7), "alpha"),
        (lambda vit: Null(keep=np.zeros((4, 4), bool)).check(vit), "keep: .*grid"),
        (lambda vit: Null(keep=np.ones((16, 16), bool)), "keep: .*at least one False"),
        (lambda vit: Masked(np.zeros((8, 8)), np.ones((8, 9), bool)), "mask: is 8 x 9 px"),
        (lambda vit: estimate_pi0([0.5, 1.5]), r"p: .*\[0, 1\]"),
        (lambda vit: q_values([0.5], 2.0), "pi0: "),
        (lambda vit: shrink(SCORES, significance(SCORES, NULL), "p", Cuts(z=float("nan"))), "z: "),
        (lambda vit: local_fdr(np.ones(50)), "z: no density"),
        (lambda vit: attention_scores(torch.zeros(3, 64, 64), vit), "x: expected"),
        (lambda vit: attention_scores(torch.zeros(3, 128, 128), vit, heads="some"), "heads"),
        (lambda vit: bootstrap_images(torch.rand(2, 3, 8, 8), 1), "expected one image"),
        (lambda vit: bootstrap_images(torch.rand(3, 8, 8), 1, "patch"), "patch_size"),
        (lambda vit: bootstrap_images(torch.full((3, 8, 8), torch.nan), 1), "NaN"),
        (lambda vit: Null(n=2).scores(torch.rand(3, 128, 128), vit, Attention(), batch_size=0), "batch_size"),
        (lambda vit: Null(n=2).scores(torch.rand(3, 128, 128), vit, Attention(), seed=-1), "seed"),
        (lambda vit: significance(-np.ones((4, 4)), np.ones((1, 4, 4))), "scale='linear'"),
        (lambda vit: significance(np.ones((4, 4)), np.ones((1, 4, 4))), "zero variance"),
        (lambda vit: significance(np.ones((4, 4)), np.ones((4, 4))), "null: expected shape"),
        (lambda vit: significance(np.full((4, 4), np.nan), np.ones((1, 4, 4))), "NaN"),
        (lambda vit: significance(np.ones((0, 4)), np.ones((1, 0, 4))), "empty"),
        (lambda vit: shrink(SCORES, significance(SCORES, NULL), "best"), "method"),
        (lambda vit: shrink(SCORES, significance(SCORES, NULL), "p", 7), "cuts: expected Cuts"),
        (lambda vit: significance(SCORES, NULL, Recipe(scale="cubic")), "scale"),
        (lambda vit: coverage(np.ones((10, 10)), (3, 3)), "grid"),
        (lambda vit: square_mask((10, 10), 11), "side"),
        (lambda vit: inject_noise(torch.rand(3, 8, 8), np.ones((4, 4), bool)), "mask"),
        (lambda vit: suppression_factor([0.0, 0.0], [0.0, 0.0]), "before"),
        (lambda vit: suppression_factor([1.0, 2.0], [1.0, 2.0], "jackknife"), "error"),
        (lambda vit: tradeoff(SCORES, significance(SCORES, NULL), SCORES - 1, "pi0"), "method"),
        (lambda vit: roi_threshold(SCORES, SCORES - 1, 200), "percent"),
        (lambda vit: diffuse_mask((10, 10), 11), "side"),
        (lambda vit: square_mask((10, 10), 4, at=[(8, 8)]), "at: "),
        (lambda vit: perturb(torch.rand(3, 128, 128), np.ones((4, 4)), vit), "map: .*grid"),
        (lambda vit: perturb(torch.rand(3, 128, 128), np.ones((16, 16)), vit, target=99), "target"),
        (lambda vit: upsample(torch.zeros(2, 2), (4, 4), "cubic"), "mode"),
    ],
)  # fmt: skip
def test_arguments_of_everything_else(vit, call, says):
    with pytest.raises((ValueError, TypeError), match=says) as error:
        call(vit)
    one_line(error)


def test_too_few_scores_for_a_density_fall_back_and_say_so():
    rng = np.random.default_rng(0)
    scores, null = rng.gamma(3, 1, (3, 4)), rng.gamma(3, 1, (5, 3, 4))
    with pytest.warns(UserWarning, match="12 scores are too few for a density.* fell back on pi0 = 1"):
        sig = significance(scores, null)
    with pytest.warns(UserWarning, match="too few"):
        np.testing.assert_array_equal(sig.lfdr, significance(scores, null, Recipe(lfdr_pi0=1.0)).lfdr)


def test_no_weights_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="model: .*checkpoint.*pretrained=False") as error:
        load_vit("vit_small_patch16_224.augreg_in21k", device="cpu")
    one_line(error)


# ---- checkpoints


class Trap:
    "Pickled, this makes a file when it is loaded carelessly."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("wrap", [lambda trap: trap, lambda trap: {"state_dict": {"cls_token": trap}}])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, wrap):
    sprung = tmp_path / "sprung"
    for name, save in {"plain.pkl": lambda value, file: pickle.dump(value, file, protocol=2), "torch.pth": torch.save}.items():
        with open(tmp_path / name, "wb") as file:
            save(wrap(Trap(sprung)), file)
        with pytest.raises(ValueError, match=f"checkpoint: .*{name}.*more than tensors"):
            load_vit(checkpoint=tmp_path / name)
    assert not sprung.exists()


@pytest.mark.parametrize("content", [{"epoch": 3}, {"weights": torch.zeros(2), "note": "hello"}, [torch.zeros(2)]])
def test_a_file_that_is_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="checkpoint: .*not a plain state dict"):
        load_vit(checkpoint=tmp_path / "odd.pth")


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pth"])
def test_damaged_checkpoint(tmp_path, name):
    with pytest.raises(ValueError, match=f"checkpoint: .*{name}"):
        load_vit(checkpoint=write(tmp_path / name, b"not weights"))
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        load_vit(checkpoint=tmp_path / "nowhere.pth")


def test_checkpoint_of_another_architecture_names_the_keys(tmp_path, vit):
    state = vit.model.state_dict()
    del state["blocks.5.mlp.fc2.bias"]
    state["blocks.6.norm1.weight"] = torch.zeros(128)
    state["blocks.0.norm1.weight"] = torch.zeros(64)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(ValueError) as error:
        load_vit(checkpoint=tmp_path / "other.safetensors")
    for part in (
        "1 missing: blocks.5.mlp.fc2.bias",
        "1 unexpected: blocks.6.norm1.weight",
        "blocks.0.norm1.weight (64,) instead of (128,)",
    ):
        assert part in one_line(error)


# ---- writing


@pytest.fixture
def result(vit, scene):
    return regularize(scene, vit, null=Null(n=1, groups=1), seed=0)


def test_nothing_is_left_when_the_disk_is_full(tmp_path, result, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="could not be written.*free space"):
        result.save(tmp_path / "scene")
    assert not list(tmp_path.iterdir())


def test_an_earlier_result_survives_a_full_disk(tmp_path, result):
    result.save(tmp_path / "scene")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code = (  # a process that may write no file of more than 20,000 bytes
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from attnbootreg import Regularized\n"
        "res = Regularized.load(sys.argv[1])\n"
        "try: res.save(sys.argv[1])\n"
        "except OSError as error: print('stopped:', error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code, tmp_path / "scene"], capture_output=True, text=True)
    assert "stopped:" in out.stdout and "could not be written" in out.stdout, out.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_is_a_file(tmp_path, result):
    (tmp_path / "taken").touch()
    with pytest.raises(OSError, match="could not be written.*choose another folder"):
        result.save(tmp_path / "taken" / "scene")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_no_permission(tmp_path, result):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="could not be written"):
        result.save(tmp_path / "scene")


@pytest.mark.parametrize("wrong", ["scenes", None, load_vit])
def test_what_is_no_vit_is_told_so(vit, picture, tmp_path, wrong):
    for call in (
        lambda: regularize(picture, wrong),
        lambda: attention_scores(torch.zeros(3, *vit.img_size), wrong),
        lambda: run_study("scenes", wrong, tmp_path / "study", limit=1),
    ):
        with pytest.raises(TypeError, match="vit: expected what load_vit gives"):
            call()
    with pytest.raises(TypeError, match="x: expected a tensor"):
        attention_scores(np.zeros((3, *vit.img_size)), vit)


def test_a_folder_is_no_name(vit, picture, tmp_path):
    result = regularize(picture, vit, null=Null(n=1, groups=1))
    with pytest.raises(ValueError, match="is a folder; give a name in it"):
        result.save(tmp_path)
    assert not list(tmp_path.iterdir())
