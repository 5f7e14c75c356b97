"The whole method: reproducible, saved and loaded without loss, for one image and many."

import numpy as np
import pytest
import torch

from attnbootreg import (
    Regularized, attention_scores, estimate_pi0, load_image, load_vit, make_scenes, null_scores, p_intervals, regions, regularize, shrink,
    significance, significance_beside,
)  # fmt: skip
from attnbootreg.bootstrap import METHODS

ARRAYS = ("image", "scores", "null", "beside", "found", "z", "z0", "p", "q", "lfdr")


@pytest.mark.parametrize("recipe", ["calibrated", "paper", "released"])
@pytest.mark.parametrize("bootstrap", list(METHODS))
def test_same_seed_same_arrays(vit, scene, recipe, bootstrap):
    one, two = (regularize(scene, vit, n_boot=3, bootstrap=bootstrap, recipe=recipe, seed=0) for _ in range(2))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert list(one.maps) == ["z", "p", "q", "lfdr", "pi0", "posterior"]


def test_is_the_rooms_in_line(vit, scene):
    x = load_image(scene, vit)
    scores, null = attention_scores(x, vit), null_scores(x, vit, 20, seed=5)
    sig = significance(scores, null)
    res = regularize(scene, vit, seed=5, alpha=0.1)
    np.testing.assert_array_equal(res.p, sig.p)
    np.testing.assert_array_equal(res.maps["p"], shrink(scores, sig, "p", 0.1))


@pytest.mark.parametrize("recipe, n_boot", [("calibrated", 20), ("paper", 1), ("released", 1)])
def test_default_number_of_null_images(vit, scene, recipe, n_boot):
    assert len(regularize(scene, vit, recipe=recipe, seed=0).null) == n_boot


def test_a_seed_is_written_down(vit, scene):
    one = regularize(scene, vit, n_boot=2)
    np.testing.assert_array_equal(one.null, regularize(scene, vit, n_boot=2, seed=one.settings["seed"]).null)


def test_the_global_random_state_is_left_alone(vit, scene):
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    regularize(scene, vit, n_boot=2, seed=0)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == legacy).all()


@pytest.mark.parametrize("many", [list, tuple, iter, torch.stack], ids=["list", "tuple", "iterator", "tensor"])
def test_many_images(vit, many):
    images = list(make_scenes(2, seed=1).images)
    results = regularize(many(images), vit, n_boot=2, seed=3)
    for i, res in enumerate(results):
        np.testing.assert_array_equal(res.p, regularize(images[i], vit, n_boot=2, seed=3 + i).p)


def test_save_and_load(tmp_path, vit, scene):
    res = regularize(scene, vit, n_boot=2, seed=0)
    files = res.save(tmp_path / "deep" / "a.b")
    assert (
        sorted(path.name for path in files)
        == ["a.b.json", "a.b.npz", "a.b.png"]
        == sorted(path.name for path in (tmp_path / "deep").iterdir())
    )
    again = Regularized.load(tmp_path / "deep" / "a.b")
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(res, name))
        assert getattr(again, name).dtype == getattr(res, name).dtype
    assert (again.pi0, again.settings) == (res.pi0, res.settings)
    assert all((again.maps[name] == map).all() for name, map in res.maps.items())
    assert again.plot().to_png() == res.plot().to_png()


def test_what_was_chosen_is_saved(tmp_path, vit, scene):
    res = regularize(scene, vit, n_boot=20, beside=True, standardize="position", pi0_method=np.float32(0.5), plus_one=np.True_, seed=0)
    res.save(tmp_path / "scene")
    again = Regularized.load(tmp_path / "scene")
    assert again.settings == res.settings
    assert (
        again.settings["overrides"] == {"pi0_method": 0.5, "standardize": "position", "plus_one": True}
        and again.settings["n_boot"] == 20
        and again.settings["beside"]
    )
    np.testing.assert_array_equal(again.undecided, res.undecided)
    np.testing.assert_array_equal(regions(again.sig).labels, regions(res.sig).labels)


def test_beside_is_the_rooms_in_line(vit, scene):
    x = load_image(scene, vit)
    scores, null = attention_scores(x, vit), null_scores(x, vit, 20, seed=5)
    found = significance(scores, null).q <= 0.1
    sig = significance_beside(scores, null, null_scores(x, vit, 20, seed=5, keep=found), found)
    res = regularize(scene, vit, seed=5, beside=True)
    np.testing.assert_array_equal(res.p, sig.p)
    np.testing.assert_array_equal(res.lfdr, sig.lfdr)
    assert res.pi0 == estimate_pi0(res.p, "bounded")
    low, high = p_intervals(res.z[None, ~found], res.z0[:, None, ~found])  # of what is not found, against the noise beside
    assert ((low[0] - 1e-3 <= res.p[~found]) & (res.p[~found] <= high[0] + 1e-3)).all()
    np.testing.assert_array_equal(res.undecided[~found], ((low < 0.3) & (0.3 < high))[0])


def test_numpy_numbers_are_numbers(tmp_path, vit, scene):
    res = regularize(scene, vit, n_boot=np.int64(2), alpha=np.float32(0.25), z_min=np.float64(0.5), layer=np.int64(-2), seed=np.int64(1))
    res.save(tmp_path / "scene")
    assert Regularized.load(tmp_path / "scene").settings == res.settings


def test_saving_never_overwrites_the_picture(tmp_path, vit, picture):
    picture.save(tmp_path / "dog.png")
    with pytest.raises(ValueError, match="would be overwritten"):
        regularize(tmp_path / "dog.png", vit, n_boot=1, seed=0).save(tmp_path / "dog")


def test_function_of_your_own(vit, scene):
    def flipped(x, generator):
        return x.flip(1) + 0.01 * torch.randn(x.shape, generator=generator)

    res = regularize(scene, vit, n_boot=2, bootstrap=flipped, seed=0)
    assert res.settings["bootstrap"] == "flipped"


def test_rectangular_grid():
    vit = load_vit("vit_tiny_patch16_224", pretrained=False, img_size=(64, 80), device="cpu")
    res = regularize(np.random.default_rng(0).random((50, 70)), vit, n_boot=2, seed=0)
    assert res.scores.shape == (4, 5) and res.image.shape == (64, 80, 3)
    assert res.plot().to_png()


def test_shown_in_a_notebook(vit, scene):
    res = regularize(scene, vit, n_boot=1, seed=0)
    assert res._repr_png_().startswith(b"\x89PNG")
    assert "patches at p" in repr(res) and "0x" not in repr(res)
    table = res.summary()
    assert table.loc["attention", "attention_kept"] == 1 and (table["attention_kept"] <= 1).all()
