"Agreement with the authors' released code and with R's qvalue, on stored numbers."

import numpy as np
import pytest
from scipy import stats

from attnbootreg import (
    coverage, estimate_pi0, local_fdr, q_values, roi_nonzero, roi_percentile, sensitivity, shrink, significance, specificity, srmsd,
    suppression_factor,
)  # fmt: skip


@pytest.fixture(params="abc")
def case(request, data):
    return np.load(data / f"released_{request.param}.npz")


def test_released_statistics(case):
    sig = significance(case["obs"], case["null"], "released")
    for name in ("z", "z0", "p", "pi0", "lfdr"):
        np.testing.assert_allclose(getattr(sig, name), case[name], atol=1e-5, rtol=0)
    np.testing.assert_allclose(local_fdr(sig.z), case["lfdr_pi0_1"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["p", "lfdr", "pi0", "z"])
def test_released_maps(case, method):
    sig = significance(case["obs"], case["null"], "released")
    np.testing.assert_allclose(shrink(case["obs"], sig, method), case[f"map_{method}"], atol=1e-5, rtol=0)


def test_released_metrics(case):
    scores, patch = case["obs"], int(case["patch_size"])
    x, y, w, h = case["roi_xywh"]
    square = np.zeros(np.array(scores.shape) * patch, bool)
    square[y : y + h, x : x + w] = True
    inside = coverage(square, scores.shape)
    maps = {"raw": scores, **{name: case[f"map_{name}"] for name in ("p", "lfdr", "pi0", "z")}}
    for i, name in enumerate(case["roi_stats_names"]):
        assert roi_percentile(maps[name], scores, inside) == pytest.approx(case["roi_mean_percentile"][i], abs=1e-6)
        assert roi_nonzero(maps[name], inside) == pytest.approx(case["roi_nonzero_percent"][i], abs=1e-6)
    for i, name in enumerate(case["trade_names"]):
        assert sensitivity(maps[name], scores, inside) == pytest.approx(case["sensitivity"][i], abs=1e-6)
        assert specificity(maps[name], scores, inside) == pytest.approx(case["specificity"][i], abs=1e-6)
    assert srmsd(case["p"]) == pytest.approx(case["srmsd_p"], abs=1e-9)


def test_suppression_factor(data):
    want = np.load(data / "suppression.npz")
    assert suppression_factor(want["before"], want["after"]) == pytest.approx((float(want["D"]), float(want["error"])), abs=1e-9)


def test_r_qvalue(data):
    r = np.load(data / "r_qvalue_a.npz")
    assert estimate_pi0(r["p"], "bootstrap") == pytest.approx(r["pi0_bootstrap"], abs=1e-6)
    assert estimate_pi0(r["p"], 0.5) == pytest.approx(r["pi0_lambda_0.5"], abs=1e-6)
    assert estimate_pi0(r["p"], "smoother") == pytest.approx(r["pi0_smoother"], abs=1e-4)
    for method in ("bootstrap", "smoother"):
        np.testing.assert_allclose(q_values(r["p"], float(r[f"pi0_{method}"])), r[f"q_{method}"], atol=1e-6)
    for method in ("bh", "by"):
        np.testing.assert_allclose(q_values(r["p"], method=method), stats.false_discovery_control(r["p"], method=method), atol=1e-12)
    np.testing.assert_allclose(q_values(r["p"]), stats.false_discovery_control(r["p"]), atol=1e-12)
