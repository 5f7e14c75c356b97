"A null that is learned once: what it predicts, when it draws instead, and whose it is."

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from attnbootreg import (
    CDAM, Attention, Masked, Noise, Null, NullBank, Regularized, Score, Study, attention_scores, load_image, load_study, load_vit,
    make_scenes, regularize, run_study, significance,
)  # fmt: skip
from attnbootreg.bank import AT_LEAST, held_out, left_out, moments_of
from attnbootreg.explorer import Lab, Run, View

MEAN = Attention(query="cls")


@pytest.fixture(scope="module")
def tiny():
    "A model of 4 x 4 patches."
    return load_vit("vit_tiny_patch16_224", pretrained=False, img_size=64, device="cpu")


@pytest.fixture(scope="module")
def pictures():
    return [image.permute(1, 2, 0).numpy() for image in make_scenes(6, 4, size=64).images]


def balance(vit, x):
    "Two signed maps: contrast of each patch less that of all, of two channels."
    ph, pw = vit.patch_size
    own = x[:, :2].unfold(2, ph, ph).unfold(3, pw, pw).std((4, 5))
    return own - own.mean((2, 3), keepdim=True)


def place(vit, x):
    "A map that depends on where a patch is."
    level = torch.linspace(0, 1, vit.grid[0])[:, None].expand(vit.grid)
    ph, pw = vit.patch_size
    return 5 + level + x[:, 0].unfold(1, ph, ph).unfold(2, pw, pw).mean((3, 4))


@pytest.fixture(scope="module")
def bank(tiny, pictures):
    return NullBank.fit(pictures, tiny, n=6, points=64, progress=False)


def test_six_numbers_are_all_that_a_null_image_takes(vit, scene):
    x = load_image(scene.permute(1, 2, 0).numpy(), vit)
    other = x.flip(1).roll(17, 2)  # another picture with the same moments
    np.testing.assert_allclose(moments_of(other), moments_of(x), atol=1e-9)
    one, two = (next(Null(groups=1).images(image, vit, seed=5))[0] for image in (x, other))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["scenes", "scenes-plain"])
def test_embedded_models_bring_a_bank(name, root):
    vit = load_vit(name, device="cpu")
    bank = NullBank.load(vit)
    assert (root / "attnbootreg" / "weights" / "banks" / f"{name}.npz").stat().st_size < 500e3 and NullBank.load(f"{name}.npz") == bank
    assert bank.fitted.card["maps"] == ["mean of heads", "head 0", "head 1"]
    unseen = [image.permute(1, 2, 0).numpy() for image in make_scenes(2, 8_000_000, start=700).images]
    for row in held_out(bank, unseen, vit, n=10):
        assert not row["drawn"] and abs(row["0.05"] - 0.05) < 0.04 and abs(row["0.3"] - 0.3) < 0.1
    errors = left_out(bank)
    assert (errors["error"] < 0.4).all() and (errors["claimed"] > errors["error"] / 2).all()


def test_other_models_bring_none(tiny):
    with pytest.raises(FileNotFoundError, match="vit_tiny_patch16_224 brings none along .*fit one"):
        NullBank.load(tiny)


def test_regularize_with_a_bank(vit, scene, tmp_path):
    bank = NullBank.load(vit)
    image = scene.permute(1, 2, 0).numpy()
    res, drawn = regularize(image, vit, null=bank, recipe="calibrated"), regularize(image, vit, null=200, recipe="calibrated", seed=0)
    assert res.settings["null_source"] == "predicted" and res.null.joint and len(res.null) == 20
    assert res.settings["null"] == {"type": "NullBank", "fitted": str(bank.fitted), "n": 20, "real": 0}
    assert abs(res.sig.p - drawn.sig.p).max() < 0.1 and ((res.sig.p <= 0.05) == (drawn.sig.p <= 0.05)).mean() > 0.95
    assert (res.p_error >= replace(res, sig=replace(res.sig, error=0.0)).p_error).all() and res.sig.error > 0
    assert res.undecided.sum() >= replace(res, sig=replace(res.sig, error=0.0)).undecided.sum()
    assert "20 null maps predicted" in res.plot().get_suptitle()
    res.save(tmp_path / "scene")
    again = Regularized.load(tmp_path / "scene")
    assert (again.sig.error, again.null.source, again.null.error) == (res.sig.error, "predicted", res.null.error)
    np.testing.assert_array_equal(again.p_error, res.p_error)
    several = regularize(image, vit, Attention(heads=(1, "mean")), bank)
    np.testing.assert_array_equal(several.null.values[1], res.null.values)
    assert several[0].null.source == "predicted" and several[0].sig.error == several.sig.error > 0


def test_the_same_everywhere_and_a_value(vit, scene, bank):
    own = NullBank.load(vit)
    x = load_image(scene.permute(1, 2, 0).numpy(), vit)
    again = pickle.loads(pickle.dumps(own))
    assert again == own and hash(again) == hash(own) and own != bank and repr(own).startswith("NullBank(scenes, 128 x 128 px")
    np.testing.assert_array_equal(again.scores(x, vit, MEAN, seed=1).values, own.scores(x, vit, MEAN, seed=2).values)
    assert len(own.scores(x, vit, MEAN)) == 20 and len(replace(own, n=60).scores(x, vit, MEAN)) == 60


def flat_channels():
    "Two channels without variance."
    image = np.full((64, 64, 3), 0.5)
    image[..., 0] = np.random.default_rng(0).random((64, 64))
    return image


STRANGE = {
    "nearly black": np.random.default_rng(1).integers(0, 2, (64, 64, 3)).astype(np.uint8),
    "saturated": (255 - (np.random.default_rng(2).random((64, 64, 3)) < 0.01)).astype(np.uint8),
    "two channels of one value": flat_channels(),
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("which", ["scenes", "tiny"])
def test_it_knows_when_it_does_not_know(name, which, tiny, bank, vit):
    model, own = (tiny, bank) if which == "tiny" else (vit, NullBank.load(vit))
    before = len(own.missed)
    res = regularize(STRANGE[name], model, null=replace(own, n=4), recipe="calibrated", seed=3)
    real = regularize(STRANGE[name], model, null=Null(n=4), recipe="calibrated", seed=3)
    np.testing.assert_array_equal(res.null.values, real.null.values)
    assert res.settings["null_source"].startswith("drawn: the picture's moments") and res.sig.error == 0
    assert len(own.missed) == before + 1 and own.worth(load_image(STRANGE[name], model), model) == 0


def test_it_learns(tiny, bank):
    x = load_image(STRANGE["nearly black"], tiny)
    assert bank.update(tiny, np.empty((0, 6)), progress=False) == bank
    wiser = bank.update(tiny, [STRANGE["nearly black"]], progress=False)
    assert len(wiser.fitted) == 65 and wiser != bank and len(wiser.missed) == 0
    assert wiser.worth(x, tiny) > AT_LEAST and wiser.scores(x, tiny, MEAN).source == "predicted"


def test_masked_pictures_are_drawn(tiny, bank, pictures):
    mask = np.ones((64, 64), bool)
    mask[:32] = False
    missed = len(bank.missed)
    res = regularize(Masked(pictures[0], mask), tiny, null=bank, seed=0)
    assert res.settings["null_source"] == "drawn: null images of a picture with a mask keep a part of it" and len(bank.missed) == missed


def test_a_bank_is_of_one_model_size_and_score(tiny, bank, vit, pictures, scene):
    with pytest.raises(ValueError, match="null: this bank is of a model with other weights .vit_tiny.*and here is scenes"):
        regularize(scene.permute(1, 2, 0).numpy(), vit, null=bank)
    larger = load_vit("vit_tiny_patch16_224", pretrained=False, img_size=96, device="cpu")
    with pytest.raises(ValueError, match="null: this bank is of a model"):
        regularize(pictures[0], larger, null=bank)
    for other in (Attention(layer=0), Attention(heads=1), Score(place)):
        with pytest.raises(ValueError, match="null: this bank is of the score"):
            regularize(pictures[0], tiny, other, null=bank)
    with pytest.raises(ValueError, match="null: this bank is of the score"):
        Study(score=Attention(layer=0), null=bank).check(tiny)
    changed = load_vit("vit_tiny_patch16_224", pretrained=False, img_size=64, device="cpu")
    with torch.no_grad():
        next(changed.model.parameters())[0] += 1
    with pytest.raises(ValueError, match="other weights"):
        bank.check(changed)


def test_files(tmp_path, bank):
    path = bank.save(tmp_path / "bank.npz")
    again = NullBank.load(path)
    assert again == bank and [one.name for one in tmp_path.iterdir()] == ["bank.npz"]
    whole = path.read_bytes()
    for damaged in (whole[:-50], whole[: len(whole) // 2], b"", b"no bank", whole[:3000] + b"x" * 200 + whole[3200:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="path: .*bank.npz' is damaged"):
            NullBank.load(path)
    np.savez(path, image=np.zeros(3))
    with pytest.raises(ValueError, match="is damaged or no bank"):
        NullBank.load(path)
    with pytest.raises(FileNotFoundError, match="path: there is no bank"):
        NullBank.load(tmp_path / "nothing.npz")
    with pytest.raises(ValueError, match="path: a bank is a file that ends in .npz"):
        bank.save(tmp_path / "bank.pt")


def test_bad_values(tiny, bank, pictures):
    for wrong, match in ((dict(n=0), "n: "), (dict(n=5000), "n: the bank keeps 64 null maps"), (dict(real=-1), "real: ")):
        with pytest.raises(ValueError, match=match):
            replace(bank, **wrong)
    for wrong, match in ((dict(points=8), "points: "), (dict(n=1), "n: "), (dict(width=-1), "width: "), (dict(seed=-1), "seed: ")):
        with pytest.raises(ValueError, match=match):
            NullBank.fit(None, tiny, **wrong)
    six = load_vit("scenes", img_size=32, device="cpu")
    with pytest.raises(ValueError, match="score: .*takes its class from the picture"):
        NullBank.fit(None, six, CDAM())


def test_signed_scores_of_several_maps(tiny, pictures):
    score = Score(balance, signed=True, maps=("red", "green"))
    bank = NullBank.fit(pictures, tiny, score, n=6, points=48, progress=False)
    x = load_image(pictures[1], tiny)
    told, drawn = bank.scores(x, tiny, score).values, Null(n=200, groups=1).scores(x, tiny, score, seed=0).values
    assert told.shape == (2, 20, 4, 4) and (told < 0).any()
    np.testing.assert_allclose(
        np.quantile(told, [0.05, 0.5, 0.95], (1, 2, 3)), np.quantile(drawn, [0.05, 0.5, 0.95], (1, 2, 3)), atol=0.35 * drawn.std()
    )
    res = regularize(pictures[1], tiny, score, bank)
    assert res.sig.recipe.alternative == "two-sided" and res.labels == ("red", "green") and (res.p_error > 0).any()


def test_places_are_kept(tiny, pictures):
    "A score that depends on the place: null maps of a bank differ between places as those of null images do."
    score = Score(place)
    bank = NullBank.fit(pictures, tiny, score, n=6, points=48, progress=False)
    x = load_image(pictures[2], tiny)
    told, drawn = bank.scores(x, tiny, score), Null(n=60, groups=1).scores(x, tiny, score, seed=0)
    np.testing.assert_allclose(told.values.mean((0, 2)), drawn.values.mean((0, 2)), atol=0.05)
    by_place = significance(
        place(tiny, x[None])[0].numpy(), told, replace(regularize(pictures[2], tiny, score, 2).sig.recipe, standardize="position")
    )
    assert np.isfinite(by_place.z).all()


def test_real_null_images_correct_it(tiny, bank, pictures):
    x = load_image(pictures[3], tiny)
    assert replace(bank, real=3).worth(x, tiny) == bank.worth(x, tiny)  # of the prediction alone
    before, after = bank.scores(x, tiny, MEAN), replace(bank, real=5).scores(x, tiny, MEAN, seed=0)
    assert after.source == "predicted, corrected by 5 null images" and after.error < before.error
    np.testing.assert_array_equal(
        replace(bank, real=5).scores(x, tiny, MEAN, seed=0, batch_size=2).values.argsort(), after.values.argsort()
    )


def test_a_study_and_the_explorer_take_it(vit, scene, tmp_path):
    bank = NullBank.load(vit)
    run_study("scenes", vit, tmp_path, Study(Noise(), null=[bank, Null(n=2, groups=1)], recipe="calibrated"), limit=2, progress=False)
    rows = load_study(tmp_path)
    assert sorted(set(rows["null"])) == ["bank", "normal"] and len(rows) == 4 and rows["error"].isna().all()
    image = scene.permute(1, 2, 0).numpy()
    lab = Lab(vit, {"scene": image})
    shown = lab.result(View(Run("scene", next(iter(lab.models)), null=bank)))
    ours = regularize(image, vit, null=bank)
    np.testing.assert_array_equal(shown.sig.p, ours.sig.p)
    assert shown.settings["null_source"] == "predicted" and shown.sig.error >= ours.sig.error
    assert attention_scores(load_image(image, vit), vit).shape == ours.scores.shape
