"Attention Regularization by the Bootstrap: which attention scores of a vision transformer are more than chance?"

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors; at run time a room is opened when the first of its names is used, so that the command line starts at once
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
    from attnbootreg.study import load_study, run_study, summarize
    from attnbootreg.widget import Explorer

_ROOMS = {
    "arb": "Regularized regularize",
    "attention": "attention_scores upsample",
    "bootstrap": "bootstrap_images null_scores",
    "clusters": "Regions familywise_p familywise_threshold regions true_finds",
    "loading": "ViT list_models load_image load_vit",
    "metrics": "Tradeoff attention_share auroc roi_metrics roi_nonzero roi_percentile roi_threshold sensitivity specificity srmsd "
    "suppression_factor tradeoff",
    "perturbation": "Perturbation perturb",
    "precision": "p_errors p_intervals undecided",
    "scenes": "Scenes make_scenes",
    "shrinkage": "shrink",
    "simulation": "coverage diffuse_mask inject_noise square_mask",
    "statistics": "Recipe Significance estimate_pi0 hommel_bound local_fdr p_values q_values significance significance_beside z_scores",
    "study": "load_study run_study summarize",
    "widget": "Explorer",
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names.split()}

__all__ = sorted(_ROOM_OF)


def __getattr__(name: str) -> object:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'attnbootreg' has no attribute {name!r}")
    globals()[name] = getattr(import_module(f"attnbootreg.{_ROOM_OF[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__version__"]
