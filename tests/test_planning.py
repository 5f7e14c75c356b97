"What a number of draws allows, against `significance`, and the command."

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from attnbootreg import Recipe, draws_needed, power, significance, smallest_q
from attnbootreg.cli import app
from attnbootreg.precision import plan, smallest_lfdr, smallest_p

METHODS = ("bh", "by", "discarding", "storey")


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 8), st.integers(1, 6), st.integers(1, 9), st.sampled_from(METHODS), st.integers(0, 10**6))
def test_the_bound_is_never_undercut(side, draws, k, method, seed):
    rng = np.random.default_rng(seed)
    recipe = Recipe(scale="linear", standardize="pooled", q_method=method)
    scores = rng.normal(size=(side, side))
    scores.flat[:k] += rng.uniform(0, 8)
    sig = significance(scores, rng.normal(size=(draws, side, side)), recipe)
    assert sig.p.min() >= smallest_p(side**2, draws) - 1e-12
    for q in np.unique(sig.q[sig.q < 1]):
        found = int((sig.q <= q).sum())
        assert q >= smallest_q(side**2, draws, found, recipe, sig.pi0) - 1e-12


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 8), st.integers(1, 6), st.integers(1, 9), st.sampled_from(METHODS), st.booleans())
def test_the_bound_is_reached(side, draws, k, method, plus_one):
    recipe = Recipe(scale="linear", standardize="pooled", q_method=method, plus_one=plus_one)
    scores = np.full((side, side), -99.0)
    scores.flat[:k] = 99
    sig = significance(scores, np.random.default_rng(k).normal(size=(draws, side, side)), recipe)
    assert np.isclose(sig.p.min(), smallest_p(side**2, draws, k, recipe), atol=1e-12)
    assert np.isclose(sig.q.min(), smallest_q(side**2, draws, k, recipe, sig.pi0), atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.floats(0.001, 0.5), st.integers(2, 1500), st.integers(1, 20), st.sampled_from(METHODS))
def test_one_draw_less_is_too_few(q, n, k, method):
    k, recipe = min(k, n), Recipe(q_method=method)
    draws = draws_needed(q, n, k, recipe)
    assert smallest_q(n, draws, k, recipe) <= q
    assert draws == 1 or smallest_q(n, draws - 1, k, recipe) > q
    if method == "bh":
        assert draws == max(1, np.ceil(1 / (k * q) - 1 / n - 1e-9))


def test_the_local_rate_falls_with_draws_and_patches():
    rates = np.array([[smallest_lfdr(196, B, k) for k in (1, 3, 10, 40)] for B in (1, 4, 20)])
    assert (np.diff(rates, axis=0) < 0).all() and (np.diff(rates, axis=1) < 0).all()
    assert smallest_lfdr(10, 4) == 1.0 or smallest_lfdr(10, 4) > smallest_lfdr(196, 4, 10)


def test_power_rises_and_repeats():
    one, two = power([0, 2, 5], 64, 5, 8, runs=40), power([0, 2, 5], 64, 5, 8, runs=40)
    assert (np.diff(one.found) > 0).all() and (one.any >= one.found).all() and one.found[0] < 0.05
    np.testing.assert_array_equal(one.found, two.found)
    assert len(plan(49, (1, 2), (1, 5))) == 4


def test_plan_is_a_command():
    done = CliRunner().invoke(app, "plan 7x9 --draws 4 --found 1 --found 3 --json".split())
    card = json.loads(done.stdout)
    assert done.exit_code == 0 and card["draws_needed"] == {"1": 10, "3": 4}
    assert [row["null_scores"] for row in card["table"]] == [252, 252] and card["table"][0]["power"] <= 0.1
    for wrong, says in (
        ("plan big", "grid: 'big' is not"),
        ("plan 3 --found 10", "10 patches cannot be found among 9"),
        ("plan 7 --q 0", "--q: no number of draws"),
    ):
        done = CliRunner().invoke(app, wrong.split())
        assert done.exit_code == 2 and says in done.stderr, done.stderr
