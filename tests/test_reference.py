"The reference: written from the docstrings as they are now, complete, and its examples run."

import importlib.util
import re
from pathlib import Path

import pytest

import attnbootreg
from attnbootreg._docs import Entry, markdown, parse

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)
PLACED = reference.placed()


@pytest.mark.parametrize("slug", PLACED)
def test_pages_are_written_from_the_docstrings(slug):
    written = (ROOT / "nbs" / "reference" / f"{slug}.qmd").read_text()
    assert written == reference.write(slug, PLACED[slug]), "run python tools/reference.py"


def test_commands_show_each_option():
    "Not letter by letter, for the layout of a help is typer's."
    written = (ROOT / "nbs" / "reference" / "commands.qmd").read_text()
    assert max(len(line) for block in re.findall(r"```text\n(.*?)```", written, re.S) for line in block.splitlines()) <= 80
    helps = reference.commands()
    assert len(helps) > 10
    for name, text in helps.items():
        section = written.partition(f"{{#{name or 'attnbootreg'}-command}}")[2].partition("\n## ")[0]
        words = set(re.findall(r"--[\w-]+|\w+", text))
        assert section and words <= set(re.findall(r"--[\w-]+|\w+", section)), "run python tools/reference.py"


def test_each_public_name_is_on_one_page():
    names = [name for listed in PLACED.values() for name in listed]
    assert len(names) == len(set(names))
    public = {f"{module}.{name}" for name, module in attnbootreg._MODULE_OF.items()}
    assert public <= set(names)


@pytest.mark.parametrize("slug", PLACED)
def test_examples_run(slug):
    "One after the other, as on the page, with no name but those that the page imports."
    space = {}
    exec(compile(reference.PAGES[slug].setup, slug, "exec"), space)
    for name in PLACED[slug]:
        code = reference.example(slug, name)
        assert max(map(len, [*code.splitlines(), ""])) <= 100
        exec(compile(code, name, "exec"), space)
    if "explorer" in space:
        space["explorer"].close()
        space["explorer"].wait(60)  # for its thread


def test_tables_say_what_docstrings_say():
    def add(one: int | None, *rest, two: "dict[str, int | None]" = {}, **more):  # noqa: B006
        """Adds * and | to nothing.

        Parameters
        ----------
        one : int | None
            The first, one | two.
        two : dict[str, int | None], default {}
            The second,
            on two lines.

        Returns
        -------
        int
            The sum.
        """

    text, sections = parse(add.__doc__)
    assert text == "Adds * and | to nothing."
    assert sections["Parameters"][1] == Entry("two", "dict[str, int | None]", "{}", "The second, on two lines.")
    shown = markdown(add, "add")
    assert "add(one, *rest, two={}, **more)" in shown and r"Adds \* and \| to nothing." in shown
    assert "| `one` | `int` or `None` |  | The first, one \\| two. |" in shown
    assert "<code>dict[str, int &#124; None]</code>" in shown and "**Returns** `int`: The sum." in shown


@pytest.mark.parametrize("name", ["Regularized", "Significance", "Recipe"])
def test_classes_show_fields_and_methods(name):
    shown = markdown(getattr(attnbootreg, name), name)
    for field in getattr(attnbootreg, name).__dataclass_fields__:
        assert re.search(rf"^\| `{field}` \| \S", shown, re.M), f"{name}: {field} is not shown"
    if name == "Regularized":
        assert "| `plot()` |" in shown and "**Method** `save`" in shown and "| property |" in shown
