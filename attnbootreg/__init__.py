"Attention Regularization by the Bootstrap: which attention scores of a vision transformer are more than chance?"

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING

from attnbootreg.arb import Regularized, regularize
from attnbootreg.attention import attention_scores, upsample
from attnbootreg.bootstrap import bootstrap_images, null_scores
from attnbootreg.clusters import Regions, familywise_p, familywise_threshold, regions, true_finds
from attnbootreg.loading import ViT, list_models, load_image, load_vit
from attnbootreg.metrics import (
    Tradeoff, attention_share, auroc, roi_metrics, roi_nonzero, roi_percentile, roi_threshold, sensitivity, specificity, srmsd,
    suppression_factor, tradeoff,
)  # fmt: skip
from attnbootreg.perturbation import Perturbation, perturb
from attnbootreg.precision import p_errors, p_intervals, undecided
from attnbootreg.scenes import Scenes, make_scenes
from attnbootreg.shrinkage import shrink
from attnbootreg.simulation import coverage, diffuse_mask, inject_noise, square_mask
from attnbootreg.statistics import (
    Recipe, Significance, estimate_pi0, hommel_bound, local_fdr, p_values, q_values, significance, significance_beside, z_scores,
)  # fmt: skip
if TYPE_CHECKING:
    from attnbootreg.study import load_study, run_study, summarize
    from attnbootreg.widget import Explorer

__all__ = [
    "Explorer", "Perturbation", "Recipe", "Regions", "Regularized", "Scenes", "Significance", "Tradeoff", "ViT",
    "attention_scores", "attention_share", "auroc", "bootstrap_images", "coverage", "diffuse_mask", "estimate_pi0", "familywise_p",
    "familywise_threshold", "hommel_bound", "inject_noise", "list_models", "load_image", "load_study", "load_vit", "local_fdr",
    "make_scenes", "null_scores", "p_errors", "p_intervals", "p_values", "perturb", "q_values", "regions", "regularize", "roi_metrics",
    "roi_nonzero", "roi_percentile", "roi_threshold", "run_study", "sensitivity", "shrink", "significance", "significance_beside",
    "specificity", "square_mask", "srmsd", "summarize", "suppression_factor", "tradeoff", "true_finds", "undecided", "upsample",
    "z_scores",
]

# rooms that import much: opened by who enters
_LATER = {"Explorer": "widget", "load_study": "study", "run_study": "study", "summarize": "study"}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module 'attnbootreg' has no attribute {name!r}")
    return getattr(import_module(f"attnbootreg.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
