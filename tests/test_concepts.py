"The six concepts: checked when they are made, and then values like any other; and who may know whom."

import ast
import importlib
import inspect
import json
import pickle
import re
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import attnbootreg
from attnbootreg import RECIPES, Attention, Cuts, Engine, Noise, Null, Recipe, Regularized, Score, Study, load_vit, regularize
from attnbootreg.files import plain

PACKAGE = Path(attnbootreg.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("_"))
TREES = {name: ast.parse((PACKAGE / f"{name}.py").read_text()) for name in MODULES}

# ---- bad values: what is made, the field that the error must name, and the remedy that it must give

KEEP_ALL = np.ones((4, 4), bool)
BAD = {
    load_vit: [
        (dict(model="vit_smal_patch16_224"), "model", "did you mean vit_small_patch16_224"),
        (dict(model=7), "model", r"expected a name or an nn\.Module"),
        (dict(model=torch.nn.Linear(2, 2)), "model", "give patch_size="),
        (dict(model="mine.pth"), "model", "give the file as checkpoint='mine.pth'"),
        (dict(checkpoint="nowhere.pth"), "checkpoint", "there is no file 'nowhere.pth'"),
        (dict(checkpoint=3), "checkpoint", "path|file"),
        (dict(img_size=100), "img_size", "use 96 or 104"),
        (dict(img_size=(8, 8, 8)), "img_size", r"a pair \(height, width\)"),
        (dict(img_size="128"), "img_size", "a positive number of pixels"),
        (dict(device="tpu9"), "device", "use 'auto' or 'cpu'"),
        (dict(device=3.5), "device", "use 'auto' or 'cpu'"),
        (dict(dtype="float16"), "dtype", "use 'float32' or 'bfloat16'"),
        (dict(pretrained="no"), "pretrained", "must be True or False"),
    ],
    Attention: [
        (dict(layer=1.5), "layer", "must be a whole number"),
        (dict(layer="last"), "layer", "must be a whole number"),
        (dict(layer=(0, None)), "layer", "must be a whole number"),
        (dict(layer=()), "layer", "needs at least one"),
        (dict(layer=2, query="pool"), "layer", "leave it out with query='pool'"),
        (dict(heads="all"), "heads", "'mean', 'max', the number of a head"),
        (dict(heads=0.5), "heads", "'mean', 'max', the number of a head"),
        (dict(heads=[]), "heads", "needs at least one"),
        (dict(query="CLS"), "query", r"'cls', 'mean', 'pool', 'register:0' or a patch \(row, column\)"),
        (dict(query=(1, 2, 3)), "query", r"a patch \(row, column\)"),
        (dict(query=(0, 1.5)), "query", "must be a whole number"),
        (dict(query="register"), "query", "'register:0'"),
    ],
    Null: [
        (dict(kind="norml"), "kind", "did you mean 'normal'"),
        (dict(kind=3), "kind", "or give a function of an image and a generator"),
        (dict(n=0), "n", "at least 1"),
        (dict(n=2.5), "n", "must be a whole number"),
        (dict(n="many"), "n", "'auto' or None"),
        (dict(width=-1), "width", "must be a number above 0"),
        (dict(width="2"), "width", "must be a number above 0"),
        (dict(kind="pixel", width=2), "width", "belongs to 'normal'"),
        (dict(keep=KEEP_ALL), "keep", "at least one False"),
        (dict(keep=[0, 1]), "keep", r"\(h, w\) of True and False"),
        (dict(n="auto", n_max=5), "n_max", "at least 20"),
    ],
    Recipe: [
        (dict(scale="sqrt"), "scale", "'log', 'linear'"),
        (dict(standardize="places"), "standardize", "'pooled', 'shrunken', 'position'"),
        (dict(alternative="less"), "alternative", "'greater', 'two-sided'"),
        (dict(tail="lower"), "tail", "'upper', 'both'"),
        (dict(plus_one="no"), "plus_one", "must be True or False"),
        (dict(pool_observed=1), "pool_observed", "must be True or False"),
        (dict(pi0_method="storey"), "pi0_method", r"'bounded'.* or a number in \[0, 1\)"),
        (dict(pi0_method=1.0), "pi0_method", r"lies in \[0, 1\)"),
        (dict(q_method="holm"), "q_method", "'storey', 'discarding', 'bh', 'by'"),
        (dict(lfdr_null="none"), "lfdr_null", "'empirical', 'theoretical'"),
        (dict(lfdr_pi0=-3.0), "lfdr_pi0", r"must be a number in \[0, 1\]"),
        (dict(dtype="float16"), "dtype", "did you mean 'float64'"),
        (dict(n_null=0), "n_null", "at least 1"),
    ],
    Cuts: [
        (dict(p=1.5), "p", r"must be a number in \[0, 1\]"),
        (dict(p=float("nan")), "p", r"must be a number in \[0, 1\]"),
        (dict(p="0.3"), "p", r"must be a number in \[0, 1\]"),
        (dict(p=None), "p", r"must be a number in \[0, 1\]"),
        (dict(q=2), "q", r"must be a number in \[0, 1\]"),
        (dict(q=True), "q", r"must be a number in \[0, 1\]"),
        (dict(lfdr=-0.1), "lfdr", r"must be a number in \[0, 1\]"),
        (dict(lfdr=[0.3]), "lfdr", r"must be a number in \[0, 1\]"),
        (dict(z=float("inf")), "z", "must be a finite number"),
        (dict(z="0"), "z", "must be a finite number"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("make, wrong, field, remedy", [(make, *case) for make, cases in BAD.items() for case in cases])
def test_bad_values_are_refused_when_they_are_given(make, wrong, field, remedy):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=rf"^{field}: .*(?:{remedy})") as error:
        make(**wrong)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_there_are_ten_of_each():
    assert set(BAD) == {load_vit, Attention, Null, Recipe, Cuts} and min(map(len, BAD.values())) >= 10


# ---- values like any other


def depth(vit, x):
    return torch.ones(len(x), *vit.grid)


def drawn(x, generator):
    return torch.rand(x.shape, generator=generator)


KEEP = np.eye(4, dtype=bool)
CONCEPTS = {  # two ways to say the same, and something else
    "Attention": (Attention(layer=[0, -1], heads=["mean", 0]), Attention((0, np.int64(-1)), None, ("mean", 0)), Attention()),
    "Attention of a patch": (Attention(query=[1, 2]), Attention(query=(1, 2)), Attention(query=(2, 1))),
    "Score": (Score(depth, maps=["a"]), Score(depth, "linear", False, "depth", ("a",)), Score(depth)),
    "Null": (Null(n=20), Null("normal", np.int64(20), 1), Null(n=21)),
    "Null of your own": (Null(drawn), Null(drawn, None), Null("pixel")),
    "Null that keeps": (Null(keep=KEEP), Null(keep=KEEP.tolist()), Null(keep=~KEEP)),
    "Recipe": (Recipe(), RECIPES["conditional"], RECIPES["paper"]),
    "Recipe with numbers": (Recipe(lfdr_pi0=1), Recipe(lfdr_pi0=1.0), Recipe(lfdr_pi0=0.5)),
    "Cuts": (Cuts(p=1), Cuts(p=np.float32(1)), Cuts()),
    "Noise": (Noise(side=9), Noise("square", np.int64(9)), Noise("diffuse")),
    "Study": (Study(null=["pixel", 50], recipe="paper"), Study(null=(Null("pixel"), Null(n=50)), recipe=[RECIPES["paper"]]), Study()),
    "Engine": (Engine(), Engine("local", 2), Engine("ray")),
}
ONES = pytest.mark.parametrize("one, same, other", CONCEPTS.values(), ids=CONCEPTS)


@ONES
def test_equal_and_hashed_alike(one, same, other):
    assert one == same != other and hash(one) == hash(same) and len({one, same, other}) == 2


@ONES
def test_frozen(one, same, other):
    for field in fields(one):
        with pytest.raises(FrozenInstanceError):
            setattr(one, field.name, getattr(other, field.name))


@ONES
def test_pickled(one, same, other):
    assert pickle.loads(pickle.dumps(one)) == one and hash(pickle.loads(pickle.dumps(one))) == hash(one)


@ONES
def test_printed_in_one_line(one, same, other):
    for text in (repr(one), repr(same), repr(other)):
        assert text.startswith(f"{type(one).__name__}(") and "\n" not in text and " at 0x" not in text
    assert repr(one) == repr(same) != repr(other)


@pytest.mark.parametrize("name", ["Attention", "Attention of a patch", "Null", "Recipe", "Recipe with numbers", "Cuts", "Noise"])
def test_printed_as_it_is_made(name):
    for one in CONCEPTS[name]:
        assert eval(repr(one), {"Attention": Attention, "Null": Null, "Recipe": Recipe, "Cuts": Cuts, "Noise": Noise}) == one


@ONES
def test_written_down(one, same, other):
    assert json.loads(json.dumps(plain(one))) == plain(one) and plain(one) == plain(same) != plain(other)
    assert "0x" not in json.dumps(plain(one))


def test_a_model_is_a_value(vit):
    with pytest.raises(FrozenInstanceError):
        vit.name = "another"
    again = pickle.loads(pickle.dumps(vit))
    assert repr(again) == repr(vit) and "\n" not in repr(vit) and (again.queries, again.grid) == (vit.queries, vit.grid)
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in vit.model.state_dict().items())


def brightness(vit, x):
    "Mean brightness of each patch, less that of the image."
    light = F.avg_pool2d(x.mean(1), vit.patch_size)
    return light - light.mean((1, 2), keepdim=True)


def test_a_result_says_how_it_was_made(tmp_path, vit, scene):
    res = regularize(scene, vit, Score(brightness, signed=True), Null(drawn, n=20), Recipe(pi0_method=0.5), Cuts(p=0.1), seed=4)
    chosen = res.settings
    assert json.loads(json.dumps(chosen)) == chosen
    assert (chosen["score"]["function"], chosen["null"]["kind"]) == ("test_concepts:brightness", "test_concepts:drawn")
    assert chosen["score"]["signed"] and chosen["cuts"] == {"type": "Cuts", "p": 0.1, "q": 0.1, "lfdr": 0.3, "z": 0.0}
    assert (chosen["recipe"]["alternative"], chosen["recipe"]["scale"], chosen["recipe"]["pi0_method"]) == ("two-sided", "linear", 0.5)
    assert set(chosen["versions"]) == {"attnbootreg", "torch", "timm", "numpy"}
    assert [field.name for field in fields(res)] == ["image", "scores", "null", "sig", "maps", "settings"]
    with pytest.raises(FrozenInstanceError):
        res.scores = None
    assert "\n" not in repr(res) and "\n" not in repr(res.sig) and "\n" not in repr(res.null)
    again = pickle.loads(pickle.dumps(res))
    assert again.settings == chosen and np.array_equal(again.sig.p, res.sig.p) and again.sig.recipe == res.sig.recipe
    res.save(tmp_path / "scene")
    assert Regularized.load(tmp_path / "scene").settings == chosen


def test_loading_imports_no_function(tmp_path, vit, scene, monkeypatch):
    "A result can be read where the functions that made it are not there."
    monkeypatch.setattr(brightness, "__module__", "gone")
    monkeypatch.setattr(drawn, "__module__", "gone.too")
    regularize(scene, vit, Score(brightness, signed=True), Null(drawn, n=2), seed=0).save(tmp_path / "scene")
    again = Regularized.load(tmp_path / "scene")
    assert (again.settings["score"]["function"], again.settings["null"]["kind"]) == ("gone:brightness", "gone.too:drawn")
    assert "brightness" in again.plot().get_suptitle()


# ---- the house


def public_functions():
    "Functions, and methods of classes, that `__all__` of the package or a module names; the command line is exempt."
    for name in (name for name in MODULES if name != "cli"):
        module = importlib.import_module(f"attnbootreg.{name}")
        for item in (getattr(module, public) for public in module.__all__):
            if inspect.isfunction(item):
                yield f"{name}.{item.__name__}", item
            elif inspect.isclass(item) and item.__module__ == module.__name__:
                for method, function in vars(item).items():
                    function = getattr(function, "__func__", function)
                    if inspect.isfunction(function) and function.__module__ == module.__name__ and not method.startswith("_"):
                        yield f"{name}.{item.__name__}.{method}", function


def test_no_function_has_more_than_ten_parameters():
    found = dict(public_functions())
    assert len(found) > 100 and "method.regularize" in found and "bootstrap.Null.scores" in found
    exported = {name for name in attnbootreg.__all__ if inspect.isfunction(getattr(attnbootreg, name))}
    assert exported <= {name.rpartition(".")[2] for name in found}
    counts = {name: len([p for p in inspect.signature(item).parameters if p not in ("self", "cls")]) for name, item in found.items()}
    assert not {name: count for name, count in counts.items() if count > 10}


NO_THRESHOLDS = {  # weights and sizes of a training
    ("training", "background"), ("training", "tolerance"), ("training", "whole"), ("parts", "dropout"), ("datasets", "share"),
}  # fmt: skip


def defaults(tree):
    "Names of parameters and fields, and the expressions of their defaults."
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            named = node.args.posonlyargs + node.args.args
            yield from zip((arg.arg for arg in named[len(named) - len(node.args.defaults) :]), node.args.defaults)
            yield from ((arg.arg, value) for arg, value in zip(node.args.kwonlyargs, node.args.kw_defaults) if value)
        elif isinstance(node, ast.ClassDef):
            yield from ((one.target.id, one.value) for one in node.body if isinstance(one, ast.AnnAssign) and one.value)


def test_thresholds_stand_in_cuts_alone():
    found = {
        (module, name, part.value)
        for module, tree in TREES.items()
        for name, value in defaults(tree)
        for part in ast.walk(value)
        if isinstance(part, ast.Constant) and type(part.value) is float and part.value in (0.1, 0.3) and (module, name) not in NO_THRESHOLDS
    }
    assert found == {("recipes", "p", 0.3), ("recipes", "q", 0.1), ("recipes", "lfdr", 0.3)}
    assert Cuts() == Cuts(p=0.3, q=0.1, lfdr=0.3, z=0.0)


def imports(module):
    "What a module imports at any place, but for type checkers: modules of the package, and the names of others."
    body = [node for node in TREES[module].body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))]
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = f"attnbootreg.{node.module}" if node.level else node.module
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)


def reached(module):
    "The modules of the package that come with one."
    seen, todo = set(), [module]
    while todo:
        for name in imports(todo.pop()):
            found = name.split(".")[1] if name.startswith("attnbootreg.") else ""
            if found in MODULES and found not in seen:
                seen.add(found)
                todo.append(found)
    return seen


NO_MODELS = [
    "checks", "files", "kernels", "density", "recipes", "statistics", "precision", "shrinkage", "plots", "regions", "simulation", "metrics",
    "scenes",
]  # fmt: skip


@pytest.mark.parametrize("module", NO_MODELS)
def test_checks_and_statistics_know_no_models(module):
    "Neither timm nor torch's models, nor a module that does: no model is imported to check an integer."
    with_all = {module} | reached(module)
    models = re.compile(r"timm\b|torchvision\b|transformers\b|torch\.nn$|torch\.nn\.(?!functional)|attnbootreg\.(loading|adapters)\b")
    assert not [name for one in with_all for name in imports(one) if models.match(name)]


def test_models_are_known_where_they_are_needed():
    knowing = {name for name in MODULES if any(found.split(".")[0] == "timm" for found in imports(name))}
    assert knowing <= {"loading", "layouts", "checkpoints", "masking", "training", "parts"}
    assert "layouts" in reached("method")  # the search itself works


@pytest.mark.parametrize("module", ["checks", "files"])
def test_the_ground_knows_nobody(module):
    assert not reached(module)


def test_a_concept_is_a_dataclass():
    names = ("ViT", "Attention", "Score", "Null", "Recipe", "Cuts", "Regularized", "Noise", "Study", "Engine")
    assert all(is_dataclass(getattr(attnbootreg, name)) for name in names)
