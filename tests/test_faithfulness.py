"Faithfulness of a mask: the numbers of a computation by hand, predictors whose answer is known, and bad input."

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import VisionTransformer

from attnbootreg import CDAM, Faithfulness, bootstrap_images, faithfulness, load_vit, perturb
from attnbootreg.masking import visible_tokens

GRID = (4, 4)


@pytest.fixture(scope="module")
def vit():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=5, reg_tokens=2)
        torch.nn.init.normal_(model.head.weight, std=0.5)
    return load_vit(model, device="cpu")


def image(seed, n=None):
    return torch.randn(*(() if n is None else (n,)), 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def mask(*patches):
    keep = np.zeros(GRID, bool)
    keep.flat[list(patches)] = True
    return keep


def pixels(keep):
    return torch.from_numpy(np.kron(keep, np.ones((8, 8), bool)))


@pytest.mark.parametrize("kind", ["noise", "blur", "others"])
def test_equals_a_computation_by_hand(vit, kind):
    x, keep = image(1), mask(0, 5, 6, 9)
    others = image(2, 3)
    if kind == "noise":
        replacements = bootstrap_images(x, 3, seed=7)  # each channel normal, with its mean and standard deviation in x
        result = faithfulness(x, keep, vit, n=3, seed=7)
    elif kind == "blur":  # a Gaussian of 2 px, 13 px wide, with mirrored edges
        weights = torch.exp(-(torch.arange(-6.0, 7) ** 2) / 8)
        weights /= weights.sum()
        padded = torch.nn.functional.pad(x[None], (6, 6, 6, 6), mode="reflect")[0]
        replacements = torch.einsum("chwab,a,b->chw", padded.unfold(1, 13, 1).unfold(2, 13, 1), weights, weights)[None]
        result = faithfulness(x, keep, vit, replace="blur")
    else:
        replacements = others
        result = faithfulness(x, keep, vit, replace=others)
    inside = pixels(keep)
    with torch.inference_mode():
        whole = vit.model(x[None]).softmax(-1)[0]
        alone = torch.stack([vit.model((x * inside + other * ~inside)[None])[0] for other in replacements]).softmax(-1)
        missing = torch.stack([vit.model((x * ~inside + other * inside)[None])[0] for other in replacements]).softmax(-1)
    c = int(whole.argmax())
    assert result.target == c and result.share == 4 / 16
    np.testing.assert_allclose(result.whole, whole[c], atol=1e-5)
    np.testing.assert_allclose(result.alone, alone[:, c], atol=1e-5)
    np.testing.assert_allclose(result.missing, missing[:, c], atol=1e-5)
    np.testing.assert_array_equal(result.predicted, alone.argmax(1))
    assert result.sufficiency == pytest.approx(float(whole[c] - alone[:, c].mean()), abs=1e-5)
    assert result.comprehensiveness == pytest.approx(float(whole[c] - missing[:, c].mean()), abs=1e-5)
    assert result.changed == pytest.approx(float((alone.argmax(1) != c).double().mean()))
    assert result.shift == pytest.approx(float((alone[:, c] - whole[c]).abs().mean()), abs=1e-5)


def test_counts_and_means_of_known_probabilities():
    told = Faithfulness(1, 0.6, np.array([0.8, 0.4, 0.6]), np.array([0.1, 0.2, 0.6]), np.array([1, 0, 2]), 0.5)
    assert told.changed == pytest.approx(2 / 3) and told.shift == pytest.approx(0.4 / 3)
    assert told.sufficiency == pytest.approx(0) and told.comprehensiveness == pytest.approx(0.3)


def patch_reader(patch, scale=20.0):
    "Logits of three classes from the mean color of one patch."
    top, left = 8 * (patch // 4), 8 * (patch % 4)
    return lambda images: scale * images[:, :, top : top + 8, left : left + 8].mean((2, 3))


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, 15), min_size=1), st.integers(0, 15), st.integers(0, 100))
def test_a_reader_of_one_patch_depends_on_it_and_on_nothing_else(vit, kept, patch, seed):
    x, keep, others = image(seed), mask(*kept), image(seed + 1, 4)
    result = faithfulness(x, keep, vit, replace=others, predict=patch_reader(patch))
    probabilities = (20 * torch.stack([one.reshape(3, 4, 8, 4, 8).mean((2, 4)).flatten(1)[:, patch] for one in (x, *others)])).softmax(-1)
    c = int(probabilities[0].argmax())
    seen, replaced = (result.alone, result.missing) if patch in kept else (result.missing, result.alone)
    assert result.target == c
    np.testing.assert_allclose(seen, result.whole, atol=1e-5)  # that side holds the patch
    np.testing.assert_allclose(replaced, probabilities[1:, c], atol=1e-4)  # and this one has the other picture's
    assert result.changed == (0 if patch in kept else float((probabilities[1:].argmax(1) != c).double().mean()))


def test_a_predictor_that_drops_the_rest_is_faithful_whatever_stands_there(vit):
    x, keep = image(3), mask(1, 2, 6)
    numbers = torch.from_numpy(np.flatnonzero(keep))

    def predict(images):
        return vit.model.forward_head(visible_tokens(vit.model, images, numbers.expand(len(images), -1)))

    for how in ("noise", "blur", 100 * image(4, 5)):
        masked = faithfulness(x, keep, vit, replace=how, predict=predict)
        assert masked.changed == 0 and masked.shift < 1e-6 and abs(masked.sufficiency) < 1e-6
    assert masked.comprehensiveness != 0
    assert faithfulness(x, keep, vit, replace=100 * image(4, 5)).shift > 1e-3  # the whole model does see it


def test_all_kept_replaces_nothing_and_the_rest_is_the_complement(vit):
    x, others = image(5), image(6, 3)
    full = faithfulness(x, np.ones(GRID, bool), vit, replace=others)
    assert full.changed == 0 and full.shift < 1e-6 and full.share == 1
    keep = mask(0, 1, 2)
    one, other = (faithfulness(x, torch.from_numpy(k), vit, replace=others) for k in (keep, ~keep))
    np.testing.assert_allclose(one.missing, other.alone, atol=1e-6)
    assert one.share + other.share == 1


def test_the_blur_is_that_of_deletion(vit):
    "With the top patch gone, deletion's second point is `missing` of a mask of that patch."
    x, scores = image(7), np.arange(16.0).reshape(GRID)
    curve = perturb(x, scores, vit, steps=16)
    result = faithfulness(x, scores == 15, vit, replace="blur")
    assert result.target == curve.target
    assert result.missing[0] == pytest.approx(curve.deletion[1], abs=1e-5)
    assert result.alone[0] == pytest.approx(curve.insertion[1], abs=1e-5)


def test_seeds(vit):
    x, keep = image(8), mask(3, 4)
    state = torch.get_rng_state()
    first, again, other = (faithfulness(x, keep, vit, n=4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(first.alone, again.alone)
    assert not np.array_equal(first.alone, other.alone)
    np.testing.assert_allclose(faithfulness(x, keep, vit, n=2).alone, first.alone[:2], atol=1e-6)  # more draws, the same first ones
    pictures = image(9, 6)
    every = faithfulness(x, keep, vit, replace=pictures)
    some = faithfulness(x, keep, vit, replace=pictures, n=3, seed=2)
    assert len(every.alone) == 6 and len(some.alone) == 3
    assert all(np.isclose(every.alone, value, atol=1e-6).any() for value in some.alone)
    assert len(faithfulness(x, keep, vit).alone) == 16


def test_a_predictor_may_take_gradients(vit):
    "A first stage that is a map of a class needs them, and `predict` is called where they can be turned on."
    score, x = CDAM(target=1), image(10)

    def two_stages(images):
        maps = torch.as_tensor(score(vit, images.clone()))
        strongest = (maps >= maps.flatten(1).quantile(0.75, 1)[:, None, None]).float()
        return vit.model(images * torch.nn.functional.interpolate(strongest[:, None], scale_factor=8))

    result = faithfulness(x, mask(0, 1), vit, n=2, predict=two_stages)
    assert np.isfinite([*result.alone, *result.missing]).all()


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(keep=np.zeros(GRID, bool)), "keep: no patch is kept"),
        (dict(keep=np.ones((3, 4), bool)), r"keep: .*grid, \(4, 4\); got \(3, 4\)"),
        (dict(keep=np.ones(GRID)), "keep: expected True and False"),
        (dict(x=image(0)[:, :24]), r"x: 24 x 32 px is not the size of the model's images, \(32, 32\)"),
        (dict(x=image(0, 2)), "x: expected one image"),
        (dict(replace=image(0, 2)[..., :24]), "replace: expected other pictures"),
        (dict(replace=image(0)), "replace: expected other pictures"),
        (dict(replace=image(0, 2)[:0]), "replace: holds no picture"),
        (dict(replace=image(0, 2) * torch.nan), "replace: holds no picture, or NaN"),
        (dict(replace=image(0, 2), n=3), "n: 3 other pictures are asked for, and replace holds 2"),
        (dict(replace="nois"), "replace: there is no 'nois'; did you mean 'noise'"),
        (dict(replace="blur", n=2), "n: there is one blur"),
        (dict(n=0), "n: must be a whole number of at least 1"),
        (dict(predict=lambda images: images.mean((1, 2, 3))), r"predict: expected logits \(5, classes\) for 5 images, got \(5,\)"),
        (dict(predict=lambda images: "dog"), "predict: .*got str"),
    ],
)
def test_bad_input_says_what_is_wrong(vit, change, words):
    given = dict(x=image(0), keep=mask(0, 1), n=2) | ({"n": None} if "replace" in change else {}) | change
    with pytest.raises(ValueError, match=words):
        faithfulness(given.pop("x"), given.pop("keep"), vit, **given)


def test_a_model_without_a_head_needs_predict(vit):
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3, num_classes=0)
    headless = replace(load_vit(model, device="cpu"), name="mine")
    with pytest.raises(ValueError, match="vit: the model has no head for classes"):
        faithfulness(image(0), mask(0), headless)
    assert faithfulness(image(0), mask(0), headless, n=2, predict=patch_reader(0)).changed == 0
