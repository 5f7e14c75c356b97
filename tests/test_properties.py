"What must hold for all scores, tried on many."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attnbootreg import (
    RECIPES, Recipe, attention_share, auroc, coverage, estimate_pi0, familywise_p, find_regions, hommel_bound, inject_noise, local_fdr,
    p_errors, p_intervals, p_values, q_values, roi_percentile, sensitivity, shrink, significance, specificity, square_mask, true_finds,
    upsample,
)  # fmt: skip

POSITION = Recipe(standardize="position")
FAST = settings(max_examples=40, deadline=None)


@st.composite
def attention(draw, rounded=True):
    "Scores (h, w) and null scores (B, h, w), on skewed distributions, often with ties."
    h, w, B = draw(st.integers(5, 9)), draw(st.integers(5, 9)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    signal = draw(st.sampled_from([0.0, 1.0, 3.0]))
    logs = rng.gamma(3, 0.3, (B + 1, h, w))
    logs[0] += signal * (rng.random((h, w)) < 0.2)
    if rounded and draw(st.booleans()):
        logs = np.round(logs, 1)
    return np.exp(logs[0] - 7), np.exp(logs[1:] - 7)


@FAST
@given(attention(), st.sampled_from(sorted(RECIPES)))
def test_everything_is_a_share(case, recipe):
    sig = significance(*case, recipe)
    for values in (sig.p, sig.q, sig.lfdr, np.array(sig.pi0)):
        assert (values >= 0).all() and (values <= 1).all()
    assert (sig.q >= sig.p * sig.pi0 - 1e-12).all()


@FAST
@given(attention(), st.sampled_from(["calibrated", "paper"]))
def test_p_never_rises_with_z(case, recipe):
    sig = significance(*case, recipe)
    order = np.argsort(sig.z, axis=None)
    assert (np.diff(sig.p.ravel()[order]) <= 0).all()


@FAST
@given(attention())
def test_calibrated_lfdr_never_rises_with_z(case):
    sig = significance(*case)
    order = np.argsort(sig.z, axis=None)
    assert (np.diff(sig.lfdr.ravel()[order]) <= 1e-12).all()
    assert sig.p.min() > 0


@FAST
@given(attention(rounded=False), st.floats(0.01, 100))
def test_a_constant_factor_changes_nothing(case, factor):
    one, other = significance(*case), significance(*(factor * values for values in case))
    np.testing.assert_allclose(other.z, one.z, atol=1e-8)
    np.testing.assert_allclose(other.p, one.p, atol=1e-12)


@FAST
@given(attention(rounded=False), st.integers(0, 10**6))
def test_patches_may_change_places(case, seed):
    scores, null = case
    order = np.random.default_rng(seed).permutation(scores.size)
    moved = significance(scores.ravel()[order].reshape(scores.shape), null, "calibrated")
    one = significance(scores, null, "calibrated")
    for name in ("p", "q", "lfdr"):
        np.testing.assert_allclose(getattr(moved, name).ravel(), getattr(one, name).ravel()[order], atol=1e-12)


@FAST
@given(attention(rounded=False))
def test_float32_and_float64_agree_within_a_rank(case):
    half = significance(*(values.astype(np.float32) for values in case))
    assert np.abs(half.p - significance(*case).p).max() <= 2 / case[1].size


@FAST
@given(attention())
def test_p_is_the_count_by_hand(case):
    sig = significance(*case)
    count = (sig.z0.reshape(-1, 1) >= sig.z.ravel()).sum(0)
    np.testing.assert_allclose(sig.p.ravel(), (1 + count) / (1 + sig.z0.size), atol=1e-12)


@FAST
@given(arrays(np.float64, st.integers(2, 80), elements=st.floats(0, 1)))
def test_pi0_and_q_of_any_p(p):
    for method in ("bootstrap", "smoother", "bounded", "released", 0.5):
        assert 0 <= estimate_pi0(p, method) <= 1
    assert estimate_pi0(p, "bounded") <= max(1, hommel_bound(p)) / len(p)
    q = q_values(p, pi0=1)
    assert (q >= p - 1e-12).all() and (np.diff(q[np.argsort(p)]) >= -1e-12).all()


@FAST
@given(attention(), st.sampled_from(["bh", "by", "storey"]), st.sampled_from(["bounded", "bootstrap", "smoother", 0.3]))
def test_choices_change_one_thing_at_a_time(case, q, pi0):
    one, other = significance(*case), significance(*case, Recipe(q_method=q, pi0_method=pi0))
    np.testing.assert_array_equal(one.p, other.p)
    assert other.pi0 == estimate_pi0(one.p, pi0)
    np.testing.assert_array_equal(other.q, q_values(one.p, other.pi0, q))


@FAST
@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_z_by_position_is_free_of_scale_and_order(seed, factor):
    rng = np.random.default_rng(seed)
    scores, null = rng.gamma(3, 1, (5, 7)) + 0.01, rng.gamma(3, 1, (20, 5, 7)) + 0.01
    one = significance(scores, null, POSITION)
    np.testing.assert_allclose(significance(factor * scores, factor * null, POSITION).z, one.z, atol=1e-6)
    order = rng.permutation(35)
    moved = significance(scores.ravel()[order].reshape(5, 7), null.reshape(20, 35)[:, order].reshape(20, 5, 7), POSITION)
    np.testing.assert_allclose(moved.z.ravel(), one.z.ravel()[order], atol=1e-6)


@FAST
@given(arrays(np.float64, st.integers(20, 120), elements=st.floats(0, 1)))
def test_any_p_have_a_local_rate(p):
    rates = local_fdr(-p, -np.linspace(0, 1, 200))
    assert ((0 <= rates) & (rates <= 1)).all() and (np.diff(rates[np.argsort(p)]) >= 0).all()


@FAST
@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1)), st.floats(0.01, 0.5), st.data())
def test_bounds_of_sets(p, alpha, data):
    chosen = data.draw(arrays(bool, len(p)))
    h = hommel_bound(p, alpha)
    survives = [i for i in range(len(p) + 1) if (i * np.sort(p)[len(p) - i :] > np.arange(1, i + 1) * alpha).all()]
    assert h == max(survives)
    assert true_finds(p, np.ones(len(p), bool), alpha) == len(p) - h  # the whole image
    part, rest = true_finds(p, chosen, alpha), true_finds(p, ~chosen, alpha)
    assert 0 <= part <= chosen.sum() and part + rest <= len(p) - h


@pytest.mark.filterwarnings("ignore:sig. with")  # few null images
@FAST
@given(attention(), st.floats(0.02, 0.5))
def test_regions_cover_what_is_significant(case, alpha):
    sig = significance(*case)
    found = find_regions(sig, alpha)
    np.testing.assert_array_equal(found.labels > 0, (sig.p <= alpha) & (sig.z > 0))
    table = found.table
    assert (np.diff(table["patches"]) <= 0).all() and table["patches"].sum() == (found.labels > 0).sum()
    assert table["true_share"].between(0, 1).all() and table["size_p"].between(0, 1).all() and (table["peak_z"] >= table["mean_z"]).all()
    assert (familywise_p(sig) >= 1 / (1 + len(case[1]))).all()


@FAST
@given(attention(), st.sampled_from(sorted(RECIPES)))
def test_intervals_hold_the_estimate(case, recipe):
    sig = significance(*case, recipe)
    if len(sig.z0) < 2:
        return
    low, high = p_intervals(sig.z, sig.z0, recipe=sig.recipe)
    estimate = p_values(sig.z, sig.z0, sig.recipe.alternative, sig.recipe.pool_observed, plus_one=False, strict=sig.recipe.strict)
    assert ((0 <= low) & (low <= estimate + 1e-6) & (estimate <= high + 1e-6) & (high <= 1)).all()
    assert (p_errors(sig.z, sig.z0, sig.recipe) <= 0.5).all()


@FAST
@given(attention(), st.sampled_from(["z", "p", "q", "lfdr", "pi0", "posterior"]), st.sampled_from(sorted(RECIPES)))
def test_shrinking_only_takes_away(case, method, recipe):
    sig = significance(*case, recipe)
    map = shrink(case[0], sig, method)
    assert (map >= 0).all() and (map <= case[0]).all() and not map[sig.z < 0].any()


@FAST
@given(attention(), st.data())
def test_metrics_equal_those_of_pixels(case, data):
    scores, P = case[0], 4
    mask = data.draw(arrays(bool, tuple(side * P for side in scores.shape)))
    if not 0 < mask.sum() < mask.size:
        return
    map = shrink(scores, significance(*case), "p")
    inside = coverage(mask, scores.shape)
    big, big_map = (upsample(torch.from_numpy(values), mask.shape).numpy().astype(np.float64) for values in (scores, map))
    rest = np.sort(big[~mask])
    scores, map = scores.astype(np.float32), map.astype(np.float32)
    assert roi_percentile(map, scores, inside) == pytest.approx(
        np.mean(100 * np.searchsorted(rest, big_map[mask], "left") / len(rest)), abs=1e-6
    )
    assert sensitivity(map, scores, inside) == pytest.approx(1 - big_map[mask].sum() / big[mask].sum(), abs=1e-6)
    assert specificity(map, scores, inside) == pytest.approx(big_map[~mask].sum() / big[~mask].sum(), abs=1e-6)
    above = (big[mask][:, None] > big[~mask]).mean() + 0.5 * (big[mask][:, None] == big[~mask]).mean()
    assert auroc(scores, inside) == pytest.approx(above, abs=1e-6)
    assert attention_share(scores, inside) == pytest.approx(big[mask].sum() / big.sum(), abs=1e-6)


@FAST
@given(st.integers(8, 60), st.integers(8, 60), st.integers(0, 10**6))
def test_noise_stays_in_its_square(h, w, seed):
    mask = square_mask((h, w), seed=seed)
    side = round(min(h, w) * 100 / 488)
    assert mask.sum() == side**2 and mask.any(1).sum() == mask.any(0).sum() == side
    x = torch.rand(3, h, w, generator=torch.Generator().manual_seed(seed))
    noisy = inject_noise(x, mask, seed=seed)
    assert torch.equal(noisy[:, ~mask], x[:, ~mask]) and not torch.equal(noisy, x)
    assert torch.equal(inject_noise(x, mask, seed=seed), noisy)


@FAST
@given(arrays(np.float64, 12, elements=st.floats(-3, 3)), arrays(np.float64, 30, elements=st.floats(-3, 3)))
def test_two_sided_p_does_not_see_the_sign(z, z0):
    np.testing.assert_array_equal(p_values(z, z0, "two-sided"), p_values(-z, -z0, "two-sided"))
