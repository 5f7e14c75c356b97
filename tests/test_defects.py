"What was once wrong, each shown to be right."

import ast
import inspect
import json
import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from attnbootreg import (
    RECIPES, Attention, Cuts, Null, Recipe, bootstrap, estimate_pi0, familywise_p, familywise_threshold, find_regions, inject_noise, load_image,
    local_fdr, metrics, p_errors, p_intervals, p_values, q_values, regularize, shrinkage, significance, simulation, statistics, undecided,
)  # fmt: skip
from attnbootreg.masking import pixels_of
from attnbootreg.method import AUTO_UNDECIDED

ROOT = Path(__file__).parent.parent
TREES = {path.stem: ast.parse(path.read_text()) for path in sorted((ROOT / "attnbootreg").glob("*.py"))}
WHOLE = RECIPES["calibrated"]
TWO_SIDED, BOTH = replace(WHOLE, alternative="two-sided"), replace(WHOLE, alternative="two-sided", tail="both")

# ---- the pieces give what the whole gives


def test_pieces_give_what_the_whole_gives(vit, scene):
    res = regularize(scene, vit, recipe="calibrated", seed=0)
    sig = res.sig
    assert 0.5 < sig.pi0 < 1  # so that another estimate would show
    np.testing.assert_array_equal(p_values(sig.z, sig.z0), sig.p)
    assert estimate_pi0(sig.p) == sig.pi0
    np.testing.assert_array_equal(q_values(sig.p), sig.q)
    np.testing.assert_array_equal(local_fdr(sig.z, sig.z0), sig.lfdr)
    np.testing.assert_array_equal(p_errors(sig.z, sig.z0, "calibrated"), res.p_error)
    np.testing.assert_array_equal(undecided(sig.z, sig.z0, Cuts().p, recipe="calibrated"), res.undecided)


@pytest.mark.parametrize(
    "recipe", [*RECIPES.values(), BOTH, replace(WHOLE, pi0_method="smoother", q_method="by")], ids=lambda recipe: recipe.name
)
def test_pieces_give_what_the_whole_gives_by_any_recipe(vit, scene, recipe):
    res = regularize(scene, vit, null=5, recipe=recipe, seed=0)
    sig, used = res.sig, res.sig.recipe
    np.testing.assert_array_equal(p_values(sig.z, sig.z0, used.alternative, used.pool_observed, used.plus_one, used.strict), sig.p)
    assert estimate_pi0(sig.p, used.pi0_method) == sig.pi0
    np.testing.assert_array_equal(q_values(sig.p, sig.pi0, used.q_method), sig.q)
    pi0 = sig.pi0 if used.lfdr_pi0 is None else used.lfdr_pi0
    if used.lfdr_null == "theoretical":
        np.testing.assert_array_equal(local_fdr(sig.z, pi0=pi0), sig.lfdr)
    elif used.plus_one and not (used.strict or used.pool_observed):
        np.testing.assert_array_equal(local_fdr(sig.z, sig.z0, pi0, used.alternative), sig.lfdr)
    np.testing.assert_array_equal(p_errors(sig.z, sig.z0, used), res.p_error)
    np.testing.assert_array_equal(undecided(sig.z, sig.z0, res.cuts.p, recipe=used), res.undecided)


# ---- doubt about p knows the recipe


def test_released_p_lies_within_its_own_interval(vit, scene):
    sig = regularize(scene, vit, null=5, recipe="released", seed=0).sig
    low, high = p_intervals(sig.z, sig.z0, recipe=sig.recipe)
    rank = 1 / sig.z0.size
    assert ((low - rank <= sig.p) & (sig.p <= high + rank)).all()
    alone = p_intervals(sig.z, sig.z0, recipe=replace(sig.recipe, pool_observed=False))
    assert ((sig.p < alone[0] - rank) | (sig.p > alone[1] + rank)).mean() > 0.2  # without the observed scores many do not


def test_errors_of_p_know_that_observed_scores_count(vit, scene):
    sig = regularize(scene, vit, null=5, recipe="released", seed=0).sig
    alone = replace(sig.recipe, pool_observed=False)
    np.testing.assert_allclose(p_errors(sig.z, sig.z0, sig.recipe), 5 / 6 * p_errors(sig.z, sig.z0, alone), rtol=1e-6)
    differ = undecided(sig.z, sig.z0, 0.3, recipe=sig.recipe) != undecided(sig.z, sig.z0, 0.3, recipe=alone)
    assert differ.any()


@pytest.mark.parametrize("recipe, enough", [("released", 40), ("calibrated", 20), (BOTH, 20)], ids=["released", "calibrated", "two-sided"])
def test_auto_stops_by_the_recipe(vit, scene, recipe, enough):
    "Twenty null images would be enough for any recipe if the observed scores, which the released one counts as well, were left out."
    cuts = Cuts(p=0.05)
    res = regularize(scene, vit, null=Null(n="auto", n_max=60), recipe=recipe, cuts=cuts, seed=0)
    shares = []
    for n in range(20, len(res.null) + 1, 20):  # what it knew after 20, 40, ... null images
        sig = significance(res.scores, np.asarray(res.null)[:n], recipe)
        shares.append(undecided(sig.z, sig.z0, cuts.p, recipe=sig.recipe).mean())
    assert len(res.null) == enough and shares[-1] == res.undecided.mean()
    assert all(share > AUTO_UNDECIDED for share in shares[:-1]) and shares[-1] <= AUTO_UNDECIDED


# ---- regions and whole images know the recipe


@pytest.mark.filterwarnings("ignore:sig. with")  # few null images
@pytest.mark.parametrize("recipe", [WHOLE, TWO_SIDED, BOTH], ids=["greater", "two-sided", "both tails"])
def test_null_images_are_cut_as_the_image_is(recipe):
    "The size of a region is compared with that of the largest region that each null image has when it is judged like the image."
    rng, linear = np.random.default_rng(0), replace(recipe, scale="linear")
    null = rng.normal(size=(12, 16, 16)) + rng.normal(size=(12, 8, 8)).repeat(2, 1).repeat(2, 2)
    scores = rng.normal(size=(16, 16)) + rng.normal(size=(8, 8)).repeat(2, 0).repeat(2, 1)
    largest = np.array([find_regions(significance(one, null, linear), 0.2).table["patches"].max() for one in null])
    table = find_regions(significance(scores, null, linear), 0.2).table
    assert len(set(largest)) > 3 and len(table) > 3
    expected = [(1 + (largest >= size).sum()) / 13 for size in table["patches"]]
    np.testing.assert_allclose(table["size_p"], expected, rtol=1e-12)


@pytest.mark.parametrize("tail", ["upper", "both"])
def test_familywise_p_of_a_hole(tail):
    rng, recipe = np.random.default_rng(1), Recipe(scale="linear", alternative="two-sided", tail=tail)
    scores, null = rng.normal(size=(16, 16)), rng.normal(size=(19, 16, 16))
    scores[5, 6] = -9
    sig = significance(scores, null, recipe)
    p = familywise_p(sig)
    assert sig.p[5, 6] < 0.001 and p[5, 6] == 1 / 20
    for alpha in (0.05, 0.2, 0.5):
        np.testing.assert_array_equal(np.abs(sig.z) > familywise_threshold(sig, alpha), p <= alpha)
    assert (p >= sig.p - 1e-12).all()


# ---- the paper is cited where it says so


def docstrings(module):
    for node in ast.walk(TREES[module]):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            yield getattr(node, "name", module), ast.get_docstring(node)


def cited(text):
    "Sections and equations of the paper."
    text = " ".join(text.split())
    found = re.findall(r"[Ss]ections? ([\d.]*\d)(?: and appendix G)? of arXiv:2604\.01339", text)
    equations = []
    for first, joint, second in re.findall(r"\beqs?\. \((\d+)\)(?: (to|and) \((\d+)\))?", text):
        equations += range(int(first), int(second) + 1) if joint == "to" else [int(one) for one in (first, second) if one]
    return found, equations


ALLOWED = {  # module: sections and equations that it may cite
    "statistics": ({"3.1"}, {1, 2, 3, 4, 5}), "shrinkage": ({"3.1"}, {6, 7}), "bootstrap": ({"3.1"}, set()), "method": ({"3.1"}, set()),
    "simulation": ({"3.2"}, set()), "metrics": ({"3.2"}, {8, 9, 10, 11}), "attention": ({"3.2"}, set()),
}  # fmt: skip


@pytest.mark.parametrize("module", sorted(set(TREES) - {"_modidx"}))
def test_citations_exist(module):
    sections, equations = ALLOWED.get(module, ({"3.1", "3.2"}, set(range(1, 12))))
    for name, text in docstrings(module):
        found = cited(text)
        assert set(found[0]) <= sections and set(found[1]) <= equations, f"{module}.{name} cites {found}"
        assert not re.search(r"[Ss]ections?\s4\.", text), f"{module}.{name}"


def test_each_number_cites_its_equation():
    for function, equations in {
        statistics.z_scores: [1, 2, 3], statistics.p_values: [4], statistics.local_fdr: [5], shrinkage.shrink: [6, 7],
        metrics.suppression_factor: [8], metrics.sensitivity: [9], metrics.specificity: [10], metrics.tradeoff: [9, 10], metrics.srmsd: [11],
    }.items():  # fmt: skip
        assert cited(inspect.getdoc(function))[1] == equations, function.__name__
    for function, section in {
        statistics.significance: "3.1", bootstrap.bootstrap_images: "3.1", Null: "3.1", regularize: "3.1", metrics.roi_percentile: "3.2",
        simulation.Noise: "3.2",
    }.items():  # fmt: skip
        assert cited(inspect.getdoc(function))[0] == [section], function.__name__


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_pages_cite_no_section_that_is_not_there(path):
    texts = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    assert not [text for text in texts if re.search(r"\b[Ss]ections? 4\.\d|§ ?4\.\d", text)]


# ---- one word, one thing


def test_names_mean_one_thing():
    assert "pooled" not in {field.name for field in fields(Recipe)} and WHOLE.standardize == "pooled"
    classes = Counter(node.name for tree in TREES.values() for node in tree.body if isinstance(node, ast.ClassDef))
    assert classes["Picture"] == 1 and not [name for name, count in classes.items() if count > 1 and not name.startswith("_")]


def test_beside_is_no_setting():
    "It was an argument, a function and a field of results as well as the place of files that are written next to others."
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    arguments = {node.arg for node in nodes if isinstance(node, ast.arg)}
    declared = {node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    assert "beside" not in arguments | declared and "alpha" in arguments and "kind" in declared
    assert not hasattr(statistics, "significance_beside")


# ---- what depends on the image alone is computed once


@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
def test_one_spectrum_an_image(vit, scene, monkeypatch, batch_size):
    x, shapes, rfft2 = load_image(scene, vit), [], torch.fft.rfft2
    monkeypatch.setattr(torch.fft, "rfft2", lambda values: shapes.append(tuple(values.shape)) or rfft2(values))
    null = Null("phase", n=5).scores(x, vit, Attention(), seed=0, batch_size=batch_size)
    assert len(null) == 5 and shapes.count(tuple(x.shape)) == 1 and shapes.count(tuple(x.shape[1:])) == 5


@pytest.mark.parametrize("kind", list(bootstrap.KINDS))
def test_moments_once_an_image(vit, scene, monkeypatch, kind):
    calls, prepare = [], bootstrap.KINDS[kind]
    monkeypatch.setitem(bootstrap.KINDS, kind, lambda *args: calls.append(kind) or prepare(*args))
    regularize([scene, scene], vit, null=Null(kind, n=4, groups=1), seed=0, batch_size=3, progress=False)
    assert calls == [kind, kind]


# ---- noise and null images of one seed


def test_noise_all_over_is_not_its_own_null_image(vit, scene):
    "With the same seed it was the first null image, up to rounding of the moments, so that no maximum could stand out."
    noise = inject_noise(load_image(scene, vit), np.ones(vit.img_size, bool), seed=5)
    for groups in (1, 16):
        null, redrawn = next(Null(n=1, groups=groups).images(noise, vit, seed=5))
        there = pixels_of(torch.from_numpy(redrawn), vit.patch_size)
        assert abs(np.corrcoef(null[:, there].ravel(), noise[:, there].ravel())[0, 1]) < 0.05
