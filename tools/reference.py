"""Write the reference, nbs/reference/: a page for each task, from docstrings, examples below and the help of the commands: python tools/reference.py

Names of the package that no page names are put on the page of their module. tests/test_reference.py runs the examples."""

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import NamedTuple

import attnbootreg
from attnbootreg._docs import markdown

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "nbs" / "reference"

SCENE = """from attnbootreg import load_vit, make_scenes, regularize

vit = load_vit("scenes-plain")    # a small model that comes with the package
scene = make_scenes(1, seed=406)  # a picture of a colored object
res = regularize(scene.images[0], vit, seed=0)"""


class Page(NamedTuple):
    "A page of the reference: names and their examples, and the modules whose other names it takes."

    title: str
    description: str
    modules: tuple[str, ...]  # where the explanation stands, and whose names belong here
    setup: str  # code that the examples of the page share
    names: dict[str, str]  # name, or module.name, and its example


PAGES = {
    "regularize": Page(
        "regularize",
        "From an image to maps without the scores that chance explains.",
        ("method", "shrinkage"),
        'from attnbootreg import (\n    Cuts, Regularized, load_vit, make_scenes, regularize, shrink, upsample,\n)\n\nvit = load_vit("scenes-plain")\nscene = make_scenes(1, seed=406)',
        {
            "regularize": 'res = regularize(scene.images[0], vit, seed=0)  # or regularize("dog.jpg", vit)\nres.maps["q"]  # (16, 16), zero where chance explains the score',
            "Regularized": "res.summary()                  # a table: how much each map keeps\nres.sig.p, res.sig.q           # p-values and q-values of the patches\npicture = res.plot()           # in a notebook, res alone shows it",
            "Cuts": 'strict = regularize(scene.images[0], vit, cuts=Cuts(q=0.05), seed=0)\nstrict.maps["q"]',
            "shrink": 'shrink(res.scores, res.sig, "lfdr", Cuts(lfdr=0.1))  # no other pass',
            "upsample": 'upsample(res.maps["q"], vit.img_size)  # (128, 128), to lay over the image',
        },
    ),
    "models": Page(
        "Models",
        "Load a vision transformer by name, from a file or as a module.",
        ("loading", "layouts", "checkpoints", "foreign"),
        "from attnbootreg import ViT, list_models, load_vit",
        {
            "load_vit": 'vit = load_vit("scenes-plain")                          # embedded\nvit = load_vit("vit_tiny_patch16_224", pretrained=False)  # of timm, random weights',
            "list_models": 'list_models("vit_small*")',
            "ViT": "vit.grid, vit.patch_size, vit.device",
        },
    ),
    "images": Page(
        "Images and scans",
        "What regularize accepts as an image, and scans from DICOM and NIfTI files.",
        ("images", "scans"),
        'from attnbootreg import (\n    Masked, load_image, load_vit, make_scenes, regularize, to_pixels,\n)\n\nvit = load_vit("scenes-plain")\nscene = make_scenes(1, seed=406)',
        {
            "load_image": "x = load_image(scene.images[0], vit)  # (3, 128, 128), normalized for the model",
            "to_pixels": "to_pixels(x, vit)  # (128, 128, 3), uint8",
            "Masked": "inside = scene.masks[0]  # (128, 128) bool: only these pixels count\nregularize(Masked(scene.images[0], inside), vit, seed=0)",
            "scans.load_scan": "",
            "scans.Scan": "",
            "scans.save_nifti": "",
        },
    ),
    "scores": Page(
        "Scores",
        "What is judged: attention, relevance maps, or a function of yours.",
        ("scores", "attention", "relevance"),
        SCENE.replace(
            "import load_vit",
            "import (\n    CDAM, Attention, Captum, Concept, GradCAM, InputGradient, LeGrad,\n    PytorchGradCAM, Relevance, Rollout, Score, attention_scores, load_image,\n    load_vit",
        ).replace("make_scenes, regularize\n", "make_scenes, regularize,\n)\n")
        + "\npicture = scene.images[0]\nx = load_image(picture, vit)",
        {
            "Attention": 'heads = regularize(picture, vit, score=Attention(layer=-2, heads="each"), seed=0)\nlen(heads)  # one map for each head',
            "Score": 'def token_norm(vit, x):\n    "Length of the patch embeddings, (N, h, w)."\n    tokens = vit.model.patch_embed(x.to(vit.device, vit.dtype))\n    return tokens.norm(dim=-1).unflatten(1, vit.grid)\n\n\nregularize(picture, vit, score=Score(token_norm, name="norm"), seed=0)',
            "attention_scores": "attention_scores(x[None], vit)  # (1, 16, 16), raw",
            "Rollout": "regularize(picture, vit, score=Rollout(), seed=0)",
            "CDAM": "regularize(picture, vit, score=CDAM(), seed=0)  # of the predicted class",
            "GradCAM": "regularize(picture, vit, score=GradCAM(), seed=0)",
            "Relevance": "regularize(picture, vit, score=Relevance(), seed=0)",
            "LeGrad": "regularize(picture, vit, score=LeGrad(), seed=0)",
            "InputGradient": "regularize(picture, vit, score=InputGradient(), seed=0)",
            "Concept": 'import numpy as np\n\ndirection = np.eye(vit.model.embed_dim)[0]  # among the embeddings\nconcept = Concept("first", direction)\nregularize(picture, vit, score=CDAM(concept), seed=0)',
            "Captum": "",
            "PytorchGradCAM": "",
        },
    ),
    "nulls": Page(
        "Null images",
        "What a score is compared with: how null images are drawn and scored.",
        ("bootstrap", "bank"),
        "from attnbootreg import (\n    Attention, Null, NullBank, NullScores, bootstrap_images, load_image,\n    significance,\n)\n"
        + SCENE
        + "\nx = load_image(scene.images[0], vit)",
        {
            "Null": 'null = Null("pixel", n=8, groups=16)\nregularize(scene.images[0], vit, null=null, seed=0)',
            "NullScores": "a0 = Null(n=4, groups=16).scores(x, vit, Attention(), seed=0)\na0.values.shape  # (4, 16, 16)\na0 = NullScores(a0.values, joint=False)  # scores of your own",
            "NullBank": "bank = NullBank.load(vit)  # of an embedded model; NullBank.fit makes others\nregularize(scene.images[0], vit, null=bank)  # one pass, no null images",
            "bootstrap_images": 'bootstrap_images(x, 3, "phase", seed=0)  # (3, 3, 128, 128)',
        },
    ),
    "statistics": Page(
        "Statistics",
        "z-scores, p-values, q-values, local false discovery rates and their errors, from scores of any origin.",
        ("recipes", "statistics", "density", "precision"),
        SCENE.replace(
            "import load_vit", "import (\n    RECIPES, Recipe, Significance, estimate_pi0, hommel_bound, load_vit,\n    local_fdr"
        ).replace(
            "make_scenes, regularize\n",
            "make_scenes,\n    p_errors, p_intervals, p_values, q_values, regularize, significance, undecided,\n    z_scores,\n)\n",
        )
        + "\na, a0 = res.scores, res.null.values       # (16, 16), and (4, 16, 16) null scores",
        {
            "significance": 'sig = significance(a, res.null, recipe="conditional")\nsig.p, sig.q, sig.lfdr, sig.pi0',
            "Significance": "sig.p <= 0.05                 # (16, 16), bool",
            "Recipe": 'sig = significance(a, res.null, recipe=Recipe(q_method="storey"))',
            "RECIPES": 'sorted(RECIPES)               # "calibrated", "conditional", "paper", "released"',
            "z_scores": 'z, z0 = z_scores(a, a0, scale="log", standardize="pooled")',
            "p_values": "p = p_values(z, z0)",
            "q_values": "q = q_values(p)",
            "estimate_pi0": "estimate_pi0(p)",
            "local_fdr": "lfdr = local_fdr(z, z0)",
            "hommel_bound": "hommel_bound(p, alpha=0.05)   # at least this many patches are more than chance",
            "p_errors": "p_errors(z, z0)               # Monte Carlo standard errors of p",
            "p_intervals": "low, high = p_intervals(z, z0, confidence=0.99)",
            "undecided": "undecided(z, z0, alpha=0.3)   # other null images might decide otherwise",
        },
    ),
    "regions": Page(
        "Regions",
        "How sure is a whole region, and a whole image?",
        ("regions",),
        "from attnbootreg import (\n    Null, Regions, familywise_p, familywise_threshold, find_regions, true_finds,\n)\n"
        + SCENE.replace(
            "res = regularize(scene.images[0], vit, seed=0)",
            'null = Null(n=60, groups=1)  # for regions, whole images are redrawn\nres = regularize(scene.images[0], vit, null=null, recipe="calibrated", seed=0)',
        ),
        {
            "find_regions": "regions = find_regions(res.sig)",
            "Regions": "regions.table  # a row for each region: size, p, how much is real",
            "familywise_p": "familywise_p(res.sig)            # (16, 16), corrected for looking at all patches",
            "familywise_threshold": "familywise_threshold(res.sig)    # the z of 5 % of images of chance",
            "true_finds": "true_finds(res.sig.p, res.sig.p <= 0.01)  # so many are real",
        },
    ),
    "planning": Page(
        "Planning",
        "How many null images a question needs.",
        (),
        "from attnbootreg import draws_needed, power, smallest_q",
        {
            "smallest_q": "smallest_q(n=256, draws=4, k=3)   # the least q for three patches of 256",
            "draws_needed": "draws_needed(q=0.1, n=256, k=1)   # draws until a single patch can reach q <= 0.1",
            "power": "power(effects=[2.0, 3.0, 4.0], n=256, draws=4, k=10, runs=20)",
        },
    ),
    "simulation": Page(
        "Simulation and metrics",
        "Put noise at a known place, and measure what becomes of it.",
        ("simulation", "scenes", "metrics"),
        SCENE.replace(
            "import load_vit",
            "import (\n    Noise, Scenes, Tradeoff, attention_share, auroc, average_precision, coverage,\n    diffuse_mask, inject_noise, load_vit",
        )
        .replace(
            "make_scenes, regularize\n",
            "make_scenes, regularize,\n    roi_metrics, roi_nonzero, roi_percentile, roi_threshold, sensitivity,\n    specificity, square_mask, srmsd, suppression_factor, tradeoff,\n)\n",
        )
        .replace(
            "res = regularize(scene.images[0], vit, seed=0)",
            "noise = square_mask(vit.img_size, seed=0, avoid=scene.masks[0])\nnoisy = inject_noise(scene.images[0], noise, seed=0).clamp(0, 1)\nres = regularize(noisy, vit, seed=0)\ninside = coverage(noise, vit.grid)        # the share of each patch that is noise",
        ),
        {
            "Noise": 'Noise("diffuse", side=32).mask(vit.img_size, seed=0)  # (128, 128), a cloud',
            "square_mask": "square_mask(vit.img_size, side=32, seed=0)",
            "diffuse_mask": "diffuse_mask(vit.img_size, side=32, seed=0)",
            "inject_noise": "inject_noise(scene.images[0], noise, seed=0)  # (3, 128, 128)",
            "coverage": "coverage(noise, vit.grid)",
            "make_scenes": "scenes = make_scenes(4, seed=0)",
            "Scenes": "scenes.images, scenes.masks, scenes.labels",
            "attention_share": 'attention_share(res.maps["p"], inside)',
            "auroc": "auroc(res.scores, coverage(scene.masks[0], vit.grid))",
            "average_precision": "average_precision(res.scores, coverage(scene.masks[0], vit.grid))",
            "roi_metrics": 'roi_metrics(res.maps["p"], res.scores, inside)',
            "roi_nonzero": 'roi_nonzero(res.maps["p"], inside)',
            "roi_percentile": 'roi_percentile(res.maps["p"], res.scores, inside)',
            "roi_threshold": "roi_threshold(res.sig.p, inside, percent=10)",
            "sensitivity": 'sensitivity(res.maps["p"], res.scores, inside)',
            "specificity": 'specificity(res.maps["p"], res.scores, inside)',
            "srmsd": "srmsd(res.sig.p)",
            "suppression_factor": "suppression_factor([80.0, 90.0, 70.0], [10.0, 30.0, 0.0])",
            "tradeoff": "curve = tradeoff(res.scores, res.sig, inside)",
            "Tradeoff": "curve.thresholds, curve.sensitivity, curve.specificity",
        },
    ),
    "faithfulness": Page(
        "Faithfulness and sanity",
        "Does the model use what the map shows? And does the map depend on the model?",
        ("sanity", "perturbation", "faithful", "parts"),
        SCENE.replace(
            "import load_vit",
            "import (\n    Attention, FaithfulViT, Faithfulness, Perturbation, TwoStage, faithfulness,\n    load_faithful, load_image, load_vit",
        )
        .replace("make_scenes, regularize\n", "make_scenes,\n    masked_logits, perturb, regularize, sanity_check, two_stage,\n)\n")
        .replace('"scenes-plain"', '"scenes"')
        .replace("    # a small", "          # a small")
        + '\nx = load_image(scene.images[0], vit)\nkeep = res.maps["q"] > 0',
        {
            "sanity_check": "sanity_check(scene.images, vit, [Attention()], null=2, progress=False)",
            "faithfulness": "found = faithfulness(x, keep, vit)",
            "Faithfulness": "found.whole, found.alone, found.missing",
            "perturb": "curves = perturb(x, res.scores, vit)",
            "Perturbation": "curves.deletion_area, curves.insertion_area",
            "masked_logits": "masked_logits(x[None], vit, keep[None])  # the model sees the kept patches alone",
            "two_stage": 'answer = two_stage(scene.images[0], vit, rule="q", seed=0)',
            "TwoStage": "answer.whole.argmax(), answer.masked.argmax()",
            "load_faithful": 'model = load_faithful("trap")',
            "FaithfulViT": 'stages = model(load_image(scene.images[0], load_vit("trap"))[None])\nstages._fields',
        },
    ),
    "studies": Page(
        "Studies",
        "The same for thousands of images: start, stop, resume, summarize, compare.",
        ("study", "runs", "sources", "store", "compare", "datasets"),
        'from tempfile import TemporaryDirectory\n\nfrom attnbootreg import (\n    Comparison, Engine, Noise, Null, Plan, Source, Sources, Status, Study,\n    active_heads, compare_studies, group_map, load_study, load_vit, plan_study,\n    run_study, study_status, summarize,\n)\n\nfolder = TemporaryDirectory()\nout = folder.name + "/study"',
        {
            "Study": "study = Study(noise=Noise(), null=Null(n=2, groups=16))",
            "run_study": 'run_study("scenes", load_vit("scenes-plain"), out, study, limit=4, progress=False)',
            "load_study": 'table = load_study(out, ["image", "percentile_p"])',
            "summarize": "summarize(out)",
            "plan_study": 'print(plan_study("scenes", load_vit("scenes-plain"), study, limit=4, tried=2))',
            "Plan": "Plan(images=1000, settings=1, passes=33, seconds=0.5, bytes=1400).hours",
            "study_status": "print(study_status(out))",
            "Status": "study_status(out).done",
            "Sources": 'list(Sources("scenes", limit=2))',
            "Source": 'Source("cat.jpg", category="cats", path="photos/cat.jpg")',
            "Engine": 'Engine("local", workers=2)  # or Engine("ray"), on a cluster',
            "compare_studies": 'other = folder.name + "/other"\nrun_study("scenes", load_vit("scenes"), other, study, limit=4, progress=False)\ncompared = compare_studies(out, other, resamples=99)',
            "Comparison": "compared.table",
            "group_map": "import numpy as np\n\nz = np.random.default_rng(0).normal(size=(8, 4, 4))  # of 8 aligned pictures\ngroup_map(z, resamples=99)",
            "active_heads": "found = np.random.default_rng(0).random((8, 6)) < 0.1  # pictures x heads\nactive_heads(found, noise=found)",
        },
    ),
    "plots": Page(
        "Plots",
        "Figures from arrays. Each returns a figure and shows nothing by itself.",
        ("plots",),
        SCENE.replace(
            "regularize\n",
            "regularize\nfrom attnbootreg.plots import (\n    Picture, map_titles, plot_bars, plot_curves, plot_histogram, plot_images,\n    plot_map, plot_maps, plot_predictions, plot_regions, plot_regularized,\n    plot_scatter, plot_several,\n)\n",
            1,
        ),
        {
            "plots.plot_regularized": 'plot_regularized(res.image, res.scores, res.maps, res.sig, res.cuts, "A scene")',
            "plots.plot_maps": 'plot_maps({"attention": res.scores, "q ≤ 0.1": res.maps["q"]})',
            "plots.plot_map": 'figure = Picture(figsize=(3, 3))\nplot_map(figure.subplots(), res.maps["q"], (0, res.scores.max()))',
            "plots.plot_images": 'plot_images([res.image, res.image], ["one", "two"])',
            "plots.plot_several": "",
            "plots.plot_regions": "",
            "plots.plot_predictions": "",
            "plots.plot_curves": 'plot_curves({"p": ([0, 1], [0, 1])}, "threshold", "share")',
            "plots.plot_histogram": 'plot_histogram(Picture(figsize=(3, 2)).subplots(), {"p": res.sig.p.ravel()}, "p")',
            "plots.plot_scatter": "",
            "plots.plot_bars": "",
            "plots.map_titles": "map_titles(res.cuts, res.sig.pi0)",
            "plots.Picture": "",
        },
    ),
    "explorer": Page(
        "Explorer",
        "A widget to try thresholds, null images and noise in a notebook.",
        ("widget",),
        "from attnbootreg import Explorer, load_vit, make_scenes",
        {"Explorer": 'images = list(make_scenes(2, seed=0).images)\nexplorer = Explorer(load_vit("scenes-plain"), images)\nexplorer'},
    ),
}


def placed() -> dict[str, list[str]]:
    "Names on each page, as module.name: those that it lists, then other public names of its modules."
    listed = {
        slug: [name if "." in name else f"{attnbootreg._MODULE_OF[name]}.{name}" for name in page.names] for slug, page in PAGES.items()
    }
    there = {name for names in listed.values() for name in names}
    for name, module in attnbootreg._MODULE_OF.items():
        if f"{module}.{name}" not in there:
            page = next((slug for slug, page in PAGES.items() if module in page.modules), "regularize")
            listed[page].append(f"{module}.{name}")
    return listed


def example(slug: str, name: str) -> str:
    "The example of a name, module.name."
    names = PAGES[slug].names
    return names.get(name, names.get(name.partition(".")[2], ""))


def notebook(module: str) -> str:
    "The page that explains a module and proves it."
    return next((ROOT / "nbs").glob(f"[0-9][0-9]_{module}.ipynb")).name


def linked(text: str, here: str) -> str:
    "Names in backticks lead to where the reference describes them."
    pages = {name.partition(".")[2]: slug for slug, names in placed().items() for name in names}

    def link(found: re.Match) -> str:
        name = found[1].partition("(")[0].removesuffix("()")
        if name not in pages:
            return found[0]
        page = "" if pages[name] == here else f"{pages[name]}.qmd"
        return f"[{found[0]}]({page}#{name.lower()})"

    fences = re.split(r"(^```.*?^```$)", text, flags=re.S | re.M)
    return "".join(part if part.startswith("```") else re.sub(r"(?<!\[)`([A-Za-z_]\w*(?:\([^`]*\))?)`", link, part) for part in fences)


def write(slug: str, names: list[str]) -> str:
    "A page of the reference."
    page = PAGES[slug]
    modules = list(dict.fromkeys(name.partition(".")[0] for name in names))
    links = ", ".join(f"[{module}](../{notebook(module)})" for module in modules)
    parts = [f'---\ntitle: "{page.title}"\ndescription: "{page.description}"\ntoc-depth: 2\n---', "<!-- written by tools/reference.py -->"]
    rows = []
    for name in names:
        short = name.partition(".")[2]
        text = (inspect.getdoc(getattr(importlib.import_module(f"attnbootreg.{name.partition('.')[0]}"), short)) or "").partition("\n")[0]
        text = "the named recipes" if short == "RECIPES" else text
        rows.append(f"| [`{short}`](#{short.lower()}) | {text.replace('|', chr(92) + '|')} |")
    parts.append("\n".join(["| name | what it is or does |", f"|:{'-' * 24}|:{'-' * 72}|", *rows]))
    parts.append(f"How it is made and tested: {links}. The examples of this page share these lines:")
    parts.append(f"```python\n{page.setup}\n```")
    for name in names:
        module, _, short = name.partition(".")
        item = getattr(importlib.import_module(f"attnbootreg.{module}"), short)
        parts.append(f"## {short} {{#{short.lower()}}}")
        if short == "RECIPES":
            parts.append("The named recipes, a dictionary: `" + "`, `".join(sorted(item)) + "`.")
        else:
            head = short if name.removeprefix(f"{module}.") in attnbootreg._MODULE_OF else f"from attnbootreg.{module} import {short}"
            shown = linked(markdown(item, short), slug)
            parts.append(shown if head == short else f"`{head}`\n\n{shown}")
        if example(slug, name):
            parts.append(f"**Example**\n\n```python\n{example(slug, name)}\n```")
    return "\n\n".join(parts) + "\n"


def commands() -> dict[str, str]:
    "The help of the command line and of each command, 80 columns wide."
    from typer import rich_utils
    from typer.main import get_command
    from typer.testing import CliRunner

    from attnbootreg.cli import app

    rich_utils.MAX_WIDTH = 80
    names = ["", *get_command(app).commands]
    return {name: CliRunner().invoke(app, [*name.split(), "--help"], prog_name="attnbootreg").stdout.strip("\n") for name in names}


def write_commands() -> str:
    "The page of the command line."
    parts = [
        '---\ntitle: "Commands"\ndescription: "Every command with its whole help: the method on files, without a line of Python."\ntoc-depth: 2\n---'
    ]
    parts.append("<!-- written by tools/reference.py -->")
    parts.append(
        "[Command line](../43_cli.ipynb) shows the commands in use. `attnbootreg --install-completion` lets your shell complete them."
    )
    for name, text in commands().items():
        lines = [line.rstrip() for line in text.splitlines()]
        parts.append(f"## attnbootreg {name}".rstrip() + f" {{#{name or 'attnbootreg'}-command}}")
        parts.append("```text\n" + "\n".join(lines).strip("\n") + "\n```")
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    "All pages, by the name of the file."
    return {f"{slug}.qmd": write(slug, names) for slug, names in placed().items()} | {"commands.qmd": write_commands()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT), file=sys.stderr)
