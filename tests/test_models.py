"""Which models can be read: scores equal the model's own attention, computed without any fused kernel, for each form of model.

The same table on the page "Your own model" comes from here. Weights are random; blocks few; images small."""

import copy
import json
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import SwiGLUPacked
from timm.models import VisionTransformer
from timm.models.vision_transformer import ParallelThingsBlock
from torch import nn
from torch.overrides import TorchFunctionMode

from attnbootreg import Attention, Null, attention_scores, list_models, load_image, load_vit, perturb, regularize
from attnbootreg.loading import TABLE, try_timm


# ---- the model's own attention


class Softmaxes(TorchFunctionMode):
    "Keeps what every softmax over four axes gives."

    def __init__(self):
        super().__init__()
        self.kept = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "softmax" and out.ndim == 4:
            self.kept.append(out.float())
        return out


def tell_weights(module):
    "Multi-head attention that keeps its weights, which it gives if it is asked for them."

    def ask(module, args, kwargs):
        return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

    module.told = []
    module.register_forward_pre_hook(ask, with_kwargs=True)
    module.register_forward_hook(lambda module, args, out: module.told.append(out[1]))


def own_attention(model, x):
    "All attention of the model, unfused: a list of (N, heads, Q, T), blocks and pools in the order of the pass."
    multi_head = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
        if hasattr(module, "set_attn_implementation"):
            module.set_attn_implementation("eager")
    for module in multi_head:
        tell_weights(module)
    with torch.no_grad(), Softmaxes() as softmaxes:
        model(x)
    return softmaxes.kept + [weights for module in multi_head for weights in module.told]


def sharpened(model):
    "With larger random weights, so that attention is far from uniform."
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "bias_table" in name:
                value.normal_()
            elif value.ndim > 1 and "embed" not in name:
                value.mul_(3)
    return model


def check(make, prefix, tolerance=1e-5, classes=(), **options):
    "Load the model, and compare all its attention, row by row, with its own. Gives a row of the table."
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        source = sharpened(make()).eval()
        vit = load_vit(source, device="cpu", **options)
        x = torch.randn(2, 3, *vit.img_size)
    (h, w), worst = vit.grid, 0.0
    assert vit.prefix == prefix and vit.grid != (1, 1)

    def close(scores, expected):
        nonlocal worst
        assert scores.shape == (*expected.shape[:-1], h, w) and (scores > 0).all()
        worst = max(worst, float((scores.flatten(2) - expected).abs().max() / expected.max()))

    read = {
        query: attention_scores(x, vit, tuple(range(vit.layers)), "each", query).unflatten(1, (vit.layers, -1))
        for query in vit.queries
        if query != "pool"
    }
    patch = (
        None if vit.class_only else attention_scores(x, vit, tuple(range(vit.layers)), "each", (1, w - 1)).unflatten(1, (vit.layers, -1))
    )
    pooled = attention_scores(x, vit, heads="each", query="pool") if vit.pool else None
    tokens = prefix + h * w
    told = own_attention(vit.model, x)
    blocks = [one for one in told if one.shape[2:] == ((1 if vit.class_only else tokens), tokens)]
    assert len(blocks) == vit.layers >= 1
    for layer, own in enumerate(blocks):
        assert (own.sum(-1) - 1).abs().max() < 1e-4
        to_patches = own[..., prefix:]
        for row, query in enumerate(vit.tokens):
            if query in read:
                close(read[query][:, layer], to_patches[:, :, row])
                rest = own[:, :, row, :prefix].sum(-1)
                torch.testing.assert_close(read[query][:, layer].sum((-2, -1)) + rest, torch.ones_like(rest), atol=1e-4, rtol=0)
        if patch is not None:
            close(read["mean"][:, layer], to_patches[:, :, prefix:].mean(2))
            close(patch[:, layer], to_patches[:, :, prefix + w + w - 1])
    if vit.pool:
        own = next(one for one in told if one.shape[2] != tokens and one.shape[3] in (h * w, tokens))
        close(pooled, own[:, :, 0, -h * w :])
    assert worst <= tolerance, worst
    return {
        "model": vit.name,
        "grid": f"{h} x {w}",
        "queries": vit.queries,
        "default": vit.query,
        "layers": vit.layers,
        "largest error": worst,
    }


# ---- timm


def small(name, **options):
    "A model of timm in small."
    if name not in timm.list_models():
        pytest.skip(f"timm {timm.__version__} has no {name}")
    return timm.create_model(name, **{**dict(depth=2, num_classes=5), **options})


def plain(**options):
    return VisionTransformer(**{**dict(img_size=(32, 64), patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5), **options})


TINY = dict(embed_dim=96, num_heads=3)
BIASED = 1e-4  # where there are biases or rotary positions
TIMM = {  # how it is made, its prefix tokens, the tolerance
    "class token, patch 16": (lambda: small("vit_tiny_patch16_224", img_size=(64, 96)), 1),
    "patch 8": (lambda: small("vit_small_patch8_224", img_size=(32, 48), **TINY), 1),
    "patch 32": (lambda: small("vit_small_patch32_224", img_size=(128, 64), **TINY), 1),
    "DINOv2, patch 14": (lambda: small("vit_small_patch14_dinov2", img_size=(56, 84)), 1),
    "DINOv2, four registers": (lambda: small("vit_small_patch14_reg4_dinov2", img_size=(56, 84)), 5),
    "seven registers": (lambda: plain(reg_tokens=7), 8),
    "SwiGLU": (lambda: small("vit_giant_patch14_dinov2", img_size=(42, 56), **TINY), 1),
    "SwiGLU, packed": (lambda: plain(mlp_layer=SwiGLUPacked), 1),
    "DeiT, distilled": (lambda: small("deit_tiny_distilled_patch16_224", img_size=(64, 96)), 2),
    "DeiT III, LayerScale": (lambda: small("deit3_small_patch16_224", img_size=(64, 96)), 1),
    "average pooling, no class token": (lambda: small("vit_medium_patch16_gap_240", img_size=(64, 96), **TINY), 0),
    "qk-norm": (lambda: plain(qk_norm=True), 1),
    "CLIP, norm first": (lambda: small("vit_base_patch32_clip_224", img_size=(128, 64), **TINY), 1),
    "SigLIP, attention pooling": (lambda: small("vit_base_patch16_siglip_224", img_size=(64, 96), **TINY), 0),
    "parallel MLP, one register": (lambda: small("vit_pwee_patch16_reg1_gap_256", img_size=(64, 96)), 1),
    "parallel blocks": (lambda: small("vit_small_patch16_18x2_224", img_size=(64, 96), **TINY), 1),
    "parallel attention": (lambda: plain(block_fn=ParallelThingsBlock), 1),
    "FlexiViT": (lambda: small("flexivit_small", img_size=(64, 96), **TINY), 1),
    "AIMv2": (lambda: small("aimv2_large_patch14_224", img_size=(42, 56), **TINY), 0),
    "relative positions": (lambda: small("vit_relpos_small_patch16_224", img_size=(64, 96), **TINY), 0, BIASED),
    "relative positions, class token": (lambda: small("vit_relpos_base_patch16_cls_224", img_size=(64, 96), **TINY), 1, BIASED),
    "BEiT": (lambda: small("beit_base_patch16_224", img_size=(64, 96), **TINY), 1, BIASED),
    "EVA-02": (lambda: small("eva02_tiny_patch14_224", img_size=(42, 56)), 1, BIASED),
    "EVA, large": (lambda: small("eva_giant_patch14_224", img_size=(42, 56), **TINY), 1, BIASED),
    "DINOv3": (lambda: small("vit_small_patch16_dinov3", img_size=(64, 96)), 5, BIASED),
    "RoPE-ViT": (lambda: small("vit_small_patch16_rope_224", img_size=(64, 96), **TINY), 1, BIASED),
    "RoPE-ViT, mixed": (lambda: small("vit_small_patch16_rope_mixed_224", img_size=(64, 96), **TINY), 1, BIASED),
    "perception encoder": (lambda: small("vit_pe_core_tiny_patch16_384", img_size=(64, 96)), 1, BIASED),
    "CaiT, class attention": (lambda: small("cait_xxs24_224", img_size=64), 1),
    "XCiT, class attention": (lambda: small("xcit_nano_12_p8_224", img_size=64), 1),
    "NaFlexViT": (lambda: small("naflexvit_base_patch16_gap", **TINY), 4),
    "Qwen3's ViT": (lambda: small("qwen3_vit_88m", **TINY), 0, BIASED),
    "DeepSeek's ViT": (lambda: small("deepseek_vit_412m", **TINY), 0, BIASED),
    "Gemma's ViT": (lambda: small("gemma4_vit_167m", **TINY), 0, BIASED),
}
SIZES = {  # set by load_vit
    "CaiT, class attention": (64, 96),
    "XCiT, class attention": (64, 96),
    "NaFlexViT": (64, 96),
    "Qwen3's ViT": (64, 96),
    "DeepSeek's ViT": (56, 84),
    "Gemma's ViT": (96, 192),
}


@pytest.mark.parametrize("name", list(TIMM))
def test_timm(name):
    row = check(*TIMM[name], **({"img_size": SIZES[name]} if name in SIZES else {}))
    h, w = map(int, row["grid"].split(" x "))
    assert h != w  # not square


def test_a_pool_has_its_own_number_of_heads():
    vit = load_vit(small("vit_pe_core_tiny_patch16_384", img_size=64), device="cpu")
    assert vit.heads != vit.pool_heads == attention_scores(torch.randn(1, 3, 64, 64), vit, heads="each", query="pool").shape[1]
    with pytest.raises(ValueError, match=f"heads: 9 is not a head of .*; use 0 to {vit.pool_heads - 1}"):
        Attention(heads=9, query="pool").check(vit)


def test_the_list_is_what_was_tried():
    "All names of the table are listed, and none that was refused; one is tried again."
    table, there = json.loads(TABLE.read_text(encoding="utf-8")), set(timm.list_models())
    tried = [name for names in table["names"].values() for name in names if name in there]
    assert list_models() == [*list_models("scenes*"), "trap", *tried] and len(tried) > 200
    assert try_timm("beit_base_patch16_224")["layers"] == 12 and "beit_base_patch16_224" in tried
    assert set(table["refused"]) > {"resnet", "convnext", "swin_transformer", "vision_transformer_hybrid"}
    assert not {"swin_tiny_patch4_window7_224", "resnet18", "convnext_atto", "vit_tiny_r_s16_p8_224"} & set(list_models())


# ---- Hugging Face


HF = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=64, image_size=64, patch_size=8)
HUGGING_FACE = {  # the class, options of its configuration, prefix tokens, tolerance
    "ViT": ("ViTModel", {}, 1, 1e-5),
    "ViT, classifier": ("ViTForImageClassification", {}, 1, 1e-5),
    "DeiT": ("DeiTForImageClassificationWithTeacher", {}, 2, 1e-5),
    "DINOv2": ("Dinov2Model", {}, 1, 1e-5),
    "DINOv2, registers": ("Dinov2WithRegistersModel", dict(num_register_tokens=4), 5, 1e-5),
    "DINOv3": ("DINOv3ViTModel", dict(num_register_tokens=4), 5, BIASED),
    "SigLIP": ("SiglipVisionModel", {}, 0, 1e-5),
    "CLIP": ("CLIPVisionModel", {}, 1, 1e-5),
    "CLIP, projected": ("CLIPVisionModelWithProjection", {}, 1, 1e-5),
    "I-JEPA": ("IJepaModel", {}, 0, 1e-5),
}


def hugging_face(name, **options):
    transformers = pytest.importorskip("transformers", reason="needs attnbootreg[hf]")
    kind = getattr(transformers, name)
    return kind(kind.config_class(**HF, **options)).eval()


@pytest.mark.filterwarnings("ignore:model. there is no image processor")
@pytest.mark.parametrize("name", list(HUGGING_FACE))
def test_hugging_face(name):
    kind, options, prefix, tolerance = HUGGING_FACE[name]
    row = check(lambda: hugging_face(kind, **options), prefix, tolerance, img_size=(48, 80))
    assert row["grid"] == "6 x 10" and row["layers"] == 2
    assert row["default"] == {0: "mean"}.get(prefix, "cls") or name == "SigLIP" and row["default"] == "pool"


@pytest.mark.filterwarnings("ignore:model. there is no image processor")
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_the_attention_that_is_asked_for_elsewhere_is_not_ignored(implementation):
    "output_attentions gives nothing with sdpa; we listen, whatever the model was loaded with, and leave the user's model as it is."
    model = hugging_face("ViTModel")
    x = torch.randn(2, 3, 64, 64)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        own = model(x, output_attentions=True).attentions[-1]
    model.set_attn_implementation(implementation)
    vit = load_vit(model, device="cpu")
    torch.testing.assert_close(attention_scores(x, vit, heads="each"), own[:, :, 0, 1:].unflatten(-1, (8, 8)), atol=1e-6, rtol=1e-5)
    assert model.config._attn_implementation == implementation


@pytest.mark.filterwarnings("ignore:model. there is no image processor")
def test_whole_clip_and_siglip_models_give_their_image_side():
    transformers = pytest.importorskip("transformers", reason="needs attnbootreg[hf]")
    text = dict(HF, vocab_size=99, max_position_embeddings=8)
    for kind, queries in (("CLIP", ("cls", "mean")), ("Siglip", ("mean", "pool"))):
        config = getattr(transformers, f"{kind}Config")(vision_config=HF, text_config=text)
        whole = getattr(transformers, f"{kind}Model")(config).eval()
        vit, x = load_vit(whole, device="cpu"), torch.randn(2, 3, 64, 64)
        alone = load_vit(whole.vision_model, device="cpu")
        assert vit.queries == queries and torch.equal(attention_scores(x, vit), attention_scores(x, alone))


def test_a_folder_brings_its_normalization_and_its_classes(tmp_path, scene):
    transformers = pytest.importorskip("transformers", reason="needs attnbootreg[hf]")
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**HF, num_labels=3)).eval()
    model.save_pretrained(tmp_path)
    options = dict(image_mean=[0.2, 0.3, 0.4], image_std=[0.1] * 3, resample=2, size={"height": 64, "width": 48}, rescale_factor=1 / 127.5)
    transformers.ViTImageProcessor(**options).save_pretrained(tmp_path)
    vit = load_vit(tmp_path, device="cpu")
    assert (vit.img_size, vit.interpolation, vit.model.num_classes, vit.weights) == ((64, 48), "bilinear", 3, str(tmp_path))
    pixels = torch.rand(2, 3, 64, 48)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    own = processor(list(pixels.mul(255).round().byte()), return_tensors="pt")["pixel_values"]
    ours = (pixels.mul(255).round() / 255 - torch.tensor(vit.mean)[:, None, None]) / torch.tensor(vit.std)[:, None, None]
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(vit.model(own), model(own, interpolate_pos_encoding=True).logits)
    random = load_vit(tmp_path, pretrained=False, device="cpu")
    assert random.weights == "random" and not torch.equal(attention_scores(own, random), attention_scores(own, vit))
    x = load_image(scene, vit)
    with torch.no_grad():
        assert perturb(x, attention_scores(x, vit), vit, steps=4).target == vit.model(x[None]).argmax()


def test_a_folder_without_all_weights_is_refused(tmp_path):
    pytest.importorskip("transformers", reason="needs attnbootreg[hf]")
    from safetensors.torch import load_file, save_file

    hugging_face("ViTModel").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = {name: value for name, value in load_file(path).items() if "layers.1" not in name and "layer.1" not in name}
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack weights"):
        load_vit(tmp_path, device="cpu")


# ---- open_clip, torchvision, the original DINO, and modules of any form


OPEN_CLIP = {
    "class token": (dict(), 1, (48, 80)),
    "attention pooling": (dict(attentional_pool=True, attn_pooler_queries=7, attn_pooler_heads=2), 1, (48, 80)),
    "LayerScale": (dict(ls_init_value=0.1), 1, (48, 80)),
}


@pytest.mark.parametrize("name", list(OPEN_CLIP))
def test_open_clip(name):
    transformer = pytest.importorskip("open_clip.transformer", reason="needs open_clip_torch")
    options, prefix, size = OPEN_CLIP[name]
    make = lambda: transformer.VisionTransformer(64, 8, width=48, layers=2, heads=3, mlp_ratio=2, output_dim=24, **options)
    row = check(make, prefix, img_size=size)
    assert row["layers"] == 2 and row["default"] == "cls"


def test_a_whole_open_clip_model_gives_its_image_side_with_its_normalization():
    open_clip = pytest.importorskip("open_clip", reason="needs open_clip_torch")
    sides = dict(
        vision_cfg=dict(image_size=64, layers=2, width=64, head_width=32, patch_size=8), text_cfg=dict(width=32, heads=2, layers=1)
    )
    model = open_clip.CLIP(embed_dim=16, **sides).eval()
    open_clip.model.set_model_preprocess_cfg(model, dict(size=64, mean=(0.1, 0.2, 0.3), std=(0.4,) * 3, interpolation="bilinear"))
    vit = load_vit(model, device="cpu")
    assert (vit.mean, vit.std, vit.interpolation, vit.heads) == ((0.1, 0.2, 0.3), (0.4,) * 3, "bilinear", 2)
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(vit.model(x), model.encode_image(x))


def torchvision_vit(**options):
    from torchvision.models import VisionTransformer as Theirs

    return Theirs(**{**dict(image_size=64, patch_size=8, num_layers=2, num_heads=2, hidden_dim=48, mlp_dim=64, num_classes=5), **options})


def test_torchvision():
    assert check(torchvision_vit, 1)["grid"] == "8 x 8"
    assert check(torchvision_vit, 1, img_size=96)["grid"] == "12 x 12"
    with pytest.raises(TypeError, match="cannot be run on images of 64 x 96 px"):  # it compares both sides with one number
        load_vit(torchvision_vit(), img_size=(64, 96))


def test_the_fast_path_of_multi_head_attention_hides_nothing():
    "Outside of a listener the whole layer is one operator; inside it is heard, and gives the same."
    model = torchvision_vit().eval()
    x, called = torch.randn(2, 3, 64, 64), []
    with torch.inference_mode():
        assert torch.backends.mha.get_fastpath_enabled()
        fast = model(x)
        vit = load_vit(model, device="cpu")
        vit.listen(x, lambda call: bool(called.append(call.shape)))
        assert called == [(2, 2, 65, 65)] * 2
        torch.testing.assert_close(vit.model(x), fast)
        assert torch.backends.mha.get_fastpath_enabled()


class Dino(nn.Module):
    "The form of the original DINO code: explicit attention, positions interpolated in each pass, get_last_selfattention."

    class Block(nn.Module):
        def __init__(self, dim, heads):
            super().__init__()
            self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(dim), nn.LayerNorm(dim)
            self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
            self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

        def forward(self, x, return_attention=False):
            q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
            if return_attention:
                return weights
            x = x + self.proj((weights @ v).transpose(1, 2).flatten(2))
            return x + self.mlp(self.norm2(x))

    def __init__(self, size=64, patch=8, dim=48, depth=3, heads=3):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.img_size, self.patch_embed.patch_size = size, patch
        self.patch_embed.proj = nn.Conv2d(3, dim, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (size // patch) ** 2, dim))
        self.blocks = nn.ModuleList(self.Block(dim, heads) for _ in range(depth))

    def interpolate_pos_encoding(self, grid):
        side = int((self.pos_embed.shape[1] - 1) ** 0.5)
        patches = F.interpolate(self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2), size=grid, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], 1)

    def prepare_tokens(self, x):
        patches = self.patch_embed.proj(x)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        return tokens + self.interpolate_pos_encoding(patches.shape[2:])

    def forward(self, x):
        x = self.prepare_tokens(x)
        for block in self.blocks:
            x = block(x)
        return x[:, 0]

    def get_last_selfattention(self, x):
        x = self.prepare_tokens(x)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.blocks[-1](x, return_attention=True)


@pytest.mark.parametrize("size", [64, (48, 80)])
def test_modules_with_get_last_selfattention(size, scene):
    torch.manual_seed(0)
    model = sharpened(Dino()).eval()
    vit = load_vit(model, img_size=size, device="cpu")
    h, w = vit.grid
    x = torch.randn(2, 3, *vit.img_size)
    with Softmaxes() as softmaxes, torch.no_grad():
        model(x)
    own = softmaxes.kept[-1]
    assert vit.last_only and vit.layers == 1 and vit.queries == ("cls", "mean")
    torch.testing.assert_close(attention_scores(x, vit, heads="each").flatten(2), own[:, :, 0, 1:])
    torch.testing.assert_close(attention_scores(x, vit, heads="each", query="mean").flatten(2), own[:, :, 1:, 1:].mean(2))
    torch.testing.assert_close(attention_scores(x, vit, heads="each", query=(1, 2)).flatten(2), own[:, :, 1 + w + 2, 1:])
    with pytest.raises(ValueError, match="layer: -2 is not a block"):
        attention_scores(x, vit, layer=-2)
    assert regularize(scene, vit, null=Null(n=2, groups=1), seed=0).scores.shape == (h, w)


def test_get_last_selfattention_must_give_a_softmax():
    class Logits(Dino):
        def get_last_selfattention(self, x):
            return super().get_last_selfattention(x).log()

    with pytest.raises(TypeError, match="each row with sum 1"):
        load_vit(Logits())


class OneHead(nn.Module):
    "Attention without an axis of heads, an unusual start, and a causal mask or not."

    def __init__(self, causal=False, last=False):
        super().__init__()
        self.cut, self.causal, self.last = nn.Conv2d(3, 24, 8, 8), causal, last
        self.start, self.pos = nn.Parameter(torch.randn(1, 2, 24)), nn.Parameter(torch.randn(1, 66, 24))
        self.qkv = nn.ModuleList(nn.Linear(24, 72) for _ in range(2))

    def forward(self, x):
        patches, start = self.cut(x).flatten(2).transpose(1, 2), self.start.expand(len(x), -1, -1)
        x = torch.cat([patches, start] if self.last else [start, patches], 1) + self.pos
        for qkv in self.qkv:
            x = x + F.scaled_dot_product_attention(*qkv(x).chunk(3, -1), is_causal=self.causal)
        return x[:, 0]


@pytest.mark.parametrize("causal", [False, True])
def test_any_module_that_calls_the_function(causal):
    torch.manual_seed(0)
    model = OneHead(causal)
    vit = load_vit(model, img_size=64, device="cpu")
    assert (vit.patch_size, vit.tokens, vit.layers, vit.heads) == ((8, 8), ("cls", "register:0"), 2, 1)
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        tokens = torch.cat([model.start.expand(3, -1, -1), model.cut(x).flatten(2).transpose(1, 2)], 1) + model.pos
        q, k, _ = model.qkv[0](tokens).chunk(3, -1)
    logits = q @ k.mT / 24**0.5
    rows = (logits.masked_fill(torch.ones(66, 66).triu(1).bool(), -torch.inf) if causal else logits).softmax(-1)
    torch.testing.assert_close(attention_scores(x, vit, 0, query="mean"), rows[:, 2:, 2:].mean(1).unflatten(-1, (8, 8)))
    assert load_vit(model, img_size=(64, 96), device="cpu").grid == (8, 12)  # its positions are resampled


def test_wrong_sizes_and_orders_are_noticed():
    "Each of these has a grid that fits, so nothing but a look at the patches can tell."
    with pytest.raises(TypeError, match=r"patch \(0, 7\) of OneHead is its token 7, not 9"):
        load_vit(OneHead(last=True), img_size=64)  # its other tokens stand behind the patches
    with pytest.raises(TypeError, match="only patches in rows"):
        load_vit(OneHead(), img_size=64, patch_size=(4, 16))
    with pytest.raises(TypeError, match="Check patch_size and prefix"):
        load_vit(OneHead(), img_size=64, patch_size=16)
    with pytest.raises(ValueError, match="prefix: OneHead has 2 tokens in addition to its 64 patches, not 1"):
        load_vit(OneHead(), img_size=64, prefix=1)
    for wrong, why in [
        (dict(patch_size="8"), "patch_size|img_size"),
        (dict(prefix=-1), "prefix: must be"),
        (dict(patch_size=0), "patch_size|img_size"),
    ]:
        with pytest.raises(ValueError, match=why):
            load_vit(OneHead(), **{"img_size": 64, **wrong})


def test_a_model_that_was_changed_after_loading_is_noticed():
    vit = load_vit(plain(), device="cpu")
    vit.model.blocks = vit.model.blocks[:1]
    with pytest.raises(RuntimeError, match="made fewer attention calls than when it was loaded"):
        attention_scores(torch.randn(1, 3, 32, 64), vit)


# ---- what is refused


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
        (lambda: timm.create_model("resnet18"), "ResNet does not say how it cuts images into patches, and convolutional nets cut none"),
        (lambda: timm.create_model("convnext_atto"), "it never calls scaled_dot_product_attention"),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224"), "calls of 49 queries and 49 keys in 64 windows of each image"),
        (lambda: timm.create_model("pit_ti_224"), "50 and 197 and 730 tokens in different blocks"),
        (lambda: timm.create_model("crossvit_tiny_240"), "197 and 401 tokens in different blocks"),
        (lambda: timm.create_model("mixer_s32_224"), "it never calls scaled_dot_product_attention"),
        (lambda: timm.create_model("vit_tiny_r_s16_p8_224"), "does not cut images of three channels into plain patches"),
        (lambda: plain(in_chans=1), "does not cut images of three channels"),
        (lambda: plain(attn_layer="diff", num_heads=2), "combines several softmaxes"),
        (explicit, "it never calls scaled_dot_product_attention"),
    ],
    ids=["resnet", "convnext", "swin", "pit", "crossvit", "mixer", "hybrid", "gray", "differential", "explicit"],
)  # fmt: skip
def test_models_that_cannot_be_read_are_refused_with_the_reason(make, reason):
    with pytest.raises(TypeError, match=f"^model: .*{reason}") as error:
        load_vit(make(), device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_names_of_such_models_are_refused_before_anything_is_fetched(name, monkeypatch):
    monkeypatch.setattr(timm.models, "load_checkpoint", None)
    with pytest.raises(TypeError, match=f"^model: .*{name}.*`attnbootreg models` lists"):
        load_vit(name, device="cpu")


@pytest.mark.parametrize(
    "name", ["DINOv3", "BEiT", "SigLIP, attention pooling", "average pooling, no class token", "CaiT, class attention"]
)
def test_any_of_them_is_regularized(name, scene):
    "Without a word about the query; the result says whom it asked."
    vit = load_vit(sharpened(TIMM[name][0]()), device="cpu")
    res = regularize(scene, vit, null=Null(n=2, groups=1), seed=0)
    asked = {"SigLIP, attention pooling": "pool", "average pooling, no class token": "mean"}.get(name, "cls")
    assert res.scores.shape == vit.grid and res.settings["score"]["query"] == vit.query == asked
    assert (f"query={asked}" in repr(res) + res.plot()._suptitle.get_text()) == (asked != "cls")


def test_the_users_module_is_not_changed():
    for model in (torchvision_vit(), OneHead(), Dino()):
        before = copy.deepcopy(model.state_dict())
        load_vit(model, img_size=96, dtype="bfloat16", device="cpu")
        assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def table():
    "All that was compared, one row for each form of model: python tests/test_models.py"
    import pandas as pd

    warnings.simplefilter("ignore")
    sized = {name: {"img_size": SIZES[name]} if name in SIZES else {} for name in TIMM}
    rows = {("timm", name): check(*how, **sized[name]) for name, how in TIMM.items()}
    for name, (kind, options, prefix, tolerance) in HUGGING_FACE.items():
        rows["Hugging Face", name] = check(lambda: hugging_face(kind, **options), prefix, tolerance, img_size=(48, 80))  # noqa: B023
    rows["torchvision", "ViT"] = check(torchvision_vit, 1)
    return pd.DataFrame(rows).T


if __name__ == "__main__":
    print(table().drop(columns="queries").to_string())
