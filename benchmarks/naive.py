"""The baseline of the benchmarks: the method as its description reads, without any optimization.

Written here from that description, not taken from anybody's code: every block computes its full n x n attention, autograd keeps
the graph, each null image goes through the model alone, and the statistics are computed on upsampled pixels.
"""

import copy

import numpy as np
import torch
from statsmodels.stats.multitest import local_fdr
from torch import Tensor, nn

from attnbootreg import Cuts, ViT, load_image, upsample


class FullAttention(nn.Module):
    "softmax(Q K' / sqrt(d)) V as it is written, with the weights of all tokens for all tokens kept where they can be read."

    def __init__(self, attn: nn.Module):
        super().__init__()
        self.attn, self.weights = attn, None

    def forward(self, tokens: Tensor, **options: object) -> Tensor:
        attn = self.attn
        q, k, v = attn.qkv(tokens).unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
        self.weights = (attn.q_norm(q) @ attn.k_norm(k).transpose(-2, -1) * attn.scale).softmax(-1)
        return attn.proj((self.weights @ v).transpose(1, 2).flatten(2))


def naive_model(vit: ViT) -> nn.Module:
    "A copy of the model whose blocks keep all their attention, with gradients."
    model = copy.deepcopy(vit.model).requires_grad_(True)
    for block in model.blocks:
        block.attn = FullAttention(block.attn)
    return model


def pixel_scores(x: Tensor, model: nn.Module, vit: ViT) -> np.ndarray:
    "The attention of CLS in the last block after a whole forward pass, as pixels (H, W)."
    model(x[None].to(vit.dtype))
    map = model.blocks[-1].attn.weights[0, :, 0, vit.prefix :].mean(0).unflatten(0, vit.grid)
    for block in model.blocks:
        block.attn.weights = None  # with them goes the graph
    return upsample(map.detach().float(), vit.img_size).numpy()


def pixel_statistics(scores: np.ndarray, null: np.ndarray, cuts: Cuts = Cuts()) -> dict[str, np.ndarray]:
    "Maps (H, W) from scores (H, W) and null scores (B, H, W), a statistic for every pixel."
    log_null = np.log(null)
    z, z0 = ((np.log(values) - log_null.mean()) / log_null.std() for values in (scores, null))
    pooled = np.sort(np.abs(np.concatenate([z.ravel(), z0.ravel()])))
    p = 1 - np.searchsorted(pooled, np.abs(z), "right") / len(pooled)
    pi0 = min(1, (p > 0.89).mean() / 0.11)
    rates = local_fdr(z.ravel(), null_proportion=pi0).reshape(z.shape)
    kept = {"p": p <= cuts.p, "lfdr": rates <= cuts.lfdr, "pi0": p <= np.percentile(p, 100 * (1 - pi0)), "z": z >= cuts.z}
    return {name: scores * keep * (z >= cuts.z) for name, keep in kept.items()}


def null_image(x: Tensor) -> Tensor:
    std, mean = torch.std_mean(x, (1, 2), keepdim=True, correction=0)
    return mean + std * torch.randn_like(x)


def regularize_naively(image: np.ndarray, model: nn.Module, vit: ViT, n: int) -> dict[str, np.ndarray]:
    "Maps (H, W) of one picture."
    x = load_image(image, vit)
    null = np.stack([pixel_scores(null_image(x), model, vit) for _ in range(n)])
    return pixel_statistics(pixel_scores(x, model, vit), null)
