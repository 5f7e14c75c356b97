"""Predictions from some patches: what is hidden is nowhere, positions stay, and every form of model is checked against a pass that is not ours.

The other pass is the model's own, over all tokens, with -inf in the attention logits of hidden patches, and its head on the kept tokens of each image."""

import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import VisionTransformer
from torch import nn
from torch.overrides import TorchFunctionMode

from attnbootreg import Cuts, Masked, Study, load_study, load_vit, make_scenes, masked_logits, run_study, two_stage
from attnbootreg.attention import Attention
from attnbootreg.faithful import can_drop, dilated, kept_logits

QUICK = dict(null=2, recipe="calibrated", seed=0, progress=False)


def awake(model):
    "Random weights that leave nothing near zero: LayerScale, heads, biases and positions all count."
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                size = 0.5 if any(part in name for part in ("pos", "token", "table", "latent")) else 1.4 / math.sqrt(value[0].numel())
                value.copy_(torch.randn(value.shape, generator=draw) * size)
            elif "gamma" in name or "lambda" in name or "scale" in name:
                value.fill_(1.0)
    return model.eval()


def small(name, **options):
    return awake(timm.create_model(name, **{**dict(depth=2, num_classes=5, img_size=(64, 96)), **options}))


def hugging_face(kind, **options):
    transformers = pytest.importorskip("transformers", reason="needs attnbootreg[hf]")
    kind = getattr(transformers, kind)
    sizes = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=64, image_size=64, patch_size=8)
    return awake(kind(kind.config_class(**sizes, num_labels=5, **options)))


def torchvision_vit():
    from torchvision.models import VisionTransformer as Theirs

    return awake(Theirs(image_size=64, patch_size=8, num_layers=2, num_heads=2, hidden_dim=48, mlp_dim=64, num_classes=5))


TINY = dict(embed_dim=96, num_heads=3)
MODELS = {
    "class token": lambda: small("vit_tiny_patch16_224"),
    "average pooling": lambda: small("vit_medium_patch16_gap_240", **TINY),
    "attention pooling": lambda: small("vit_base_patch16_siglip_224", **TINY),
    "DeiT III": lambda: small("deit3_small_patch16_224", **TINY),
    "DINOv2, registers": lambda: small("vit_small_patch14_reg4_dinov2", img_size=(56, 84), **TINY),
    "parallel blocks": lambda: small("vit_small_patch16_18x2_224", **TINY),
    "relative positions": lambda: small("vit_relpos_small_patch16_224", **TINY),
    "BEiT": lambda: small("beit_base_patch16_224", **TINY),
    "EVA-02": lambda: small("eva02_tiny_patch14_224", img_size=(56, 84), **TINY),
    "DINOv3": lambda: small("vit_small_patch16_dinov3", **TINY),
    "RoPE-ViT, mixed": lambda: small("vit_small_patch16_rope_mixed_224", **TINY),
    "Hugging Face, ViT": lambda: hugging_face("ViTForImageClassification"),
    "Hugging Face, DINOv2": lambda: hugging_face("Dinov2ForImageClassification"),
    "torchvision": torchvision_vit,
}


class InfiniteMasks(TorchFunctionMode):
    "Adds -inf to the attention logits of hidden keys, in every call that has all tokens or all patches as keys."

    def __init__(self, keep, prefix):
        super().__init__()
        patches = torch.zeros(keep.shape).masked_fill(~keep, -torch.inf).flatten(1)[:, None, None]
        self.masks = {one.shape[-1]: one for one in (F.pad(patches, (prefix, 0)), patches)}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            query, key, value, *rest = args
            own = rest[0] if rest else kwargs.get("attn_mask")
            mask = self.masks[key.shape[2]] + (0 if own is None else own)
            kwargs = {name: one for name, one in kwargs.items() if name in ("scale",)}
            return func(query, key, value, attn_mask=mask, **kwargs)
        return func(*args, **kwargs)


def full_length(vit, x, keep):
    "Logits of the model's own full-length pass with -inf masks; its pooling and head see the kept tokens of each image."
    model, logits = vit.model, []
    for image, mask in zip(x, keep):
        there = torch.cat([torch.ones(vit.prefix, dtype=torch.bool), mask.flatten()])
        with torch.no_grad(), InfiniteMasks(mask[None], vit.prefix):
            if hasattr(model, "forward_head"):
                tokens = model.forward_features(image[None])
            elif hasattr(model, "wrapped"):
                tokens = model.wrapped.base_model(pixel_values=image[None]).last_hidden_state
            else:
                tokens = explicit_torchvision(model, image[None], there)
        seen = tokens[:, there]
        with torch.no_grad():
            if hasattr(model, "forward_head"):
                logits.append(model.forward_head(seen))
            elif hasattr(model, "wrapped"):
                both = torch.cat([seen[:, 0], seen[:, 1:].mean(1)], 1)
                head = model.wrapped.classifier
                logits.append(head(both if head.in_features == both.shape[1] else seen[:, 0]))
            else:
                logits.append(model.heads(seen[:, 0]))
    return torch.cat(logits)


def explicit_torchvision(model, x, there):
    "Its encoder, with the masks that nn.MultiheadAttention takes itself."
    tokens = torch.cat([model.class_token.expand(len(x), -1, -1), model._process_input(x)], 1) + model.encoder.pos_embedding
    for block in model.encoder.layers:
        inner = block.ln_1(tokens)
        tokens = tokens + block.self_attention(inner, inner, inner, key_padding_mask=~there[None], need_weights=False)[0]
        tokens = tokens + block.mlp(block.ln_2(tokens))
    return model.encoder.ln(tokens)


def masks(vit, shares, seed=0):
    draw = torch.Generator().manual_seed(seed)
    keep = torch.rand(len(shares), *vit.grid, generator=draw) < torch.tensor(shares)[:, None, None]
    keep[:, 1, 2] = True
    return keep


@pytest.mark.filterwarnings("ignore:model. there is no image processor")
@pytest.mark.parametrize("name", list(MODELS))
def test_logits_are_those_of_a_full_pass_with_infinite_masks(name):
    vit = load_vit(MODELS[name](), device="cpu")
    assert can_drop(vit)
    x, keep = torch.randn(4, 3, *vit.img_size, generator=torch.Generator().manual_seed(1)), masks(vit, [0.1, 0.9, 0.4, 1.1])
    ours, expected = masked_logits(x, vit, keep), full_length(vit, x, keep)
    with torch.no_grad():
        assert (vit.model(x)[:3] - expected[:3]).abs().max() > 0.01  # the masks matter
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(masked_logits(x, vit, keep, batch_size=1), expected, atol=1e-5, rtol=1e-5)
    dirty = torch.where(keep.repeat_interleave(vit.patch_size[0], 1).repeat_interleave(vit.patch_size[1], 2)[:, None], x, torch.nan)
    assert torch.equal(masked_logits(dirty, vit, keep), ours)


def test_tokens_that_cannot_be_dropped_are_hidden():
    if "deepseek_vit_412m" not in timm.list_models():
        pytest.skip(f"timm {timm.__version__} has no deepseek_vit_412m")
    vit = load_vit(awake(timm.create_model("deepseek_vit_412m", depth=2, num_classes=5, **TINY)), img_size=(56, 84), device="cpu")
    x, keep = torch.randn(2, 3, *vit.img_size), masks(vit, [0.3, 0.7])
    assert not can_drop(vit)
    other = torch.where(keep.repeat_interleave(14, 1).repeat_interleave(14, 2)[:, None], x, torch.inf)
    assert torch.equal(masked_logits(x, vit, keep), masked_logits(other, vit, keep))
    with torch.no_grad():
        assert (masked_logits(x, vit, keep) - vit.model(x)).abs().max() > 0.01


def test_models_whose_patches_meet_elsewhere_are_refused():
    cait = load_vit(timm.create_model("cait_xxs24_224", img_size=64, depth=2, num_classes=5), device="cpu")
    with pytest.raises(TypeError, match="class attention"):
        masked_logits(torch.randn(1, 3, 64, 64), cait, torch.ones(1, *cait.grid, dtype=torch.bool))

    class Leaky(VisionTransformer):
        def forward_features(self, x, **options):
            return super().forward_features(x, **options) + x.mean((1, 2, 3))[:, None, None]

    leaky = load_vit(awake(Leaky(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)), device="cpu")
    with pytest.raises(TypeError, match="hidden patches reach its output"):
        can_drop(leaky)


# ---- faithful by construction


@settings(max_examples=25, deadline=None)
@given(
    share=st.floats(0.02, 0.95), seed=st.integers(0, 10**6),
    value=st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e30]) | st.floats(-1e6, 1e6), noise=st.booleans(),
)  # fmt: skip
def test_whatever_is_hidden_the_logits_are_the_same(vit, share, seed, value, noise):
    draw = torch.Generator().manual_seed(seed)
    x, keep = torch.randn(2, 3, *vit.img_size, generator=draw), masks(vit, [share, share / 2], seed)
    other = torch.randn(x.shape, generator=draw) * 100 if noise else torch.full_like(x, value)
    replaced = torch.where(keep.repeat_interleave(vit.patch_size[0], 1).repeat_interleave(vit.patch_size[1], 2)[:, None], x, other)
    assert torch.equal(masked_logits(x, vit, keep), masked_logits(replaced, vit, keep))


def test_a_hundred_images(vit):
    "Scenes, masks of the object, backgrounds of other scenes; and a change of what is seen does change the logits."
    scenes = make_scenes(100, seed=7_000_000)
    x = (scenes.images - 0.5) / 0.25
    keep = F.max_pool2d(scenes.masks.float()[:, None], vit.patch_size)[:, 0] > 0
    inside = keep.repeat_interleave(vit.patch_size[0], 1).repeat_interleave(vit.patch_size[1], 2)[:, None]
    logits = masked_logits(x, vit, keep)
    assert torch.equal(masked_logits(torch.where(inside, x, x.roll(1, 0)), vit, keep), logits)
    changed = masked_logits(torch.where(inside, x + 0.1, x), vit, keep)
    assert ((changed - logits).abs().amax(1) > 0).all()


def test_gradients_pass_and_stay_inside(vit):
    x, keep = torch.randn(2, 3, *vit.img_size, requires_grad=True), masks(vit, [0.2, 0.5])
    kept_logits(x, vit, keep)[:, 0].sum().backward()
    inside = keep.repeat_interleave(vit.patch_size[0], 1).repeat_interleave(vit.patch_size[1], 2)[:, None].expand_as(x)
    assert (x.grad[~inside] == 0).all() and (x.grad[inside] != 0).float().mean() > 0.9


def test_trying_leaves_the_model_as_it_is():
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)
    vit = load_vit(awake(model), device="cpu")
    vit.model.blocks.train()
    assert can_drop(vit) and vit.model.blocks[0].training and not vit.model.norm.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.model.modules())


# ---- bad input


def test_errors_name_the_argument(vit):
    x, keep = torch.randn(2, 3, *vit.img_size), masks(vit, [0.5, 0.5])
    for wrong, message in (
        (torch.stack([keep[0], torch.zeros_like(keep[0])]), "keep: the mask of image 1 is empty"),
        (keep[:, :3], r"keep: .*\(2, 16, 16\).* got \(2, 3, 16\) of bool"),
        (keep[:1], "keep: .*for each image"),
        (keep.float(), "of float32"),
    ):
        with pytest.raises(ValueError, match=message):
            masked_logits(x, vit, wrong)
    with pytest.raises(ValueError, match="x: expected normalized images"):
        masked_logits(x[..., 1:], vit, keep)
    headless = load_vit(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, num_classes=0), device="cpu")
    with pytest.raises(ValueError, match="no head for classes"):
        masked_logits(torch.randn(1, 3, 64, 64), headless, torch.ones(1, 4, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="load_vit"):
        two_stage("a.png", nn.Linear(1, 1))


# ---- two stages


def test_two_stages(vit, scene):
    two = two_stage(scene, vit, rule="p", dilate=1, cuts=Cuts(p=0.1), **QUICK)
    assert np.array_equal(two.keep, dilated(two.res.sig.p <= 0.1, 1) & two.keep) and two.rule == "p ≤ 0.1"
    (h, w), near = vit.grid, np.zeros(vit.grid, bool)
    for row, column in np.argwhere(two.res.maps["p"] != 0):  # chessboard distance, patch by patch
        near[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
    assert np.array_equal(two.keep, near) and two.share == near.mean()
    own = lambda res: np.arange(h * w).reshape(h, w) < 40
    mine = two_stage(scene, vit, own, **QUICK)
    assert mine.keep.sum() == 40 and mine.rule == "<lambda>" and mine.plot().to_png().startswith(b"\x89PNG")
    softmax = torch.tensor(np.stack([mine.whole, mine.masked])).softmax(1)
    assert mine.change == pytest.approx(float(softmax[1, mine.top[0]] - softmax[0, mine.top[0]]), abs=1e-6)


def test_an_empty_mask_says_which_rule_gave_it(vit, scene):
    with pytest.raises(ValueError, match=r"rule: q ≤ 0 keeps no patch of .*; use a larger cut .*empty='whole'"):
        two_stage(scene, vit, cuts=Cuts(q=0), **QUICK)
    two = two_stage(scene, vit, cuts=Cuts(q=0), empty="whole", **QUICK)
    assert two.fell_back and two.agrees and two.share == 1 and "as the mask was empty" in repr(two)
    with pytest.raises(ValueError, match="needs one map"):
        two_stage(scene, vit, score=Attention(heads="each"), **QUICK)
    with pytest.raises(ValueError, match="empty:"):
        two_stage(scene, vit, empty="none", **QUICK)


def test_patches_that_do_not_count_are_not_kept(vit, scene):
    mask = np.zeros(vit.img_size, bool)
    mask[: vit.img_size[0] // 2] = True
    two = two_stage(Masked(scene, mask), vit, rule="p", **{**QUICK, "null": 4})
    assert two.keep.any() and not two.keep[vit.grid[0] // 2 :].any()


# ---- studies


def test_a_study_compares_predictions(vit, tmp_path):
    study = Study(null=2, recipe="calibrated", predict="p", cuts=(Cuts(), Cuts(p=0)))
    folder = run_study("scenes", vit, tmp_path / "study", study, 2, progress=False)
    rows = load_study(folder)
    seen, empty = rows[rows["cut_p"] > 0], rows[rows["cut_p"] == 0]
    assert (empty["share_used"] == 0).all() and empty["class_masked"].isna().all()
    assert seen["share_used"].between(0, 1, "neither").all() and set(seen["class_whole"]) <= set(range(12))
    assert (seen["agreement"] == (seen["class_whole"] == seen["class_masked"])).all() and (seen["confidence_change"].abs() <= 1).all()
    with pytest.raises(ValueError, match="predict is 'p' there and None here"):
        run_study("scenes", vit, folder, Study(null=2, recipe="calibrated", cuts=(Cuts(), Cuts(p=0))), 2, progress=False)
    with pytest.raises(ValueError, match="predict:"):
        Study(predict="fdr")


def test_a_model_whose_outputs_hardly_depend_on_the_image_is_not_refused():
    "Layer scales of 1e-5 leave rounding as large as what images differ by."
    vit = load_vit(timm.create_model("vit_small_patch14_dinov2", img_size=56, depth=2, num_classes=10), device="cpu")
    assert can_drop(vit)
