"Scores of any kind go the whole way: positive or signed, with exact zeros, one map or several; and the attention of many models."

import pickle
import re

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import VisionTransformer
from timm.models.vision_transformer import ParallelThingsBlock
from torch import nn

from attnbootreg import (
    RECIPES, Attention, Cuts, Masked, Null, Recipe, Regularized, Score, attention_scores, attention_share, auroc, coverage, familywise_p,
    find_regions, load_vit, p_errors, regularize, significance, suppression_factor, tradeoff, undecided,
)  # fmt: skip
from attnbootreg.metrics import roi_metrics
from attnbootreg.scores import import_score
from attnbootreg.shrinkage import shrink_all
from attnbootreg.simulation import square_mask

FAST = settings(max_examples=40, deadline=None)
SIGNED = Recipe(scale="linear", alternative="two-sided", tail="both")
SMALL = 1e-4  # of a saliency, which is taken for zero

# ---- scores as a user writes them


def sharpened(model):
    "Random weights, whose attention is far from even."
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and re.search(r"\b(qkv|q_proj|k_proj|in_proj|kv)\.weight", name):
                weight.mul_(6)
            elif "bias_table" in name:
                weight.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def vit():
    "A small model, on whose scores nothing depends here but the time that they take."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = sharpened(VisionTransformer(img_size=64, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5))
        for weight in (model.norm.weight, model.head.weight):
            nn.init.normal_(weight)
    return load_vit(model, device="cpu")


def token_norm(vit, x):
    "The norm of each patch's embedding."
    with torch.inference_mode():
        tokens = vit.model.forward_features(x.to(vit.device, vit.dtype))[:, vit.prefix :]
    return tokens.norm(dim=-1).unflatten(1, vit.grid)


def saliency(vit, x):
    "Gradient times input of the class that wins, summed over each patch; small values are zero."
    x = x.clone().requires_grad_()
    vit.model(x).amax(1).sum().backward()
    return F.softshrink(F.avg_pool2d((x.grad * x.detach()).sum(1), vit.patch_size), SMALL)


def both(vit, x):
    return torch.stack([token_norm(vit, x) - 7, saliency(vit, x)], 1)


SCORES = {
    "a function": token_norm,
    "positive": Score(token_norm, scale="log"),
    "signed": Score(saliency, signed=True),
    "two maps": Score(both, signed=True, maps=("norm", "saliency")),
}
pytestmark = pytest.mark.filterwarnings(  # scores with many ties have no smooth density, and small grids no density at all
    "ignore:z. the Poisson fit failed", "ignore:The design matrix is rank-deficient", "ignore:p. .* scores are too few", "ignore:sig. with"
)


@pytest.mark.parametrize("recipe", list(RECIPES))
@pytest.mark.parametrize("name", list(SCORES))
def test_from_the_image_to_the_file(tmp_path, vit, scene, name, recipe):
    score = SCORES[name]
    res = regularize(scene, vit, score, 5, recipe, Cuts(p=0.1), seed=0, batch_size=2)
    shape = (2, *vit.grid) if name == "two maps" else vit.grid
    signed = name in ("signed", "two maps")
    assert res.scores.shape == shape and np.asarray(res.null).shape == (*shape[:-2], 5, *shape[-2:]) and len(res) == len(shape) - 1
    assert ((res.scores < 0).any(), (np.asarray(res.null) < 0).any()) == (signed, signed)
    used = res.sig.recipe
    assert used.scale == ("log" if name == "positive" else "linear")
    assert used.alternative == ("two-sided" if signed or recipe == "released" else "greater")
    assert used.tail == ("both" if signed and recipe != "released" else "upper")
    for map in res.maps.values():
        assert ((map == 0) | (np.sign(map) == np.sign(res.scores))).all() and (np.abs(map) <= np.abs(res.scores)).all()
    for values in (res.sig.p, res.sig.q, res.sig.lfdr):
        assert ((0 <= values) & (values <= 1)).all()
    assert res.p_error.shape == res.undecided.shape == shape and (res.p_error >= 0).all()
    table = res.summary()
    assert list(table.index) == (["norm", "saliency"] if name == "two maps" else ["scores", *res.maps])
    assert table.filter(like="kept").stack().between(0, 1 + 1e-6).all()
    res.save(tmp_path / "scene")
    again = Regularized.load(tmp_path / "scene")
    assert again.settings == res.settings and again.sig.recipe == used and (tmp_path / "scene.png").read_bytes().startswith(b"\x89PNG")
    np.testing.assert_array_equal(again.scores, res.scores)
    np.testing.assert_array_equal(again.undecided, res.undecided)


def test_exact_zeros_are_there_and_stay_zero(vit, scene):
    res = regularize(scene, vit, SCORES["signed"], recipe="calibrated", seed=0)
    zero = res.scores == 0
    assert 0.02 < zero.mean() < 0.9 and 0.02 < (np.asarray(res.null) == 0).mean() < 0.9
    assert len(set(res.sig.p[zero])) == 1 and not any(map[zero].any() for map in res.maps.values())
    assert (res.maps["p"] > 0).any() and (res.maps["p"] < 0).any()  # both signs can be found


def test_the_same_score_however_it_is_given(vit, scene):
    named = import_score(f"{__name__}:token_norm")
    ways = (token_norm, Score(token_norm), named, pickle.loads(pickle.dumps(named)))
    results = [regularize(scene, vit, score, 2, seed=0) for score in ways]
    for res in results[1:]:
        assert res.settings == results[0].settings and res.settings["score"]["function"] == "test_scores:token_norm"
        np.testing.assert_array_equal(res.sig.p, results[0].sig.p)


def test_maps_of_one_score_are_judged_as_they_are_alone(vit, scene):
    together = regularize(scene, vit, SCORES["two maps"], 5, "calibrated", seed=0, batch_size=2)
    for j, one in enumerate(together):
        alone = regularize(scene, vit, Score(lambda vit, x, j=j: both(vit, x)[:, j], signed=True), 5, "calibrated", seed=0, batch_size=2)
        for name in ("z", "z0", "p", "q", "lfdr", "pi0"):
            np.testing.assert_array_equal(getattr(one.sig, name), getattr(alone.sig, name))
        for name, map in alone.maps.items():
            np.testing.assert_array_equal(one.maps[name], map)
        np.testing.assert_array_equal(together.p_error[j], alone.p_error)
        assert (familywise_p(together.sig)[j] >= familywise_p(alone.sig)).all()  # a statement about both maps costs something
        assert one.settings["map"] == ("norm", "saliency")[j]


@pytest.mark.parametrize("name", ["positive", "signed"])
def test_regions_and_errors(vit, scene, name):
    res = regularize(scene, vit, SCORES[name], 19, "calibrated", seed=0)
    sig, found = res.sig, find_regions(res.sig)
    significant = sig.p <= 0.05
    np.testing.assert_array_equal(found.labels > 0, significant & ((sig.z > 0) | (name == "signed") & (sig.z < 0)))
    for number, region in found.table.iterrows():
        z = sig.z[found.labels == number]
        assert len(set(np.sign(z))) == 1 and region["peak_z"] == z[np.abs(z).argmax()] and region["patches"] == z.size
    assert found.table["size_p"].between(1 / 20, 1).all() and found.table["true_share"].between(0, 1).all()
    assert found.plot(res.image).to_png()
    p, size = familywise_p(sig), np.abs(sig.z) if name == "signed" else sig.z
    assert p.flat[size.argmax()] == p.min() and (np.diff(p.ravel()[size.argsort(axis=None)]) <= 0).all()
    np.testing.assert_array_equal(res.p_error, p_errors(sig.z, sig.z0, sig.recipe))
    np.testing.assert_array_equal(res.undecided, undecided(sig.z, sig.z0, 0.3, recipe=sig.recipe))


@pytest.mark.parametrize("name", list(SCORES))
def test_automatic_number_of_null_images(vit, name):
    pure = np.random.default_rng(0).random((64, 64, 3))
    res = regularize(pure, vit, SCORES[name], Null(n="auto", n_max=40), cuts=Cuts(p=0.1), seed=0)
    assert len(res.null) == 40 or res.undecided.mean() <= 0.02
    fixed = regularize(pure, vit, SCORES[name], len(res.null), cuts=Cuts(p=0.1), seed=0)
    np.testing.assert_allclose(fixed.null, res.null, rtol=1e-3, atol=1e-5)


def test_metrics_of_signed_maps_are_those_of_their_sizes(vit, scene):
    inside = coverage(square_mask(vit.img_size, seed=0), vit.grid)
    res = regularize(scene, vit, SCORES["signed"], 5, seed=0)
    before, after = [], []
    for map in res.maps.values():
        one, size = (roi_metrics(*values, inside) for values in ((map, res.scores), (np.abs(map), np.abs(res.scores))))
        assert one == size and 0 <= one["percentile"] <= 100 and 0 <= one["specificity"] <= 1 + 1e-6
        assert attention_share(map, inside) == attention_share(np.abs(map), inside)
        before.append(roi_metrics(res.scores, res.scores, inside)["percentile"])
        after.append(one["percentile"])
        assert 0 <= auroc(map, inside) <= 1
    assert (np.array(after) <= np.array(before) + 1e-9).all()
    assert 0 <= suppression_factor(np.array(before), np.array(after))[0] <= 1
    for method in ("p", "q", "lfdr"):
        curve = tradeoff(res.scores, res.sig, inside, method)
        assert (np.diff(curve.sensitivity) <= 1e-12).all() and (np.diff(curve.specificity) >= -1e-12).all() and 0 <= curve.area <= 1


@pytest.mark.parametrize("name", ["signed", "two maps", "positive"])
def test_null_scores_do_not_depend_on_the_batch_size(vit, scene, name):
    one, other = (np.asarray(regularize(scene, vit, SCORES[name], 5, seed=0, batch_size=size).null) for size in (1, 4))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def patch_brightness(vit, x):
    return F.avg_pool2d(x.mean(1), vit.patch_size)


@pytest.mark.parametrize("kind", ["normal", "pixel", "patch", "uniform", "gaussian_color"])
def test_what_is_masked_out_does_not_matter(vit, scene, kind):
    belongs, score = np.zeros((64, 64), bool), Score(patch_brightness, signed=True)
    belongs[8:56, 16:] = True
    results = []
    for filling in (0.0, 1.0):
        picture = torch.where(torch.from_numpy(belongs), F.avg_pool2d(scene, 2), filling)
        results.append(regularize(Masked(picture, belongs), vit, score, Null(kind, n=5), seed=0))
    one, other = results
    np.testing.assert_array_equal(one.sig.tested, belongs[::8, ::8])
    for name in ("z", "z0", "p", "q", "lfdr", "pi0"):
        np.testing.assert_allclose(getattr(one.sig, name), getattr(other.sig, name), rtol=1e-4, atol=1e-4)
    for name, map in one.maps.items():
        assert not map[~one.sig.tested].any() and (map[one.sig.tested] != 0).sum() == (other.maps[name] != 0).sum()


# ---- what must hold for all signed scores


@st.composite
def signed_maps(draw, rounded=True):
    "Signed scores (h, w) and null scores (B, h, w), often with exact zeros and other ties."
    h, w, B = draw(st.integers(5, 9)), draw(st.integers(5, 9)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    values = rng.standard_t(4, (B + 1, h, w)) + draw(st.sampled_from([0.0, 0.3]))
    values[0] += draw(st.sampled_from([0.0, 3.0])) * rng.choice([-1, 0, 0, 0, 1], (h, w))
    if draw(st.booleans()):
        values[np.abs(values) < 0.5] = 0
    if rounded and draw(st.booleans()):
        values = np.round(values, 1)
    return values[0], values[1:]


def parts(labels):
    "Regions without their numbers, which depend on the order of regions of one size."
    return {frozenset(np.flatnonzero(labels == number)) for number in range(1, labels.max() + 1)}


@FAST
@given(
    signed_maps(),
    st.sampled_from([Recipe(), Recipe(q_method="by"), Recipe(pi0_method="smoother", strict=True), Recipe(pool_observed=True)]),
)
def test_mirrored_maps_give_mirrored_results(case, recipe):
    recipe = recipe.resolved("linear", signed=True)
    one, other = significance(*case, recipe), significance(*(-values for values in case), recipe)
    np.testing.assert_array_equal(other.z, -one.z)
    for name in ("p", "q", "lfdr", "pi0"):
        np.testing.assert_array_equal(getattr(other, name), getattr(one, name))
    for name, map in shrink_all(case[0], one).items():
        np.testing.assert_array_equal(shrink_all(-case[0], other)[name], -map)
    np.testing.assert_array_equal(familywise_p(other), familywise_p(one))
    np.testing.assert_array_equal(p_errors(other.z, other.z0, recipe), p_errors(one.z, one.z0, recipe))
    np.testing.assert_array_equal(undecided(other.z, other.z0, 0.3, recipe=recipe), undecided(one.z, one.z0, 0.3, recipe=recipe))
    regions = find_regions(one, 0.2), find_regions(other, 0.2)
    assert parts(regions[0].labels) == parts(regions[1].labels)
    columns = ["patches", "peak_z", "size_p", "true_share"]
    np.testing.assert_allclose(*(sorted(found.table[columns].abs().to_numpy().tolist()) for found in regions))


@FAST
@given(st.lists(signed_maps(), min_size=2, max_size=2), st.sampled_from([RECIPES["calibrated"], RECIPES["released"], SIGNED]))
def test_maps_judged_together_are_maps_judged_alone(cases, recipe):
    B, h, w = (min(sizes) for sizes in zip(*(null.shape for _, null in cases)))
    maps, nulls = np.stack([scores[:h, :w] for scores, _ in cases]), np.stack([null[:B, :h, :w] for _, null in cases])
    recipe = recipe.resolved("linear", signed=False)
    together = significance(maps, nulls, recipe)
    shrunken = shrink_all(maps, together)
    for j in range(2):
        alone = significance(maps[j], nulls[j], recipe)
        for name in ("z", "z0", "p", "q", "lfdr", "pi0"):
            np.testing.assert_array_equal(getattr(together[j], name), getattr(alone, name))
        for name, map in shrink_all(maps[j], alone).items():
            np.testing.assert_array_equal(shrunken[name][j], map)
        assert (familywise_p(together)[j] >= familywise_p(alone)).all()


@FAST
@given(
    signed_maps(rounded=False),
    st.data(),
    st.sampled_from([Recipe(), SIGNED, Recipe(pi0_method="bootstrap", pool_observed=True, pi0_cut="percentile")]),
)
def test_a_mask_is_a_cut(case, data, recipe):
    scores, null = case
    top, left = (data.draw(st.integers(0, side - 4)) for side in scores.shape)
    rows, columns = (slice(start, data.draw(st.integers(start + 3, side))) for start, side in zip((top, left), scores.shape))
    mask = np.zeros(scores.shape, bool)
    mask[rows, columns] = True
    recipe = recipe.resolved("linear")
    if null[:, mask].std() < 1e-6:
        return
    part, cut = significance(scores, null, recipe, mask), significance(scores[rows, columns], null[:, rows, columns], recipe)
    for name in ("z", "z0"):
        np.testing.assert_allclose(getattr(part, name)[..., rows, columns], getattr(cut, name), atol=1e-9)
    for name in ("p", "q", "lfdr"):
        np.testing.assert_allclose(getattr(part, name)[rows, columns], getattr(cut, name), atol=1e-9)
    assert part.pi0 == pytest.approx(cut.pi0, abs=1e-9) and np.isnan(part.p[~mask]).all()
    for name, map in shrink_all(scores, part).items():
        np.testing.assert_allclose(map[rows, columns], shrink_all(scores[rows, columns], cut)[name], atol=1e-9)
        assert not map[~mask].any()
    np.testing.assert_allclose(familywise_p(part)[rows, columns], familywise_p(cut), atol=1e-12)


# ---- attention of many models


def plain(**options):
    return VisionTransformer(**{**dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5), **options})


def small(name, **options):
    return timm.create_model(name, **{**dict(img_size=64, depth=2, num_classes=5), **options})


LAYOUTS = {  # how it is made, and its prefix tokens
    "vit": (lambda: small("vit_tiny_patch16_224"), 1),
    "deit, distilled": (lambda: small("deit_tiny_distilled_patch16_224"), 2),
    "deit3, layer scale": (lambda: small("deit3_small_patch16_224"), 1),
    "dinov2, registers": (lambda: small("vit_small_patch14_reg4_dinov2", img_size=56), 5),
    "dinov3, rotary": (lambda: small("vit_small_patch16_dinov3"), 5),
    "eva02, rotary": (lambda: small("eva02_tiny_patch14_224", img_size=56), 1),
    "beit, relative bias": (lambda: small("beit_base_patch16_224", embed_dim=96, num_heads=3), 1),
    "relative positions": (lambda: small("vit_relpos_small_patch16_224", embed_dim=96, num_heads=3), 0),
    "flexivit": (lambda: small("flexivit_small"), 1),
    "siglip, attention pooling": (lambda: small("vit_base_patch16_siglip_224", embed_dim=96, num_heads=3), 0),
    "parallel blocks": (lambda: small("vit_pwee_patch16_reg1_gap_256"), 1),
    "parallel attention": (lambda: plain(block_fn=ParallelThingsBlock), 1),
    "qk norm, no class token": (lambda: plain(qk_norm=True, class_token=False, global_pool="avg"), 0),
    "rectangle": (lambda: plain(img_size=(32, 64), reg_tokens=2, no_embed_class=True), 3),
}


def softmaxes(model, x, tokens):
    "All attention of the model, as it computes it without a fused kernel: (N, heads, tokens, tokens) each."
    kept = []
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
        if hasattr(module, "attn_drop"):
            module.attn_drop.register_forward_hook(lambda module, args, out: kept.append(args[0]))
    with torch.no_grad():
        model(x)
    return [attention for attention in kept if attention.shape[-2:] == (tokens, tokens)]


def close(one, other):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_attention_is_the_models_own_softmax(name):
    make, prefix = LAYOUTS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = sharpened(make())
        vit = load_vit(model, device="cpu")
        x = torch.randn(2, 3, *vit.img_size)
    h, w = vit.grid
    assert vit.prefix == prefix
    own = softmaxes(model, x, prefix + h * w)
    assert len(own) == vit.layers >= 2 and own[0].shape[1] == vit.heads
    for layer, attention in enumerate(own):
        assert attention.amax() > 3 / attention.shape[-1]
        to_patches = attention[..., prefix:].unflatten(-1, vit.grid)
        for row, query in enumerate(vit.tokens):
            close(attention_scores(x, vit, layer, "each", query), to_patches[:, :, row])
        close(attention_scores(x, vit, layer, "each", "mean"), to_patches[:, :, prefix:].mean(2))
        close(attention_scores(x, vit, layer, "max", (1, 2)), to_patches[:, :, prefix + w + 2].amax(1))
    assert vit.pool == ("pool" in vit.queries) == (name == "siglip, attention pooling")
    for query in vit.queries:
        scores = attention_scores(x, vit, -1, "each", query)
        assert scores.shape == (2, vit.heads, h, w) and (scores > 0).all() and (scores.sum((-2, -1)) <= 1 + 1e-5).all()
        if not prefix or query == "pool":
            close(scores.sum((-2, -1)), torch.ones(2, vit.heads))


@pytest.mark.parametrize("name", ["dinov3, rotary", "beit, relative bias", "siglip, attention pooling"])
def test_any_of_them_is_regularized(name, scene):
    vit = load_vit(sharpened(LAYOUTS[name][0]()), device="cpu")
    res = regularize(scene, vit, Attention(query=vit.queries[-1]), 2, seed=0)
    assert res.scores.shape == vit.grid and res.settings["score"]["query"] == vit.queries[-1]


class Explicit(nn.Module):
    "Attention that writes its softmax out."

    def __init__(self, attn):
        super().__init__()
        self.attn = attn

    def forward(self, x, **options):
        q, k, v = self.attn.qkv(x).unflatten(-1, (3, 3, -1)).permute(2, 0, 3, 1, 4)
        return self.attn.proj(((q @ k.mT) * self.attn.scale).softmax(-1).matmul(v).transpose(1, 2).flatten(2))


def explicit():
    model = plain()
    for block in model.blocks:
        block.attn = Explicit(block.attn)
    return model


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: timm.create_model("resnet18"), "ResNet, not a timm VisionTransformer"),
        (lambda: timm.create_model("convnext_atto"), "ConvNeXt, not a timm VisionTransformer"),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224"), "SwinTransformer, not a timm VisionTransformer"),
        (lambda: timm.create_model("mixer_s32_224"), "MlpMixer, not a timm VisionTransformer"),
        (lambda: timm.create_model("cait_xxs24_224", depth=2), "(no call of it is over all 197 tokens|this is a Cait)"),  # older timm
        (lambda: timm.create_model("vit_tiny_r_s16_p8_224"), "does not cut images of three channels into plain patches"),
        (explicit, "it never calls scaled_dot_product_attention"),
    ],
    ids=["resnet", "convnext", "swin", "mixer", "cait", "hybrid", "explicit"],
)
def test_models_that_cannot_be_read_are_refused_with_the_reason(make, reason):
    with pytest.raises(TypeError, match=f"^model: .*{reason}") as error:
        load_vit(make(), device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_names_of_such_models_are_refused_at_once(name):
    with pytest.raises(TypeError, match=f"^model: '{name}' is not a timm VisionTransformer.*`attnbootreg models` lists"):
        load_vit(name, pretrained=False, device="cpu")
