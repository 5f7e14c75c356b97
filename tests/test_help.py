"help() tells all: what each parameter means and its default, and what comes back."

import inspect
import pydoc
import re

import pytest

import attnbootreg

PUBLIC = [name for name in attnbootreg.__all__ if callable(getattr(attnbootreg, name))]


def described(text, name):
    "Type with default, and the first words of the description, as help shows them."
    found = re.search(rf"^[ |]*\*{{0,2}}{name}(?: : (.+))?\n[ |]+(\S.+)$", text, re.M)
    assert found, f"help does not describe {name}"
    return found[1] or "", found[2]


def parameters(item):
    "Fields of a dataclass or named tuple, parameters of anything else."
    if inspect.isclass(item):
        own = getattr(item, "__dataclass_fields__", None) or getattr(item, "_fields", None)
        if own is not None:
            return {name: inspect.signature(item).parameters[name] for name in own if not name.startswith("_")}
    return inspect.signature(item).parameters


@pytest.mark.parametrize("name", PUBLIC)
def test_help_describes_each_parameter(name):
    item = getattr(attnbootreg, name)
    text = pydoc.render_doc(item, renderer=pydoc.plaintext)
    for parameter in parameters(item).values():
        kind, words = described(text, parameter.name)
        assert len(words.split()) >= 2, f"{name}: {parameter.name} is described by {words!r}"
        if parameter.default is not inspect.Parameter.empty:
            assert "default" in kind, f"{name}: help does not show the default of {parameter.name}"


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isfunction(getattr(attnbootreg, name))])
def test_help_says_what_comes_back(name):
    item = getattr(attnbootreg, name)
    if inspect.signature(item).return_annotation not in (None, "None"):
        assert re.search(r"^ +Returns\n +-+\n +\S+", pydoc.render_doc(item, renderer=pydoc.plaintext), re.M)


@pytest.mark.parametrize("item", [attnbootreg.Null.scores, attnbootreg.Null.draws, attnbootreg.Noise.mask, attnbootreg.Regularized.save])
def test_help_describes_the_parameters_of_methods(item):
    text = pydoc.render_doc(item, renderer=pydoc.plaintext)
    for parameter in list(inspect.signature(item).parameters.values())[1:]:
        described(text, parameter.name)
