"Agreement with the authors' released code and with R's qvalue, on stored numbers, as far as the pages do not show it."

import numpy as np
import pytest
from scipy import stats

from attnbootreg import coverage, estimate_pi0, q_values, roi_nonzero, roi_percentile, sensitivity, specificity, srmsd


@pytest.fixture(params="abc")
def case(request, data):
    return np.load(data / f"released_{request.param}.npz")


def test_metrics_of_their_own_maps(case):
    "The pages of statistics and shrinkage compare our maps with these; here the metrics are computed on theirs."
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


def test_r_qvalue(data):
    r = np.load(data / "r_qvalue_a.npz")
    for method in ("bootstrap", "smoother"):
        np.testing.assert_allclose(q_values(r["p"], float(r[f"pi0_{method}"])), r[f"q_{method}"], atol=1e-6)
        np.testing.assert_allclose(q_values(r["p"], estimate_pi0(r["p"], method)), r[f"q_{method}"], atol=1e-4)
    for method in ("bh", "by"):
        np.testing.assert_allclose(q_values(r["p"], method=method), stats.false_discovery_control(r["p"], method=method), atol=1e-12)
