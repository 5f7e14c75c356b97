"Null images in groups: what is redrawn, what stays, and what the p-values are worth."

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.ndimage import gaussian_filter

from attnbootreg import (
    RECIPES, Attention, Null, NullScores, Recipe, attention_scores, familywise_p, familywise_threshold, find_regions, load_image, load_vit,
    make_scenes, p_errors, p_values, q_values, regularize, significance, z_scores,
)  # fmt: skip
from attnbootreg.bootstrap import LOCAL, spread
from attnbootreg.masking import pixels_of


@pytest.fixture(scope="module")
def tiny():
    "A model of 4 x 4 patches."
    return load_vit("vit_tiny_patch16_224", pretrained=False, img_size=64, device="cpu")


def roughness(vit, x):
    "A made-up score: contrast of a patch, and a little of its neighbors'."
    ph, pw = vit.patch_size
    own = x.unfold(2, ph, ph).unfold(3, pw, pw).std((1, 4, 5))
    return own + 0.3 * (own.roll(1, 1) + own.roll(1, 2)) + 0.01


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 30), st.integers(0, 1000), st.data())
def test_every_patch_is_dealt_once_and_evenly(h, w, groups, seed, data):
    tested = np.array(data.draw(st.lists(st.booleans(), min_size=h * w, max_size=h * w))).reshape(h, w)
    tested.flat[0] = True
    groups = min(groups, int(tested.sum()))
    dealt = spread(tested, groups, seed, 0)
    sizes = np.bincount(dealt[tested], minlength=groups)
    assert (dealt[~tested] == -1).all() and len(sizes) == groups and np.ptp(sizes) <= 1
    np.testing.assert_array_equal(dealt, spread(tested, groups, seed, 0))


def test_patches_of_a_group_lie_apart_and_change_with_the_round():
    whole = np.ones((16, 16), bool)
    first, second = spread(whole, 16, 0, 0), spread(whole, 16, 0, 1)
    alike = np.mean([(first[1:] == first[:-1]).mean(), (first[:, 1:] == first[:, :-1]).mean()])
    assert alike < 0.04 and (first == second).mean() < 0.2  # by chance 1/16 of the neighbors would be of one group


@pytest.mark.parametrize("kind", LOCAL)
def test_what_is_kept_stays_and_what_is_redrawn_is_not_used(tiny, scene, kind):
    "An image that differs in one patch alone gives the same null images of that patch."
    x = load_image(scene, tiny)
    other = x.clone()
    other[:, :16, 16:32] = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    null = Null(kind, n=1, groups=16)
    for (image, redrawn), (twin, _), _ in zip(null.images(x, tiny, seed=3), null.images(other, tiny, seed=3), range(16)):
        pixels = pixels_of(torch.from_numpy(redrawn), tiny.patch_size)
        assert redrawn.sum() == 1 and torch.equal(image[:, ~pixels], x[:, ~pixels]) and not torch.equal(image[:, pixels], x[:, pixels])
        assert torch.equal(image, twin) == bool(redrawn[0, 1])


def test_one_patch_at_a_time_is_exact(tiny, scene):
    "Of 5 images whose patch was redrawn alike, the first is the observed one: its p is uniform on 0.2, 0.4, ... 1 (10,000 draws)."
    x, patch = load_image(scene, tiny), np.zeros((4, 4), bool)
    patch[1, 2] = True
    stream = Null(groups=16, keep=~patch).images(x, tiny, seed=0)
    scores = np.concatenate([roughness(tiny, torch.stack([next(stream)[0] for _ in range(1000)]))[:, 1, 2].numpy() for _ in range(10)])
    observed, *draws = scores.reshape(2000, 5).T
    p = (1 + (np.array(draws) >= observed).sum(0)) / 5
    assert stats.chisquare(np.bincount(np.rint(5 * p).astype(int), minlength=6)[1:]).pvalue > 0.001


def test_a_draw_takes_each_patch_from_the_image_that_redrew_it(vit, scene):
    x, null = load_image(scene, vit), Null(groups=7, n=2)
    draws = null.scores(x, vit, Attention(), seed=4)
    want, images = np.empty((2, *vit.grid)), null.images(x, vit, seed=4)
    for b in range(2):
        for _ in range(7):
            image, redrawn = next(images)
            want[b, redrawn] = attention_scores(image, vit).numpy()[redrawn]
    np.testing.assert_allclose(draws.values, want, rtol=1e-5)
    assert not draws.joint and null.passes(vit) == 14
    for size in (1, 5, 64):
        np.testing.assert_allclose(null.scores(x, vit, Attention(), seed=4, batch_size=size).values, draws.values, rtol=1e-5)


def test_several_maps_and_parts_of_a_picture(vit, scene):
    mask = np.ones(vit.grid, bool)
    mask[:, :5] = False
    x, heads = load_image(scene, vit), Attention(heads="each")
    null = Null(groups=16, n=2, keep=np.eye(16) > 0)
    draws = null.scores(x, vit, heads, mask=mask, seed=0)
    assert draws.shape == (2, 2, 16, 16) and np.isfinite(draws.values).all()
    tested = null.tested(vit, mask)
    assert all((redrawn <= tested).all() for (_, redrawn), _ in zip(null.images(x, vit, mask=mask, seed=0), range(32)))


def test_more_groups_than_patches_redraw_one_at_a_time(tiny, scene):
    assert Null(groups=1000, n=2).passes(tiny) == 32
    assert regularize(scene, tiny, null=Null(groups=1000, n=2), seed=0, progress=False).null.shape == (2, 4, 4)


def test_auto_adds_rounds(vit, scene):
    res = regularize(scene, vit, null=Null(groups=16, n="auto", n_max=20), seed=0, progress=False)
    assert len(res.null) % 4 == 0 and 4 <= len(res.null) <= 20 and not res.null.joint


def test_the_recipe_brings_its_groups(vit, scene, tmp_path):
    res = regularize(scene, vit, recipe="conditional", seed=0, progress=False)
    assert (
        res.null.shape == (4, 16, 16)
        and not res.null.joint
        and not res.sig.joint
        and "4 draws in 16 groups" in res.plot()._suptitle.get_text()
    )
    res.save(tmp_path / "a")
    assert not type(res).load(tmp_path / "a").sig.joint
    assert regularize(scene, vit, recipe="conditional", null=Null(groups=1), seed=0, progress=False).null.joint


def test_statements_about_whole_images_are_refused(vit, scene):
    sig = regularize(scene, vit, recipe="conditional", seed=0, progress=False).sig
    for refused in (familywise_p, familywise_threshold):
        with pytest.raises(ValueError, match="Null\\(groups=1\\)"):
            refused(sig)
    assert "size_p" not in find_regions(sig).table and find_regions(sig).table["true_share"].iloc[0] > 0


# ---- statistics


def lognormal(seed, tau, B):
    "Scores and B null scores of 16 x 16 patches whose means differ with standard deviation tau."
    rng = np.random.default_rng(seed)
    places = rng.normal(0, tau, (16, 16))
    return places, np.exp(places + 0.6 * rng.normal(size=(16, 16))), np.exp(places + 0.6 * rng.normal(size=(B, 16, 16)))


@pytest.mark.parametrize("tau", [0, 0.3, 2])
def test_strong_places_are_no_finds(tau):
    rates = []
    for seed in range(200):
        places, scores, null = lognormal(seed, tau, 3)
        p = significance(scores, null, "conditional").p
        strong = places >= np.quantile(places, 0.9) if tau else np.ones(p.shape, bool)
        rates.append([(p <= 0.05).mean(), (p[strong] <= 0.05).mean()])
    everywhere, at_strong = np.mean(rates, 0)
    assert abs(everywhere - 0.05) < 0.005
    assert at_strong < {0: 0.055, 0.3: 0.14, 2: 0.075}[tau]  # pooled: 0.05, 0.17 and 0.46; small differences are not seen in 3 draws


def test_shrunken_by_hand():
    _, scores, null = lognormal(0, 0.5, 4)
    y, y0 = np.log(scores), np.log(null)
    within = y0.var(0, ddof=1).mean()
    between = y0.mean(0).var(ddof=1) - within / 4
    weight = between / (between + within / 4)
    center = y0.mean() + weight * (y0.mean(0) - y0.mean())
    z, z0 = z_scores(scores, null, standardize="shrunken")
    np.testing.assert_allclose(z, (y - center) / np.sqrt(within + between * (1 - weight)), rtol=1e-10)
    assert abs(z0.std() - 1) < 0.1 and abs(z.std() - 1) < 0.15
    pooled = z_scores(scores, null[:1], standardize="shrunken")[0]  # a single draw
    np.testing.assert_array_equal(pooled, z_scores(scores, null[:1])[0])


def test_draws_that_are_all_alike_are_refused():
    same = np.repeat(np.random.default_rng(0).random((1, 4, 4)) + 0.1, 3, 0)
    with pytest.raises(ValueError, match="all draws are alike"):
        z_scores(same[0], same, standardize="shrunken")


@pytest.mark.parametrize("tau", [0, 1])
def test_error_of_p_with_shrunken_centers(tau):
    places, scores, _ = lognormal(0, tau, 2)
    rng, recipe, p, errors = np.random.default_rng(1), Recipe(standardize="shrunken"), [], []
    for _ in range(200):
        sig = significance(scores, np.exp(places + 0.6 * rng.normal(size=(6, 16, 16))), recipe)
        p.append(sig.p)
        errors.append(p_errors(sig.z, sig.z0, recipe))
    assert 0.75 < np.sqrt(np.square(errors).mean()) / np.sqrt(np.var(p, 0).mean()) < 1.3


def test_discarding_by_hand():
    p = np.random.default_rng(0).random((5, 5)) ** 2
    small = np.sort(p[p <= 0.2] / 0.2)
    by_hand = [min(len(small) * small[j] / (j + 1) for j in range(i, len(small))) for i in range(len(small))]
    q = q_values(p, method="discarding")
    np.testing.assert_allclose(np.sort(q[p <= 0.2]), np.minimum(by_hand, 1))
    assert (q[p > 0.2] == 1).all()
    assert (q_values(np.full(4, 0.5), method="discarding") == 1).all()


@pytest.mark.parametrize("smooth", [0, 1, 2])
@pytest.mark.parametrize("signal", [0, 3])
def test_discarding_holds_its_rate_on_correlated_noise(smooth, signal):
    "A tenth of the patches holds signal; the noise of neighbors is alike."
    rng, shares = np.random.default_rng(7), []
    thing = np.zeros((16, 16), bool)
    thing[4:9, 5:10] = True
    for _ in range(400):
        noise = gaussian_filter(rng.normal(size=(16, 16)), smooth, mode="wrap")
        z = noise / noise.std() + signal * thing
        found = q_values(stats.norm.sf(z), method="discarding") <= 0.1
        shares.append((found & ~(thing & (signal > 0))).sum() / max(1, found.sum()))
    assert np.mean(shares) <= 0.1 + 2.5 * np.std(shares) / np.sqrt(len(shares))


def test_conditional_differs_from_calibrated_in_three_choices():
    one, other = RECIPES["calibrated"], RECIPES["conditional"]
    assert other == Recipe(standardize="shrunken", q_method="bh", groups=16) != one
    z = np.linspace(-2, 2, 9)
    np.testing.assert_array_equal(p_values(z, z, one.alternative or "greater"), p_values(z, z, other.alternative or "greater"))


def test_a_picture_of_one_patch_is_redrawn_from_itself():
    vit = load_vit("vit_tiny_patch16_224", pretrained=False, img_size=16, device="cpu")
    x = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert np.isfinite(Null(groups=16, n=2).scores(x, vit, Attention(), seed=0).values).all()


def test_a_model_with_strong_places():
    "Position embeddings 15 times as large: some places get more attention in any noise, and are no finds where they are shrunken toward their own."
    model = copy.deepcopy(load_vit("scenes-plain", device="cpu").model)
    with torch.no_grad():
        model.pos_embed[:, 1:] *= 15
    strong = load_vit(model, img_size=128, device="cpu")
    noise = [torch.randn(3, *strong.img_size, generator=torch.Generator().manual_seed(i)) for i in range(24)]
    scores = np.stack([attention_scores(x, strong).numpy() for x in noise])
    mean = np.log(scores[6:]).mean(0)  # places are chosen on other images than those that are tested
    top, rate = mean >= np.quantile(mean, 0.9), {}
    draws = [Null(n=3, groups=16).scores(x, strong, Attention(), seed=i) for i, x in enumerate(noise[:6])]
    for way in ("pooled", "shrunken"):
        p = np.stack([significance(*case, Recipe(standardize=way)).p for case in zip(scores, draws)])
        rate[way] = (p <= 0.05)[:, top].mean()
    assert rate["pooled"] > 0.15 and rate["shrunken"] < rate["pooled"] / 2


def test_sizes_of_regions_need_nineteen_draws(vit):
    "Clusters of draws in groups are put together from several images; from 19 draws on a size can be significant, and is told."
    x = load_image(make_scenes(1, seed=21).images[0], vit)
    scores = attention_scores(x, vit).numpy()
    draws = Null(n=19, groups=16).scores(x, vit, Attention(), seed=0)
    table = find_regions(significance(scores, draws)).table
    assert table["size_p"].iloc[0] == 1 / 20 and table["size_p"].is_monotonic_increasing
    assert "size_p" not in find_regions(significance(scores, NullScores(draws.values[:18], joint=False))).table
