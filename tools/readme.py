"How nbconvert makes README.md from index.ipynb: markdown, pictures as files, tables as text, links that start at the top."

import re
from pathlib import Path

from nbconvert.preprocessors import Preprocessor

here = Path(__file__).parent


class LinksFromTheTop(Preprocessor):
    "Links to other notebooks lead there from the repository's top too."

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((?!https?:|#)", "](nbs/", cell.source)
        return cell, resources


class QuartoOptions(Preprocessor):
    "Quarto's options of a cell are heeded and not shown: whether its code is seen, and what its picture shows."

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type == "code":
            options = dict(re.findall(r'^#\| ([\w-]+): "?(.*?)"?$', cell.source, re.M))
            cell.source = re.sub(r"^#\|.*\n", "", cell.source, flags=re.M)
            cell.metadata.update(alt=options.get("fig-alt", ""), echo=options.get("echo") != "false")
        return cell, resources


c = get_config()  # noqa: F821 (nbconvert provides it)
c.NbConvertApp.export_format = "markdown"
c.NbConvertApp.output_base = "README"
c.NbConvertApp.output_files_dir = "nbs/images"
c.MarkdownExporter.preprocessors = [LinksFromTheTop, QuartoOptions]
c.TemplateExporter.extra_template_paths = [str(here)]
c.TemplateExporter.template_file = "readme.md.j2"
c.NbConvertBase.display_data_priority = ["image/png", "text/plain"]
