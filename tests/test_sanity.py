"Sanity checks: the model of the user stays, seeds repeat, and the numbers are those of a computation by hand."

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from timm.models import VisionTransformer

from attnbootreg import CDAM, Attention, LeGrad, Null, load_image, load_vit, sanity_check, significance
from attnbootreg.recipes import RECIPES
from attnbootreg.sanity import _parts, _randomized
from attnbootreg.scores import settled


@pytest.fixture(scope="module")
def vit():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=5, reg_tokens=2)
        torch.nn.init.normal_(model.head.weight)
    return load_vit(model, device="cpu")


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).random((2, 32, 32, 3)).astype(np.float32)


def test_equals_a_computation_by_hand(vit, pictures):
    score, null = CDAM(), Null(n=3)
    table = sanity_check(pictures, vit, [score], null, alpha=0.1, seed=4, progress=False)
    assert list(table.index.get_level_values("step")) == ["trained", "head", "block 2", "block 1", "block 0", "embeddings"]
    for step, other in _randomized(vit, 4):
        if step == "block 1":
            other = replace(other, model=copy.deepcopy(other.model))
            break
    correlations, shares = [], []
    for i, picture in enumerate(pictures):
        x = load_image(picture, vit)
        meant = settled(score, vit, x)
        assert meant.target is not None
        trained, random = (meant(one, x[None])[0].numpy() for one in (vit, other))
        correlations.append(spearmanr(trained.ravel(), random.ravel()).statistic)
        draws = null.resolved(20).scores(x, other, meant, seed=4 + i)
        shares.append((significance(random, draws, RECIPES["calibrated"].resolved("linear", True)).p <= 0.1).mean())
    row = table.loc[str(score), :].loc["block 1"]
    assert row["correlation"] == pytest.approx(np.mean(correlations), abs=1e-6)
    assert row["significant"] == pytest.approx(np.mean(shares)) and row["significant_error"] == pytest.approx(
        np.std(shares, ddof=1) / 2**0.5
    )


def test_weights_behind_the_blocks_belong_to_the_head(vit):
    transformer = pytest.importorskip("open_clip.transformer", reason="needs open_clip_torch")
    model = transformer.VisionTransformer(image_size=32, patch_size=8, width=16, layers=2, heads=2, mlp_ratio=2, output_dim=12)
    theirs = load_vit(model, device="cpu")
    names = {id(weight): name for name, weight in theirs.model.named_parameters()}
    parts = {part: {names[id(weight)] for weight in weights} for part, weights in _parts(theirs).items()}
    assert parts["head"] == {"proj", "ln_post.weight", "ln_post.bias"}  # proj is declared before the blocks
    assert parts["embeddings"] == {"class_embedding", "positional_embedding", "conv1.weight", "ln_pre.weight", "ln_pre.bias"}
    assert len(parts["block 1"]) == len(parts["block 0"]) == 12


def test_the_model_stays_and_seeds_repeat(vit, pictures):
    before = {name: value.clone() for name, value in vit.model.state_dict().items()}
    scores = [Attention(), LeGrad()]
    one, same, other = (sanity_check(pictures, vit, scores, 2, seed=seed, progress=False) for seed in (0, 0, 1))
    assert all(torch.equal(value, before[name]) for name, value in vit.model.state_dict().items())
    assert one.equals(same) and not one.equals(other)
    assert list(dict.fromkeys(one.index.get_level_values("map"))) == [str(score) for score in scores]
    rows = one.xs("trained", level="step")
    np.testing.assert_allclose(rows["correlation"], 1)


@pytest.mark.parametrize(
    "wrong, says",
    [(dict(alpha=2), "alpha"), (dict(scores=[]), "scores: there are none"), (dict(null=0), "n: must be"), (dict(seed=-1), "seed")],
)
def test_bad_arguments_are_named(vit, pictures, wrong, says):
    with pytest.raises(ValueError, match=says):
        sanity_check(pictures, vit, **{**dict(progress=False), **wrong})
