"Scores of any kind go the whole way: positive or signed, with exact zeros, one map or several; and the attention of many models."

import pickle
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import VisionTransformer
from torch import nn

from attnbootreg import (
    RECIPES, Cuts, Masked, Null, Recipe, Regularized, Score, attention_share, auroc, coverage, familywise_p,
    find_regions, load_vit, p_errors, regularize, significance, suppression_factor, tradeoff, undecided,
)  # fmt: skip
from attnbootreg.metrics import roi_metrics
from attnbootreg.scores import import_score
from attnbootreg.shrinkage import shrink_all
from attnbootreg.simulation import square_mask

FAST = settings(max_examples=40, deadline=None)
SIGNED = Recipe(scale="linear", alternative="two-sided", tail="both")
SMALL = 1e-4  # of a saliency, which is taken for zero

# ---- scores as a user writes them


def sharpened(model):
    "Random weights, whose attention is far from even."
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and re.search(r"\b(qkv|q_proj|k_proj|in_proj|kv)\.weight", name):
                weight.mul_(6)
            elif "bias_table" in name:
                weight.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def vit():
    "A small model, on whose scores nothing depends here but the time that they take."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = sharpened(VisionTransformer(img_size=64, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5))
        for weight in (model.norm.weight, model.head.weight):
            nn.init.normal_(weight)
    return load_vit(model, device="cpu")


def token_norm(vit, x):
    "The norm of each patch's embedding."
    with torch.inference_mode():
        tokens = vit.model.forward_features(x.to(vit.device, vit.dtype))[:, vit.prefix :]
    return tokens.norm(dim=-1).unflatten(1, vit.grid)


def saliency(vit, x):
    "Gradient times input of the class that wins, summed over each patch; small values are zero."
    x = x.clone().requires_grad_()
    vit.model(x).amax(1).sum().backward()
    return F.softshrink(F.avg_pool2d((x.grad * x.detach()).sum(1), vit.patch_size), SMALL)


def both(vit, x):
    return torch.stack([token_norm(vit, x) - 7, saliency(vit, x)], 1)


SCORES = {
    "a function": token_norm,
    "positive": Score(token_norm, scale="log"),
    "signed": Score(saliency, signed=True),
    "two maps": Score(both, signed=True, maps=("norm", "saliency")),
}
pytestmark = pytest.mark.filterwarnings(  # scores with many ties have no smooth density, and small grids no density at all
    "ignore:z. the Poisson fit failed", "ignore:The design matrix is rank-deficient", "ignore:p. .* scores are too few", "ignore:sig. with"
)


@pytest.mark.parametrize("recipe", list(RECIPES))
@pytest.mark.parametrize("name", list(SCORES))
def test_from_the_image_to_the_file(tmp_path, vit, scene, name, recipe):
    score = SCORES[name]
    res = regularize(scene, vit, score, 5, recipe, Cuts(p=0.1), seed=0, batch_size=2)
    shape = (2, *vit.grid) if name == "two maps" else vit.grid
    signed = name in ("signed", "two maps")
    assert res.scores.shape == shape and np.asarray(res.null).shape == (*shape[:-2], 5, *shape[-2:]) and len(res) == len(shape) - 1
    assert ((res.scores < 0).any(), (np.asarray(res.null) < 0).any()) == (signed, signed)
    used = res.sig.recipe
    assert used.scale == ("log" if name == "positive" else "linear")
    assert used.alternative == ("two-sided" if signed or recipe == "released" else "greater")
    assert used.tail == ("both" if signed and recipe != "released" else "upper")
    for map in res.maps.values():
        assert ((map == 0) | (np.sign(map) == np.sign(res.scores))).all() and (np.abs(map) <= np.abs(res.scores)).all()
    for values in (res.sig.p, res.sig.q, res.sig.lfdr):
        assert ((0 <= values) & (values <= 1)).all()
    assert res.p_error.shape == res.undecided.shape == shape and (res.p_error >= 0).all()
    table = res.summary()
    assert list(table.index) == (["norm", "saliency"] if name == "two maps" else ["scores", *res.maps])
    assert table.filter(like="kept").stack().between(0, 1 + 1e-6).all()
    res.save(tmp_path / "scene")
    again = Regularized.load(tmp_path / "scene")
    assert again.settings == res.settings and again.sig.recipe == used and (tmp_path / "scene.png").read_bytes().startswith(b"\x89PNG")
    np.testing.assert_array_equal(again.scores, res.scores)
    np.testing.assert_array_equal(again.undecided, res.undecided)


def test_exact_zeros_are_there_and_stay_zero(vit, scene):
    res = regularize(scene, vit, SCORES["signed"], recipe="calibrated", seed=0)
    zero = res.scores == 0
    assert 0.02 < zero.mean() < 0.9 and 0.02 < (np.asarray(res.null) == 0).mean() < 0.9
    assert len(set(res.sig.p[zero])) == 1 and not any(map[zero].any() for map in res.maps.values())
    assert (res.maps["p"] > 0).any() and (res.maps["p"] < 0).any()  # both signs can be found


def test_the_same_score_however_it_is_given(vit, scene):
    named = import_score(f"{__name__}:token_norm")
    ways = (token_norm, Score(token_norm), named, pickle.loads(pickle.dumps(named)))
    results = [regularize(scene, vit, score, Null(n=2, groups=1), seed=0) for score in ways]
    for res in results[1:]:
        assert res.settings == results[0].settings and res.settings["score"]["function"] == "test_scores:token_norm"
        np.testing.assert_array_equal(res.sig.p, results[0].sig.p)


def test_maps_of_one_score_are_judged_as_they_are_alone(vit, scene):
    together = regularize(scene, vit, SCORES["two maps"], 5, "calibrated", seed=0, batch_size=2)
    for j, one in enumerate(together):
        alone = regularize(scene, vit, Score(lambda vit, x, j=j: both(vit, x)[:, j], signed=True), 5, "calibrated", seed=0, batch_size=2)
        for name in ("z", "z0", "p", "q", "lfdr", "pi0"):
            np.testing.assert_array_equal(getattr(one.sig, name), getattr(alone.sig, name))
        for name, map in alone.maps.items():
            np.testing.assert_array_equal(one.maps[name], map)
        np.testing.assert_array_equal(together.p_error[j], alone.p_error)
        assert (familywise_p(together.sig)[j] >= familywise_p(alone.sig)).all()  # a statement about both maps costs something
        assert one.settings["map"] == ("norm", "saliency")[j]


@pytest.mark.parametrize("name", ["positive", "signed"])
def test_regions_and_errors(vit, scene, name):
    res = regularize(scene, vit, SCORES[name], 19, "calibrated", seed=0)
    sig, found = res.sig, find_regions(res.sig)
    significant = sig.p <= 0.05
    np.testing.assert_array_equal(found.labels > 0, significant & ((sig.z > 0) | (name == "signed") & (sig.z < 0)))
    for number, region in found.table.iterrows():
        z = sig.z[found.labels == number]
        assert len(set(np.sign(z))) == 1 and region["peak_z"] == z[np.abs(z).argmax()] and region["patches"] == z.size
    assert found.table["size_p"].between(1 / 20, 1).all() and found.table["true_share"].between(0, 1).all()
    assert found.plot(res.image).to_png()
    p, size = familywise_p(sig), np.abs(sig.z) if name == "signed" else sig.z
    assert p.flat[size.argmax()] == p.min() and (np.diff(p.ravel()[size.argsort(axis=None)]) <= 0).all()
    np.testing.assert_array_equal(res.p_error, p_errors(sig.z, sig.z0, sig.recipe))
    np.testing.assert_array_equal(res.undecided, undecided(sig.z, sig.z0, 0.3, recipe=sig.recipe))


@pytest.mark.parametrize("name", list(SCORES))
def test_automatic_number_of_null_images(vit, name):
    pure = np.random.default_rng(0).random((64, 64, 3))
    res = regularize(pure, vit, SCORES[name], Null(n="auto", n_max=40), cuts=Cuts(p=0.1), seed=0)
    assert len(res.null) == 40 or res.undecided.mean() <= 0.02
    fixed = regularize(pure, vit, SCORES[name], len(res.null), cuts=Cuts(p=0.1), seed=0)
    np.testing.assert_allclose(fixed.null, res.null, rtol=1e-3, atol=1e-5)


def test_metrics_of_signed_maps_are_those_of_their_sizes(vit, scene):
    inside = coverage(square_mask(vit.img_size, seed=0), vit.grid)
    res = regularize(scene, vit, SCORES["signed"], Null(n=5, groups=1), seed=0)
    before, after = [], []
    for map in res.maps.values():
        one, size = (roi_metrics(*values, inside) for values in ((map, res.scores), (np.abs(map), np.abs(res.scores))))
        assert one == size and 0 <= one["percentile"] <= 100 and 0 <= one["specificity"] <= 1 + 1e-6
        assert attention_share(map, inside) == attention_share(np.abs(map), inside)
        before.append(roi_metrics(res.scores, res.scores, inside)["percentile"])
        after.append(one["percentile"])
        assert 0 <= auroc(map, inside) <= 1
    assert (np.array(after) <= np.array(before) + 1e-9).all()
    assert 0 <= suppression_factor(np.array(before), np.array(after))[0] <= 1
    for method in ("p", "q", "lfdr"):
        curve = tradeoff(res.scores, res.sig, inside, method)
        assert (np.diff(curve.sensitivity) <= 1e-12).all() and (np.diff(curve.specificity) >= -1e-12).all() and 0 <= curve.area <= 1


@pytest.mark.parametrize("name", ["signed", "two maps", "positive"])
def test_null_scores_do_not_depend_on_the_batch_size(vit, scene, name):
    one, other = (np.asarray(regularize(scene, vit, SCORES[name], Null(n=5, groups=1), seed=0, batch_size=size).null) for size in (1, 4))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def patch_brightness(vit, x):
    return F.avg_pool2d(x.mean(1), vit.patch_size)


@pytest.mark.parametrize("kind", ["normal", "pixel", "patch", "uniform", "gaussian_color"])
def test_what_is_masked_out_does_not_matter(vit, scene, kind):
    belongs, score = np.zeros((64, 64), bool), Score(patch_brightness, signed=True)
    belongs[8:56, 16:] = True
    results = []
    for filling in (0.0, 1.0):
        picture = torch.where(torch.from_numpy(belongs), F.avg_pool2d(scene, 2), filling)
        results.append(regularize(Masked(picture, belongs), vit, score, Null(kind, n=5), seed=0))
    one, other = results
    np.testing.assert_array_equal(one.sig.tested, belongs[::8, ::8])
    for name in ("z", "z0", "p", "q", "lfdr", "pi0"):
        np.testing.assert_allclose(getattr(one.sig, name), getattr(other.sig, name), rtol=1e-4, atol=1e-4)
    for name, map in one.maps.items():
        assert not map[~one.sig.tested].any() and (map[one.sig.tested] != 0).sum() == (other.maps[name] != 0).sum()


# ---- what must hold for all signed scores


@st.composite
def signed_maps(draw, rounded=True):
    "Signed scores (h, w) and null scores (B, h, w), often with exact zeros and other ties."
    h, w, B = draw(st.integers(5, 9)), draw(st.integers(5, 9)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    values = rng.standard_t(4, (B + 1, h, w)) + draw(st.sampled_from([0.0, 0.3]))
    values[0] += draw(st.sampled_from([0.0, 3.0])) * rng.choice([-1, 0, 0, 0, 1], (h, w))
    if draw(st.booleans()):
        values[np.abs(values) < 0.5] = 0
    if rounded and draw(st.booleans()):
        values = np.round(values, 1)
    return values[0], values[1:]


def parts(labels):
    "Regions without their numbers, which depend on the order of regions of one size."
    return {frozenset(np.flatnonzero(labels == number)) for number in range(1, labels.max() + 1)}


@FAST
@given(
    signed_maps(),
    st.sampled_from([Recipe(), Recipe(q_method="by"), Recipe(pi0_method="smoother", strict=True), Recipe(pool_observed=True)]),
)
def test_mirrored_maps_give_mirrored_results(case, recipe):
    recipe = recipe.resolved("linear", signed=True)
    one, other = significance(*case, recipe), significance(*(-values for values in case), recipe)
    np.testing.assert_array_equal(other.z, -one.z)
    for name in ("p", "q", "lfdr", "pi0"):
        np.testing.assert_array_equal(getattr(other, name), getattr(one, name))
    for name, map in shrink_all(case[0], one).items():
        np.testing.assert_array_equal(shrink_all(-case[0], other)[name], -map)
    np.testing.assert_array_equal(familywise_p(other), familywise_p(one))
    np.testing.assert_array_equal(p_errors(other.z, other.z0, recipe), p_errors(one.z, one.z0, recipe))
    np.testing.assert_array_equal(undecided(other.z, other.z0, 0.3, recipe=recipe), undecided(one.z, one.z0, 0.3, recipe=recipe))
    regions = find_regions(one, 0.2), find_regions(other, 0.2)
    assert parts(regions[0].labels) == parts(regions[1].labels)
    columns = ["patches", "peak_z", "size_p", "true_share"]
    np.testing.assert_allclose(*(sorted(found.table[columns].abs().to_numpy().tolist()) for found in regions))


@FAST
@given(st.lists(signed_maps(), min_size=2, max_size=2), st.sampled_from([RECIPES["calibrated"], RECIPES["released"], SIGNED]))
def test_maps_judged_together_are_maps_judged_alone(cases, recipe):
    B, h, w = (min(sizes) for sizes in zip(*(null.shape for _, null in cases)))
    maps, nulls = np.stack([scores[:h, :w] for scores, _ in cases]), np.stack([null[:B, :h, :w] for _, null in cases])
    recipe = recipe.resolved("linear", signed=False)
    together = significance(maps, nulls, recipe)
    shrunken = shrink_all(maps, together)
    for j in range(2):
        alone = significance(maps[j], nulls[j], recipe)
        for name in ("z", "z0", "p", "q", "lfdr", "pi0"):
            np.testing.assert_array_equal(getattr(together[j], name), getattr(alone, name))
        for name, map in shrink_all(maps[j], alone).items():
            np.testing.assert_array_equal(shrunken[name][j], map)
        assert (familywise_p(together)[j] >= familywise_p(alone)).all()


@FAST
@given(
    signed_maps(rounded=False),
    st.data(),
    st.sampled_from([Recipe(), SIGNED, Recipe(pi0_method="bootstrap", pool_observed=True, pi0_cut="percentile")]),
)
def test_a_mask_is_a_cut(case, data, recipe):
    scores, null = case
    top, left = (data.draw(st.integers(0, side - 4)) for side in scores.shape)
    rows, columns = (slice(start, data.draw(st.integers(start + 3, side))) for start, side in zip((top, left), scores.shape))
    mask = np.zeros(scores.shape, bool)
    mask[rows, columns] = True
    recipe = recipe.resolved("linear")
    if null[:, mask].std() < 1e-6:
        return
    part, cut = significance(scores, null, recipe, mask), significance(scores[rows, columns], null[:, rows, columns], recipe)
    for name in ("z", "z0"):
        np.testing.assert_allclose(getattr(part, name)[..., rows, columns], getattr(cut, name), atol=1e-9)
    for name in ("p", "q", "lfdr"):
        np.testing.assert_allclose(getattr(part, name)[rows, columns], getattr(cut, name), atol=1e-9)
    assert part.pi0 == pytest.approx(cut.pi0, abs=1e-9) and np.isnan(part.p[~mask]).all()
    for name, map in shrink_all(scores, part).items():
        np.testing.assert_allclose(map[rows, columns], shrink_all(scores[rows, columns], cut)[name], atol=1e-9)
        assert not map[~mask].any()
    np.testing.assert_allclose(familywise_p(part)[rows, columns], familywise_p(cut), atol=1e-12)
