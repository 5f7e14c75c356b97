"Attention Regularization by the Bootstrap: which attention scores of a vision transformer are more than chance?"

__version__ = "0.2.0"

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

# for editors; at run time a module is imported when the first of its names is used, so that the command line starts at once
if TYPE_CHECKING:
    from attnbootreg.attention import Attention, attention_scores, upsample
    from attnbootreg.bank import NullBank
    from attnbootreg.bootstrap import Null, NullScores, bootstrap_images
    from attnbootreg.compare import Comparison, active_heads, compare_studies, group_map
    from attnbootreg.faithful import TwoStage, masked_logits, two_stage
    from attnbootreg.images import Masked, load_image, to_pixels
    from attnbootreg.layouts import ViT
    from attnbootreg.loading import list_models, load_vit
    from attnbootreg.method import Regularized, regularize
    from attnbootreg.metrics import (
        Tradeoff, attention_share, auroc, average_precision, roi_metrics, roi_nonzero, roi_percentile, roi_threshold, sensitivity, specificity, srmsd,
        suppression_factor, tradeoff,
    )  # fmt: skip
    from attnbootreg.parts import FaithfulViT, load_faithful
    from attnbootreg.perturbation import Faithfulness, Perturbation, faithfulness, perturb
    from attnbootreg.precision import draws_needed, p_errors, p_intervals, power, smallest_q, undecided
    from attnbootreg.recipes import RECIPES, Cuts, Recipe
    from attnbootreg.regions import Regions, familywise_p, familywise_threshold, find_regions, true_finds
    from attnbootreg.relevance import CDAM, Captum, Concept, GradCAM, InputGradient, LeGrad, PytorchGradCAM, Relevance, Rollout
    from attnbootreg.sanity import sanity_check
    from attnbootreg.scenes import Scenes, make_scenes
    from attnbootreg.scores import Score
    from attnbootreg.shrinkage import shrink
    from attnbootreg.simulation import Noise, coverage, diffuse_mask, inject_noise, square_mask
    from attnbootreg.statistics import Significance, estimate_pi0, hommel_bound, local_fdr, p_values, q_values, significance, z_scores
    from attnbootreg.study import Engine, Study, load_study, run_study, summarize
    from attnbootreg.widget import Explorer

_MODULES = {
    "attention": "Attention attention_scores upsample",
    "bank": "NullBank",
    "bootstrap": "Null NullScores bootstrap_images",
    "compare": "Comparison active_heads compare_studies group_map",
    "faithful": "TwoStage masked_logits two_stage",
    "images": "Masked load_image to_pixels",
    "layouts": "ViT",
    "loading": "list_models load_vit",
    "method": "Regularized regularize",
    "metrics": "Tradeoff attention_share auroc average_precision roi_metrics roi_nonzero roi_percentile roi_threshold sensitivity specificity srmsd "
    "suppression_factor tradeoff",
    "parts": "FaithfulViT load_faithful",
    "perturbation": "Faithfulness Perturbation faithfulness perturb",
    "precision": "draws_needed p_errors p_intervals power smallest_q undecided",
    "recipes": "RECIPES Cuts Recipe",
    "regions": "Regions familywise_p familywise_threshold find_regions true_finds",
    "relevance": "CDAM Captum Concept GradCAM InputGradient LeGrad PytorchGradCAM Relevance Rollout",
    "sanity": "sanity_check",
    "scenes": "Scenes make_scenes",
    "scores": "Score",
    "shrinkage": "shrink",
    "simulation": "Noise coverage diffuse_mask inject_noise square_mask",
    "statistics": "Significance estimate_pi0 hommel_bound local_fdr p_values q_values significance z_scores",
    "study": "Engine Study load_study run_study summarize",
    "widget": "Explorer",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

# modules that need a package of an extra; without it, help(attnbootreg), completion and import * leave their names out
_NEEDS = {"compare": ["pyarrow"], "study": ["pyarrow"], "widget": ["ipywidgets", "anywidget"]}
_WITHOUT = {module for module, packages in _NEEDS.items() if not all(map(find_spec, packages))}

__all__ = sorted(name for name, module in _MODULE_OF.items() if module not in _WITHOUT)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'attnbootreg' has no attribute {name!r}")
    globals()[name] = getattr(import_module(f"attnbootreg.{_MODULE_OF[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__version__"]
