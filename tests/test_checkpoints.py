"Files of weights in every form that people have: the same scores as the model that wrote them, and no code is run."

import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import VisionTransformer

from attnbootreg import attention_scores, load_vit

DEPTH = dict(depth=2, embed_dim=96, num_heads=3)


@pytest.fixture(scope="module")
def source():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("vit_small_patch16_224", img_size=64, num_classes=7, **DEPTH).eval()


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def trunk(state):
    return {name: value for name, value in state.items() if not name.startswith("head.")}


PROJECTION = {"head.mlp.0.weight": torch.zeros(4, 4), "head.last_layer.weight_g": torch.zeros(4, 1)}
OTHER = {"cls_token": torch.full((1, 1, 96), 9.0)}  # what must not be taken
FORMS = {  # what is in the file, and how many classes the model has then
    "timm": (lambda s: s, 7),
    "timm, averaged": (lambda s: {"state_dict": {**s, **OTHER}, "state_dict_ema": s, "epoch": 3, "args": Namespace(lr=1)}, 7),
    "DDP": (lambda s: {"model": prefixed("module.", s)}, 7),
    "compiled": (lambda s: prefixed("_orig_mod.", s), 7),
    "DINO, released backbone": (trunk, 0),
    "DINO, teacher": (
        lambda s: {
            "student": prefixed("module.backbone.", {**trunk(s), **OTHER}),
            "teacher": prefixed("backbone.", trunk(s)) | PROJECTION,
            "optimizer": {"state": {0: torch.zeros(2)}, "param_groups": [{"lr": 0.1}]},
            "epoch": 9, "args": Namespace(arch="vit_small"), "dino_loss": {"center": torch.zeros(1, 3)},
        },
        0,
    ),  # fmt: skip
    "DINO, student alone": (lambda s: {"student": prefixed("module.backbone.", trunk(s)) | prefixed("module.", PROJECTION)}, 0),
    "DINOv2, training": (lambda s: {"model": prefixed("teacher.backbone.", trunk(s)) | prefixed("student.backbone.", trunk(s) | OTHER)}, 0),
    "Lightning, backbone with its head": (lambda s: lightning(prefixed("model.", s)), 7),
    "Lightning, linear head beside it": (
        lambda s: lightning(prefixed("model.", trunk(s)) | {"classifier.weight": s["head.weight"], "classifier.bias": s["head.bias"]}), 7
    ),
    "Lightning, a head for other features": (lambda s: lightning(prefixed("model.", trunk(s)) | {"linear.weight": torch.zeros(3, 5)}), 0),
    "Lightning, backbone": (lambda s: lightning(prefixed("model.backbone.", trunk(s)) | {"criterion.weight": torch.zeros(3)}), 0),
}  # fmt: skip


def lightning(state):
    return {
        "epoch": 1, "global_step": 10, "pytorch-lightning_version": "2.4.0", "state_dict": state, "loops": {"fit_loop": {}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {}, "param_groups": []}], "lr_schedulers": [],
        "hyper_parameters": {"lr": 1e-3, "name": "vit", "args": Namespace(seed=1)},
    }  # fmt: skip


FLAT = ("timm", "compiled", "DINO, released backbone")  # without a wrapper, so that safetensors can hold them


@pytest.mark.parametrize("name, ending", [*((name, ".pth") for name in FORMS), *((name, ".safetensors") for name in FLAT)])
def test_every_form_gives_the_scores_of_its_source(tmp_path, source, name, ending):
    make, classes = FORMS[name]
    content, path = make(source.state_dict()), tmp_path / f"file{ending}"
    if ending == ".safetensors":
        save_file({key: value.clone() for key, value in content.items()}, path)
    else:
        torch.save(content, path)
    vit = load_vit(timm.create_model("vit_small_patch16_224", img_size=64, **DEPTH), checkpoint=path, device="cpu")
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(attention_scores(x, vit), attention_scores(x, load_vit(source, device="cpu")))
    assert vit.model.num_classes == classes and vit.weights == str(path)
    if classes:
        with torch.no_grad():
            assert torch.equal(vit.model(x), source(x))


def test_a_wrong_width_of_a_linear_head_is_left_out_and_others_are_not(tmp_path, source):
    torch.save({**source.state_dict(), "head.weight": torch.zeros(3, 5)}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="of another shape: head.weight"):
        load_vit(timm.create_model("vit_small_patch16_224", img_size=64, **DEPTH), checkpoint=tmp_path / "file.pth", device="cpu")


def test_positions_are_resampled_to_the_size_that_is_asked_for(tmp_path, source):
    save_file(source.state_dict(), tmp_path / "file.safetensors")
    make = lambda: timm.create_model("vit_small_patch16_224", img_size=64, num_classes=7, **DEPTH)
    vit = load_vit(make(), checkpoint=tmp_path / "file.safetensors", img_size=(64, 96), device="cpu")
    want = load_vit(source, img_size=(64, 96), device="cpu")
    x = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(attention_scores(x, vit), attention_scores(x, want), atol=1e-6, rtol=1e-4)


def test_dinov2_with_registers_as_its_authors_wrote_it(tmp_path):
    "Their names, their 518 px and the positions of class token and patches; registers have none."
    options = dict(depth=2, embed_dim=96, num_heads=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trained = timm.create_model("vit_small_patch14_reg4_dinov2", **options).eval()
        state = dict(trained.state_dict())
        theirs = {"register_tokens": state.pop("reg_token"), "mask_token": torch.zeros(1, 96)}
        positions, at_class = state.pop("pos_embed"), torch.randn(1, 1, 96)
        theirs["pos_embed"] = torch.cat([at_class, positions], 1)
        theirs["cls_token"] = state.pop("cls_token") - at_class  # timm adds the two
    torch.save(theirs | state, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    model = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56, **options)
    vit = load_vit(model, checkpoint=tmp_path / "dinov2_vits14_reg4_pretrain.pth", img_size=(56, 84), device="cpu")
    x = torch.randn(1, 3, 56, 84)
    scores = attention_scores(x, vit)
    assert vit.tokens == ("cls", *(f"register:{i}" for i in range(4))) and scores.shape == (1, 4, 6)
    torch.testing.assert_close(scores, attention_scores(x, load_vit(trained, img_size=(56, 84), device="cpu")), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "beit_base_patch16_224", "vit_relpos_small_patch16_224", "cait_xxs24_224"])
def test_other_families_of_timm(tmp_path, name):
    options = dict(depth=2, num_classes=5) | ({} if "tiny" in name or "cait" in name else dict(embed_dim=96, num_heads=3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        source = timm.create_model(name, **options).eval()
    torch.save(source.state_dict(), tmp_path / "file.pth")
    vit = load_vit(timm.create_model(name, **options), checkpoint=tmp_path / "file.pth", device="cpu")
    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(attention_scores(x, vit), attention_scores(x, load_vit(source, device="cpu")))


def other_houses():
    from torchvision.models import VisionTransformer as Torchvision

    transformer = pytest.importorskip("open_clip.transformer", reason="needs open_clip_torch")
    yield Torchvision(image_size=64, patch_size=8, num_layers=2, num_heads=2, hidden_dim=48, mlp_dim=64, num_classes=5)
    yield transformer.VisionTransformer(64, 8, width=48, layers=2, heads=3, mlp_ratio=2, output_dim=24)


@pytest.mark.parametrize("house", [0, 1], ids=["torchvision", "open_clip"])
def test_models_of_other_houses(tmp_path, house):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        source, empty = (list(other_houses())[house] for _ in range(2))
    torch.save({"state_dict": prefixed("module.", source.state_dict())}, tmp_path / "file.pth")
    for size in (64, 96):
        vit = load_vit(empty, checkpoint=tmp_path / "file.pth", img_size=size, device="cpu")
        x = torch.randn(1, 3, size, size)
        torch.testing.assert_close(attention_scores(x, vit), attention_scores(x, load_vit(source, img_size=size, device="cpu")))


@pytest.mark.filterwarnings("ignore:model. there is no image processor")
def test_hugging_faces_own_file_and_a_module_whose_names_begin_like_a_prefix(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs attnbootreg[hf]")
    sizes = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=64, image_size=64, patch_size=8)
    source, empty = (transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes)).eval() for _ in range(2))
    assert any(name.startswith("model.") for name in source.state_dict())
    torch.save(source.state_dict(), tmp_path / "file.pth")
    vit = load_vit(empty, checkpoint=tmp_path / "file.pth", device="cpu")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(attention_scores(x, vit), attention_scores(x, load_vit(source, device="cpu")))


class Trap:
    "Makes a file when it is unpickled."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def save_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [save_pickle, torch.save], ids=["a bare pickle", "in a zip"])
@pytest.mark.parametrize("ending", [".pth", ".ckpt", ".bin", ".safetensors"])
def test_an_executable_pickle_is_refused_and_has_no_effect(tmp_path, source, save, ending):
    sprung, path = tmp_path / "sprung", tmp_path / f"file{ending}"
    save({"state_dict": source.state_dict(), "hyper_parameters": Trap(sprung)}, path)
    with pytest.raises(ValueError, match="checkpoint: .* holds more than tensors, or is damaged; it was not loaded"):
        load_vit("vit_small_patch16_224", checkpoint=path, device="cpu")
    assert not sprung.exists()
    with open(path, "rb") as file:  # the trap works where nobody takes care
        (torch.load(file, weights_only=False) if save is torch.save else pickle.load(file))
    assert sprung.exists()


def test_a_pickle_in_a_folder_of_hugging_face_is_refused_too(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs attnbootreg[hf]")
    sizes = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=64, image_size=64, patch_size=8)
    model = transformers.ViTModel(transformers.ViTConfig(**sizes))
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({**model.state_dict(), "trap": Trap(tmp_path / "sprung")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="could not be loaded"):
        load_vit(tmp_path, device="cpu")
    assert not (tmp_path / "sprung").exists()


def test_without_a_network_the_error_says_what_to_download_and_where_to_put_it():
    with pytest.raises(
        ValueError, match="https://huggingface.co/timm/vit_small_patch16_224.dino/resolve/main/model.safetensors and give the file"
    ):
        load_vit("vit_small_patch16_224.dino", device="cpu")
    pytest.importorskip("transformers", reason="needs attnbootreg[hf]")
    advice = "config.json, preprocessor_config.json and model.safetensors from https://huggingface.co/facebook/dinov2-small into a folder"
    with pytest.raises(ValueError, match=advice) as error:
        load_vit("facebook/dinov2-small", device="cpu")
    assert "\n" not in str(error.value) and len(str(error.value)) < 320
    with pytest.raises(FileNotFoundError, match="there is no folder './nowhere'"):
        load_vit("./nowhere")


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'attnbootreg\[hf\]'"):
        load_vit("facebook/dinov2-small", device="cpu")


def test_plain_modules_of_timms_class(tmp_path):
    options = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3)
    source = VisionTransformer(**options, num_classes=4).eval()
    torch.save(source.state_dict(), tmp_path / "file.pth")

    class Mine(VisionTransformer):
        pass

    vit = load_vit(Mine(**options), checkpoint=tmp_path / "file.pth", device="cpu")
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(attention_scores(x, vit), attention_scores(x, load_vit(source, device="cpu")))
