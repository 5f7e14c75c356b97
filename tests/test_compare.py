"Comparisons of studies: pairing, flips of signs, faults, and the command."

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

from attnbootreg import Study, active_heads, compare_studies, group_map, load_study, run_study
from attnbootreg.cli import app
from attnbootreg.compare import linearized, mean_interval, sign_flip
from attnbootreg.metrics import suppression_factor


@pytest.fixture(scope="module")
def study(vit, tmp_path_factory):
    "Six scenes with two kinds of noise, two recipes."
    out = tmp_path_factory.mktemp("studies") / "scenes"
    return run_study("scenes", vit, out, Study(("square", "diffuse"), null=2, recipe=("calibrated", "paper")), limit=6, progress=False)


@pytest.fixture(scope="module")
def rows(study):
    return load_study(study).assign(category=lambda rows: np.where(rows["image"] < "scene 3", "a", "b"))


CHOICE = ({"recipe": "paper"}, {"recipe": "calibrated"})


def test_means_are_those_of_pandas(rows):
    result = compare_studies(rows, rows, ["percentile_p", "pi0"], CHOICE, resamples=99)
    wide = rows.pivot(index=["noise", "category", "image"], columns="recipe", values=["percentile_p", "pi0"])
    for row in result.table.itertuples():
        part = wide.xs(row.noise, level="noise")[row.metric]
        part = part if row.category == "all" else part.xs(row.category, level="category")
        difference = part["calibrated"] - part["paper"]
        assert np.isclose(row.difference, difference.mean(), atol=1e-9) and row.images == len(part) and row.dropped == 0
        flips = np.array(np.meshgrid(*[[-1, 1]] * len(part))).reshape(len(part), -1)
        p = (np.abs(difference.to_numpy() @ flips) >= abs(difference.sum()) - 1e-9).mean()
        assert not result.exact or np.isclose(row.p, p)
    assert result.compared == {"recipe": ("paper", "calibrated")}
    assert len(result.table) == 2 * 3 * 2 and (result.table["p_adjusted"] >= result.table["p"]).all()


def test_d_is_that_of_summarize(rows):
    broken = rows.assign(percentile_p=rows["percentile_p"].where(rows["image"] != "scene 0"))
    for sides in ((rows, rows), (broken, rows)):
        table = compare_studies(*sides, ["D_p", ("D_p", "D_lfdr")], CHOICE, resamples=99).table
        used = rows[rows["image"] != "scene 0"] if sides[0] is broken else rows
        for row in table[table["category"] == "all"].itertuples():
            one, two = (used[(used["recipe"] == choice["recipe"]) & (used["noise"] == row.noise)] for choice in CHOICE)
            rule = "lfdr" if "lfdr" in row.metric else "p"
            by_hand = [
                suppression_factor(side["percentile_before"], side[f"percentile_{name}"])[0] for side, name in ((one, "p"), (two, rule))
            ]
            np.testing.assert_allclose([row.one, row.two, row.difference], [*by_hand, by_hand[1] - by_hand[0]], atol=1e-9)
    with pytest.raises(ValueError, match="metrics: .*D_nothing"):
        compare_studies(rows, rows, "D_nothing", CHOICE)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(1, 100), st.floats(0, 1)), min_size=2, max_size=30))
def test_linearized_values_have_d_as_mean_and_its_error(pairs):
    before, share = (pd.Series(side) for side in zip(*pairs))
    values = linearized(before * share, before)
    D = (before * share).sum() / before.sum()
    assert np.isclose(values.mean(), D)
    residual = before * share - D * before
    assert np.isclose(values.sem(), np.sqrt((residual**2).sum() / (len(before) - 1) / len(before)) / before.mean(), atol=1e-12)


def test_sides_exchanged_change_the_sign(rows):
    one = compare_studies(rows, rows, "percentile_p", CHOICE, resamples=99).table
    two = compare_studies(rows, rows, "percentile_p", CHOICE[::-1], resamples=99).table
    np.testing.assert_allclose(one["difference"], -two["difference"])
    np.testing.assert_allclose(one[["p", "p_adjusted"]], two[["p", "p_adjusted"]])


def test_the_order_of_rows_makes_no_difference(rows):
    one = compare_studies(rows, rows, "percentile_p", CHOICE, resamples=99).table
    two = compare_studies(rows.sample(frac=1, random_state=0), rows[::-1], "percentile_p", CHOICE, resamples=99).table
    pd.testing.assert_frame_equal(one, two)


def test_failed_images_are_dropped_and_counted(rows):
    failed = pd.DataFrame([dict(image="scene 5", category="b", error="cannot be read")])
    broken = pd.concat([rows[rows["image"] != "scene 5"], failed.reindex(columns=rows.columns)], ignore_index=True)
    broken.loc[broken["image"] == "scene 0", "percentile_p"] = np.nan
    for sides in ((broken, rows), (rows, broken)):
        table = compare_studies(*sides, ["percentile_p", "percentile_q"], CHOICE, resamples=99).table
        table = table[table["noise"] == "square"].set_index(["category", "metric"])[["images", "dropped"]]
        assert table.loc["all"].to_numpy().tolist() == [[4, 2], [5, 1]]
        assert table.loc["b"].to_numpy().tolist() == [[2, 1], [2, 1]]


def test_a_metric_without_a_number_has_no_p(rows):
    table = compare_studies(rows, rows.assign(pi0=np.nan), ["pi0", "percentile_p"], CHOICE, resamples=99).table.set_index("metric")
    assert table.loc["pi0", ["difference", "low", "p", "p_adjusted"]].isna().all().all() and (table.loc["pi0", "dropped"] > 0).all()
    assert table.loc["percentile_p", "p"].notna().all()


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda two: two[two["image"] != "scene 2"], "two: lacks 1 images of the other side, such as 'scene 2'"),
        (lambda two: two[two["noise"] == "square"], "noise is diffuse, square in one and square in two"),
        (lambda two: two.assign(squares=3), "only rows with the same noise"),
        (lambda two: two.assign(cut_p=np.where(two["noise"] == "square", 0.1, 0.3)), "cut_p is 0.3 in one and 0.1, 0.3 in two"),
        (lambda two: two[(two["image"] != "scene 2") | (two["noise"] == "square")], "two: has no row for image scene 2"),
        (lambda two: pd.concat([two, two[:4]]), "two: image 'scene 0' has two rows of the same settings"),
        (lambda two: two.drop(columns="n_null"), "two: the table has no column 'n_null'"),
        (lambda two: two.assign(error="bad"), "two: there is no row without an error"),
        (lambda two: two.assign(category="c"), "not the same pictures"),
    ],
)
def test_what_does_not_match_is_named(rows, change, says):
    with pytest.raises(ValueError, match=says):
        compare_studies(rows, change(rows), "percentile_p", resamples=99)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (dict(metrics="percentile_x"), "metrics: there is no 'percentile_x'"),
        (dict(metrics=[("pi0", "pi0", "pi0")]), "metrics: expected a column or a pair"),
        (dict(where=({"recipe": "released"}, {})), "where: no row of one has recipe 'released'; there are calibrated, paper"),
        (dict(where=({"colour": 1}, {})), "where: there is no 'colour'"),
        (dict(resamples=3), "resamples"),
        (dict(confidence=95), "confidence"),
    ],
)
def test_wrong_arguments_are_named(rows, arguments, says):
    with pytest.raises(ValueError, match=says):
        compare_studies(rows, rows, **arguments)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 10**6))
def test_all_signs_give_the_p_of_scipy(n, m, seed):
    d = np.random.default_rng(seed).integers(-3, 4, (n, m)).astype(float)
    test = sign_flip(d, resamples=64)
    for j in range(m):
        p = stats.permutation_test((d[:, j],), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue if n > 1 else 1.0
        assert test.exact and np.isclose(test.p[j], p)
    assert (test.adjusted >= test.p - 1e-12).all() and (test.adjusted <= 1).all()
    np.testing.assert_allclose(sign_flip(d * 7, resamples=64).adjusted, test.adjusted)  # no unit of a metric counts


@pytest.mark.parametrize("seed", range(3))
def test_rates_under_no_difference(seed):
    "Rate of p and family-wise rate over correlated, skewed metrics; 1,000 studies, within 3 standard errors at each of three seeds."
    rng = np.random.default_rng(seed)
    common, own = rng.exponential(size=(2, 1000, 25, 1)), rng.exponential(size=(2, 1000, 25, 6))
    one, two = common + own
    tests = [sign_flip(d, 199, seed=i) for i, d in enumerate(two - one)]
    error = np.sqrt(0.05 * 0.95 / 1000)
    assert abs((np.array([test.p[0] for test in tests]) <= 0.05).mean() - 0.05) <= 3 * error
    assert np.mean([(test.adjusted <= 0.05).any() for test in tests]) <= 0.05 + 3 * error


def test_intervals_are_reproducible_and_hold_the_mean():
    values = np.random.default_rng(0).normal(size=20)
    assert mean_interval(values, 999, seed=1) == mean_interval(values, 999, seed=1)
    low, high = mean_interval(values, 999)
    assert low < values.mean() < high


def test_group_map_leaves_out_what_was_not_tested():
    z = np.random.default_rng(0).normal(size=(8, 3, 4))
    z[:, 0, 0], z[:4, 1, 1], z[:, 2, 2] = np.nan, np.nan, 3
    group = group_map(z)
    assert np.isnan([group.mean[0, 0], group.p[0, 0], group.adjusted[0, 0]]).all() and group.p[2, 2] == 1 / 256
    assert np.isclose(
        group.p[1, 1], stats.permutation_test((z[4:, 1, 1],), np.sum, permutation_type="samples", alternative="greater").pvalue
    )


def test_active_heads_counts_pictures():
    found = np.zeros((10, 3), bool)
    found[:8, 1] = True
    table = active_heads(found, labels=["a", "b", "c"])
    assert table["share"].tolist() == [0, 0.8, 0] and np.isclose(table["p"][1], stats.binom.sf(7, 10, 0.1)) and table["p"][0] == 1
    assert np.isclose(table["q"][1], 3 * table["p"][1])
    for wrong in (dict(labels=["a"]), dict(alpha=2), dict(noise=found[:, :2])):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            active_heads(found, **wrong)


def typed(*words):
    return CliRunner().invoke(app, [*map(str, words)])


def test_compare_is_a_command(study, tmp_path):
    words = ["compare", study, study, "--rows-one", "recipe=paper", "--rows-two", "recipe=calibrated", "--out", tmp_path / "new" / "c.d"]
    done = typed(*words, "--resamples", 99, "--metric", "pi0", "--json")
    card = json.loads(done.stdout)
    assert done.exit_code == 0 and sorted(path.name for path in (tmp_path / "new").iterdir()) == ["c.d.csv", "c.d.png"]
    table = pd.read_csv(tmp_path / "new" / "c.d.csv")
    assert card["compared"] == {"recipe": ["paper", "calibrated"]} and len(card["table"]) == len(table)
    assert np.allclose([row["difference"] for row in card["table"]], table["difference"])
    for wrong, says in (
        (["compare", study, tmp_path], "there is no study"),
        (["compare", study, study, "--metric", "pi"], "--metric: there is no 'pi'"),
        (["compare", study, study, "--rows-one", "paper"], "--rows-one: 'paper' is not COLUMN=VALUE"),
        (["compare", study, study, "--rows-one", "recipe=paper"], "recipe is paper in one and calibrated, paper in two"),
        (["compare", study, study, "--resamples", "1"], "--resamples: must be"),
    ):
        done = typed(*wrong, "--out", tmp_path / "wrong")
        assert done.exit_code == 2 and says in done.stderr
    assert not list(tmp_path.glob("wrong*"))
