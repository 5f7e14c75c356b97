"The whole method: reproducible, saved and loaded without loss, for one image and many."

import json

import numpy as np
import pytest
import torch
from PIL import Image

from attnbootreg import (
    Attention, Cuts, Null, Recipe, Regularized, __version__, attention_scores, estimate_pi0, find_regions, load_image, load_vit, make_scenes,
    p_intervals, regularize, shrink, significance,
)  # fmt: skip
from attnbootreg.bootstrap import KINDS

SIG = ("z", "z0", "p", "q", "lfdr", "pi0")


def arrays_of(res):
    "All arrays of a result, by name."
    named = {"image": res.image, "scores": res.scores, "null": np.asarray(res.null), **{name: getattr(res.sig, name) for name in SIG}}
    return {**named, **{f"map {name}": map for name, map in res.maps.items()}}


@pytest.mark.parametrize("recipe", ["calibrated", "paper", "released"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_same_seed_same_arrays(vit, scene, recipe, kind):
    one, two = (regularize(scene, vit, null=Null(kind, n=3), recipe=recipe, seed=0) for _ in range(2))
    for name, array in arrays_of(one).items():
        np.testing.assert_array_equal(arrays_of(two)[name], array)
    assert list(one.maps) == ["z", "p", "q", "lfdr", "pi0", "posterior"]


def test_is_the_modules_in_line(vit, scene):
    x = load_image(scene, vit)
    scores, null = attention_scores(x, vit).numpy(), Null(n=4, groups=16).scores(x, vit, Attention(), seed=5)
    sig, cuts = significance(scores, null), Cuts(p=0.1)
    res = regularize(scene, vit, seed=5, cuts=cuts)
    for name in SIG:
        np.testing.assert_array_equal(getattr(res.sig, name), getattr(sig, name))
    for name, map in res.maps.items():
        np.testing.assert_array_equal(map, shrink(scores, sig, name, cuts))


def test_default_number_of_null_images(vit, scene):
    assert len(regularize(scene, vit, recipe="released", seed=0).null) == 1
    assert len(regularize(scene, vit, recipe=Recipe(n_null=4, groups=1), seed=0).null) == 4
    assert len(regularize(scene, vit, seed=0).null) == 4
    assert len(regularize(scene, vit, null="pixel", recipe="paper", seed=0).null) == 1
    assert len(regularize(scene, vit, null=4, recipe="paper", seed=0).null) == 4


def test_a_seed_is_written_down(vit, scene):
    one = regularize(scene, vit, null=Null(n=2, groups=1))
    np.testing.assert_array_equal(one.null, regularize(scene, vit, null=Null(n=2, groups=1), seed=one.settings["seed"]).null)


def test_the_global_random_state_is_left_alone(vit, scene):
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    regularize(scene, vit, null=Null(n=2, groups=1), seed=0)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == legacy).all()


@pytest.mark.parametrize("many", [tuple, iter, torch.stack, lambda images: np.stack([image.permute(1, 2, 0) for image in images])],
                         ids=["tuple", "iterator", "tensor", "array"])  # fmt: skip
def test_many_images(vit, many):
    images = list(make_scenes(2, seed=1).images)
    results = regularize(many(images), vit, null=Null(n=2, groups=1), seed=3)
    assert len(results) == 2
    for i, res in enumerate(results):
        np.testing.assert_array_equal(res.sig.p, regularize(images[i], vit, null=Null(n=2, groups=1), seed=3 + i).sig.p)


def test_save_and_load(tmp_path, vit, scene):
    res = regularize(scene, vit, null=Null(n=2, groups=1), seed=0)
    files = res.save(tmp_path / "deep" / "a.b")
    assert (
        sorted(path.name for path in files)
        == ["a.b.json", "a.b.npz", "a.b.png"]
        == sorted(path.name for path in (tmp_path / "deep").iterdir())
    )
    again = Regularized.load(tmp_path / "deep" / "a.b")
    for name, array in arrays_of(res).items():
        np.testing.assert_array_equal(arrays_of(again)[name], array)
        assert np.asarray(arrays_of(again)[name]).dtype == np.asarray(array).dtype
    assert (again.settings, again.cuts, again.sig.recipe) == (res.settings, res.cuts, res.sig.recipe)


def test_every_file_names_the_version_that_wrote_it(tmp_path, vit, scene):
    regularize(scene, vit, null=Null(n=1, groups=1), seed=0).save(tmp_path / "a")
    assert np.load(tmp_path / "a.npz")["version"] == __version__
    assert json.loads((tmp_path / "a.json").read_text())["settings"]["versions"]["attnbootreg"] == __version__
    assert Image.open(tmp_path / "a.png").text["Software"] == f"attnbootreg {__version__}"


def test_what_was_chosen_is_saved(tmp_path, vit, scene):
    recipe = Recipe(standardize="position", pi0_method=np.float32(0.5), plus_one=np.True_)
    keep = np.zeros(vit.grid, bool)
    keep[3:6, 4:9] = True
    res = regularize(scene, vit, null=Null(n=20, keep=keep), recipe=recipe, seed=0)
    res.save(tmp_path / "scene")
    again = Regularized.load(tmp_path / "scene")
    chosen = again.settings
    assert chosen == res.settings and again.sig.recipe == res.sig.recipe == recipe.resolved()
    assert (chosen["recipe"]["pi0_method"], chosen["recipe"]["standardize"], chosen["recipe"]["plus_one"]) == (0.5, "position", True)
    assert chosen["null"]["n"] == 20 and np.array_equal(chosen["null"]["keep"], keep)
    np.testing.assert_array_equal(again.undecided, res.undecided)
    np.testing.assert_array_equal(again.p_error, res.p_error)
    np.testing.assert_array_equal(find_regions(again.sig).labels, find_regions(res.sig).labels)


def test_kept_patches_are_the_modules_in_line(vit, scene):
    x = load_image(scene, vit)
    scores = attention_scores(x, vit).numpy()
    found = significance(scores, Null(n=20).scores(x, vit, Attention(), seed=5), "calibrated").q <= 0.1
    assert 0 < found.sum() < found.size
    beside = Null(n=20, groups=1, keep=found)
    res = regularize(scene, vit, null=beside, recipe="calibrated", seed=5)
    sig = significance(scores, beside.scores(x, vit, Attention(), seed=5), "calibrated", mask=~found)
    for name in SIG:
        np.testing.assert_array_equal(getattr(res.sig, name), getattr(sig, name))
    assert res.sig.pi0 == estimate_pi0(res.sig.p[~found], "bounded") and np.isnan(res.sig.p[found]).all()
    assert not any(map[found].any() for map in res.maps.values())
    low, high = p_intervals(res.sig.z[None, ~found], res.sig.z0[:, None, ~found])  # of the rest, against noise next to what was found
    assert ((low[0] - 1e-3 <= res.sig.p[~found]) & (res.sig.p[~found] <= high[0] + 1e-3)).all()
    np.testing.assert_array_equal(res.undecided[~found], ((low < 0.3) & (0.3 < high))[0])
    assert not res.undecided[found].any() and np.isnan(res.p_error[found]).all()


def test_numpy_numbers_are_numbers(tmp_path, vit, scene):
    score, cuts = Attention(layer=np.int64(-2)), Cuts(p=np.float32(0.25), z=np.float64(0.5))
    res = regularize(scene, vit, score, np.int64(2), cuts=cuts, seed=np.int64(1), crop=np.False_, batch_size=np.int32(2))
    res.save(tmp_path / "scene")
    again = Regularized.load(tmp_path / "scene")
    assert again.settings == res.settings and again.cuts == cuts and again.settings["score"]["layer"] == -2


def test_saving_never_overwrites_the_picture(tmp_path, vit, picture):
    picture.save(tmp_path / "dog.png")
    with pytest.raises(ValueError, match="would be overwritten"):
        regularize(tmp_path / "dog.png", vit, null=Null(n=1, groups=1), seed=0).save(tmp_path / "dog")


def flipped(x, generator):
    return x.flip(1) + 0.01 * torch.randn(x.shape, generator=generator)


def test_function_of_your_own(vit, scene):
    short, long = (regularize(scene, vit, null=null, recipe="paper", seed=0) for null in (flipped, Null(flipped, n=1)))
    assert short.settings == long.settings and short.settings["null"]["kind"] == "test_method:flipped"
    np.testing.assert_array_equal(short.null, long.null)


def test_rectangular_grid():
    vit = load_vit("vit_tiny_patch16_224", pretrained=False, img_size=(64, 80), device="cpu")
    res = regularize(np.random.default_rng(0).random((50, 70)), vit, null=Null(n=2, groups=1), seed=0)
    assert res.scores.shape == (4, 5) and res.image.shape == (64, 80, 3)
    assert res.plot().to_png()


def test_shown_in_a_notebook(vit, scene):
    res = regularize(scene, vit, null=Null(n=1, groups=1), seed=0)
    assert res._repr_png_().startswith(b"\x89PNG")
    assert "patches at p" in repr(res) and "0x" not in repr(res)
    table = res.summary()
    assert table.loc["scores", "score_kept"] == 1 and (table["score_kept"] <= 1).all()
