"""Format the notebooks of the modules with ruff: python tools/format.py, or with --check only say which would change.

What is exported is as wide as the other modules. What the site shows is at most 83 characters wide, so that it fits a page. ruff itself knows
one width for a file, so pyproject.toml keeps it away from notebooks."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat

ROOT = Path(__file__).parent.parent
WIDE, NARROW = 140, 83
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))


def exported(cell: dict) -> bool:
    "Whether a cell becomes part of a module."
    return any(line.startswith(("#| export", "#|export")) for line in cell.source.splitlines())


def formatted(notebooks: dict[Path, dict], width: int) -> dict[Path, dict]:
    "The code cells of notebooks as ruff writes them for a width, by id."
    with TemporaryDirectory() as folder:
        for path, notebook in notebooks.items():
            code = [nbformat.v4.new_code_cell(cell.source, id=cell.id) for cell in notebook.cells if cell.cell_type == "code"]
            nbformat.write(nbformat.v4.new_notebook(cells=code), Path(folder) / path.name)
        subprocess.run([sys.executable, "-m", "ruff", "format", "-q", "--isolated", "--line-length", str(width), folder], check=True)
        return {path: {cell.id: cell.source for cell in nbformat.read(Path(folder) / path.name, 4).cells} for path in notebooks}


def main(check: bool) -> int:
    "Format all; how many notebooks changed, or would."
    notebooks = {path: nbformat.read(path, 4) for path in NOTEBOOKS}
    wide, narrow = formatted(notebooks, WIDE), formatted(notebooks, NARROW)
    changed = []
    for path, notebook in notebooks.items():
        before = [cell.source for cell in notebook.cells]
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.source = (wide if exported(cell) else narrow)[path][cell.id]
        if before != [cell.source for cell in notebook.cells]:
            changed.append(path)
            if not check:
                nbformat.write(notebook, path)
    for path in changed:
        print(f"{'would change' if check else 'changed'}: {path.relative_to(ROOT)}")
    return len(changed)


if __name__ == "__main__":
    found = main("--check" in sys.argv)
    sys.exit(bool(found) and "--check" in sys.argv)
