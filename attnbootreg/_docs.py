"How the site shows a function or a class: its signature, and tables of its parameters, fields and methods, from the docstring."

import inspect
import re
from collections.abc import Iterator
from textwrap import dedent
from typing import NamedTuple

WIDTH = 79  # of a signature, in characters
SECTIONS = ("Parameters", "Attributes", "Returns", "Yields")


class Entry(NamedTuple):
    "A line of a numpydoc section."

    name: str
    kind: str
    default: str
    meaning: str


def parse(doc: str) -> tuple[str, dict[str, list[Entry]]]:
    "The text of a numpydoc docstring without its sections, and its sections."
    doc = dedent("    " + doc.lstrip()) if "\n" not in doc else inspect.cleandoc(doc)
    parts = re.split(rf"^({'|'.join(SECTIONS)})\n-+\n", doc, flags=re.M)
    sections: dict[str, list[Entry]] = {}
    for title, body in zip(parts[1::2], parts[2::2]):
        entries = []
        for head, text in re.findall(r"^(\S.*)\n((?:[ \t]+.*\n?|\n)*)", body + "\n", re.M):
            name, _, kind = head.partition(" : ") if title in ("Parameters", "Attributes") else ("", "", head)
            kind, _, default = kind.partition(", default ")
            entries.append(Entry(name.strip(), kind.strip(), default.strip(), " ".join(text.split())))
        sections[title] = entries
    return parts[0].strip(), sections


def _code(text: str) -> str:
    "As code in a cell of a table, which a bar would end: types that go together are joined by a word."
    depth, parts = 0, [""]
    for char in text:
        depth += (char in "[(") - (char in ")]")
        if char == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += char
    shown = [f"`{one.strip()}`" if "|" not in one else f"<code>{one.strip()}</code>".replace("|", "&#124;") for one in parts]
    return " or ".join(shown) if text else ""


def _prose(text: str) -> str:
    "Text of a cell: bars, and stars that would begin emphasis."
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part.replace("|", r"\|") if i % 2 else re.sub(r"([|*_<$])", r"\\\1", part) for i, part in enumerate(parts))


def _table(first: str, entries: list[Entry]) -> str:
    "Entries as a table; the dashes set the widths of its columns."
    if all(not entry.default for entry in entries):
        rows = [f"| {first} | type | meaning |", f"|:{'-' * 22}|:{'-' * 26}|:{'-' * 52}|"]
        rows += [f"| {_code(one.name)} | {_code(one.kind)} | {_prose(one.meaning)} |" for one in entries]
    else:
        rows = [f"| {first} | type | default | meaning |", f"|:{'-' * 20}|:{'-' * 24}|:{'-' * 18}|:{'-' * 38}|"]
        rows += [f"| {_code(one.name)} | {_code(one.kind)} | {_code(one.default)} | {_prose(one.meaning)} |" for one in entries]
    return "\n".join(rows)


def _annotation(value: object) -> str:
    "A type as it is written, without the names of modules."
    text = value if isinstance(value, str) else inspect.formatannotation(value)
    return re.sub(r"\b[a-z_]\w*\.(?=[\w.]*[A-Za-z])", "", text.strip("\"'"))


def signature(item: object, name: str) -> str:
    "How it is called, folded: names and defaults. Types are in the table."
    try:
        parameters = list(inspect.signature(item).parameters.values())  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return name
    told = parse(inspect.getdoc(item) or "")[1]
    told_defaults = {entry.name: entry.default for entries in told.values() for entry in entries}
    parts: list[str] = []
    starred = False
    for one in parameters:
        if one.name in ("self", "cls") and one is parameters[0]:
            continue
        if one.kind is one.KEYWORD_ONLY and not starred:
            parts.append("*")
        starred = starred or one.kind in (one.KEYWORD_ONLY, one.VAR_POSITIONAL)
        stars = "*" if one.kind is one.VAR_POSITIONAL else "**" if one.kind is one.VAR_KEYWORD else ""
        default = "" if one.default is one.empty else f"={told_defaults.get(one.name) or _default(one.default)}"
        parts.append(f"{stars}{one.name}{default}")
    whole = f"{name}({', '.join(parts)})"
    if len(whole) <= WIDTH:
        return whole
    lines, indent = [f"{name}("], 4 * " "
    for part in parts:
        if lines[-1].startswith(indent) and len(lines[-1]) + len(part) + 2 <= WIDTH:
            lines[-1] += f" {part},"
        else:
            lines.append(f"{indent}{part},")
    return "\n".join([*lines, ")"])


def _default(value: object) -> str:
    "A default as one would type it."
    if inspect.isfunction(value) or inspect.isclass(value):
        return value.__name__
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else "..."


def methods(item: type) -> Iterator[tuple[str, object, bool]]:
    "Public methods and properties of a class and of those of this package that it inherits from: name, function, whether a property."
    seen = set()
    for owner in item.__mro__:
        if not owner.__module__.startswith("attnbootreg"):
            continue
        for name, value in vars(owner).items():
            function = getattr(value, "__func__", value)
            is_property = isinstance(value, property)
            if name.startswith("_") or name in seen or not (is_property or inspect.isfunction(function)):
                continue
            seen.add(name)
            yield name, value.fget if isinstance(value, property) else function, is_property


def _body(item: object, name: str, table: str = "parameter") -> list[str]:
    "Text and tables of a function, or of the parameters of a class."
    text, sections = parse(inspect.getdoc(item) or "")
    parts = [_prose(text)] if text else []
    for title, first in (("Parameters", table), ("Attributes", "field")):
        if sections.get(title):
            parts.append(_table(first, sections[title]))
    for title, word in (("Returns", "Returns"), ("Yields", "Yields")):
        for one in sections.get(title, []):
            parts.append(f"**{word}** {_code(one.kind)}" + (f": {_prose(one.meaning)}" if one.meaning else ""))
    return parts


def _summary(function: object) -> str:
    "The text of a docstring in one line."
    return _prose(" ".join(parse(inspect.getdoc(function) or "")[0].split()))


def markdown(item: object, name: str) -> str:
    "Everything about a function or a class that a user needs, without a heading."
    if inspect.isclass(item) and issubclass(item, tuple) and hasattr(item, "_fields"):
        call = f"{name}({', '.join(item._fields)})"
        call = call if len(call) <= WIDTH else f"{name}(...)"
    else:
        call = signature(item, name)
    parts = [f"```python\n{call}\n```", *_body(item, name)]
    if inspect.isclass(item):
        found = list(methods(item))
        properties = [(one, function) for one, function, is_property in found if is_property]
        if properties:
            rows = []
            for one, function in properties:
                kind = _annotation(getattr(function, "__annotations__", {}).get("return", ""))
                rows.append(Entry(one, kind, "", parse(inspect.getdoc(function) or "")[0]))
            parts.append(_table("property", rows))
        others = [(one, function) for one, function, is_property in found if not is_property]
        short = [(one, function) for one, function in others if "Parameters" not in parse(inspect.getdoc(function) or "")[1]]
        if short:
            lines = [f"| {_code(signature(function, one))} | {_summary(function)} |" for one, function in short]
            parts.append("\n".join(["| method | meaning |", f"|:{'-' * 32}|:{'-' * 64}|", *lines]))
        for one, function in others:
            if (one, function) not in short:
                parts += [f"**Method** `{one}`", f"```python\n{signature(function, '.' + one)}\n```", *_body(function, one)]
    return "\n\n".join(parts)


class Renderer:
    "What nbdev's show_doc shows below an exported cell; settings.ini names it."

    def __init__(self, sym: object, name: str | None = None, title_level: int = 3):
        self.sym, self.level = sym, title_level
        self.name = name or str(getattr(sym, "__qualname__", sym))

    def _repr_markdown_(self) -> str:
        from nbdev.doclinks import NbdevLookup  # type: ignore[import-untyped]  # nbdev has no types

        source = NbdevLookup().code(f"{getattr(self.sym, '__module__', '')}.{self.name}")
        link = f'[source]({source}){{target="_blank" style="float:right; font-size:smaller"}}\n\n' if source else ""
        hashes = "#" * self.level
        if inspect.isfunction(self.sym) and self.sym.__module__ == "attnbootreg.cli":
            command = self.name.rstrip("_").replace("_", "-")
            text = _prose(parse(inspect.getdoc(self.sym) or "")[0])
            options = f"[All options](reference/commands.qmd#{command}-command)."
            return f"---\n\n{link}{hashes} attnbootreg {command} {{#{self.name}}}\n\n{text}\n\n{options}"
        return f"---\n\n{link}{hashes} {self.name}\n\n{markdown(self.sym, self.name)}"
