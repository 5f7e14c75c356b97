"Pictures of every kind, and models from every source."

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform
from timm.models import VisionTransformer

from attnbootreg import load_image, load_vit
from attnbootreg.images import to_pixels


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_equals_timms_own_transform(picture, interpolation):
    model = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96))
    model.pretrained_cfg = {**model.pretrained_cfg, "interpolation": interpolation}
    vit = load_vit(model, device="cpu")
    transform = create_transform((3, 64, 96), interpolation=interpolation, mean=vit.mean, std=vit.std, crop_pct=1, crop_mode="squash")
    torch.testing.assert_close(load_image(picture, vit), transform(picture), atol=1e-6, rtol=0)


def pixels(source, vit):
    return to_pixels(load_image(source, vit), vit).astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, vit, picture, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        upright = ImageOps.exif_transpose(image)
    upright.info.clear()
    np.testing.assert_array_equal(pixels(tmp_path / "turned.png", vit), pixels(Image.fromarray(np.asarray(upright)), vit))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_becomes_rgb(vit, picture, mode):
    image = picture.convert("L").convert(mode) if mode in ("LA", "PA") else picture.convert(mode)
    x = load_image(image, vit)
    assert x.shape == (3, 128, 128) and x.dtype == torch.float32
    if mode in ("1", "L", "LA", "PA"):
        assert torch.equal(x[0], x[1]) and torch.equal(x[1], x[2])


def test_transparency_is_laid_over_white(tmp_path, vit):
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert (pixels(clear, vit) == 255).all()
    half = np.dstack([np.zeros((32, 32, 3)), np.full((32, 32), 0.5)])
    assert (abs(pixels(half, vit) - 128) <= 1).all()
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "p.png", transparency=0)
    assert (pixels(tmp_path / "p.png", vit) == 255).all()


def test_sixteen_bit_keeps_its_depth(tmp_path, vit):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.fromarray(ramp).save(tmp_path / "deep.tif")
    want = load_image(ramp, vit)
    for name in ("deep.png", "deep.tif"):
        torch.testing.assert_close(load_image(tmp_path / name, vit), want, atol=1e-5, rtol=0)
    assert len(want.unique()) > 256


def test_first_frame_of_an_animation(tmp_path, vit):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert (pixels(tmp_path / "film.gif", vit) == [255, 0, 0]).all()


def test_tensors_and_arrays_are_the_same_picture(vit, picture):
    array = np.asarray(picture)
    want = load_image(picture, vit)
    for source in (array, torch.from_numpy(array.copy()).permute(2, 0, 1)):
        assert torch.equal(load_image(source, vit), want)
    for source in (
        array / 255,
        array.astype(np.float32) / 255,
        torch.from_numpy(array / 255).permute(2, 0, 1).half(),
        array.astype(np.uint16) * 257,
    ):
        torch.testing.assert_close(load_image(source, vit), want, atol=0.01, rtol=0)
    gray = array[..., 0]
    for source in (gray[..., None], torch.from_numpy(gray.copy()), torch.from_numpy(gray.copy())[None]):
        assert torch.equal(load_image(source, vit), load_image(gray, vit))


def test_crop_keeps_the_aspect(vit):
    disc = (np.hypot(*np.mgrid[-1:1:100j, -3:3:300j]) < 0.8).astype(float)
    round_disc = load_image(disc, vit, crop=True)[0] > 0
    assert abs(int(round_disc.any(0).sum()) - int(round_disc.any(1).sum())) <= 1
    squashed = load_image(disc, vit)[0] > 0
    assert squashed.any(1).sum() > 2 * squashed.any(0).sum()


def test_crop_fits_every_size():
    vit = load_vit("vit_tiny_patch16_224", pretrained=False, img_size=(224, 48), device="cpu")
    for width in range(20, 300, 7):
        for height in range(20, 300, 11):
            assert load_image(np.zeros((height, width), np.uint8), vit, crop=True).shape == (3, 224, 48)


def test_loading_leaves_the_random_numbers_alone():
    state = torch.get_rng_state()
    one, two = (load_vit("vit_tiny_patch16_224", pretrained=False, device="cpu") for _ in range(2))
    load_vit(device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.model.pos_embed, two.model.pos_embed)


def test_patches_of_another_size_are_another_model(tmp_path):
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "16.safetensors")
    model = timm.models.VisionTransformer(img_size=224, patch_size=8, embed_dim=192, depth=12, num_heads=3)
    with pytest.raises(ValueError, match="of another shape: .*patch_embed.proj.weight"):
        load_vit(model, checkpoint=tmp_path / "16.safetensors", device="cpu")


def test_images_of_one_channel_are_refused():
    model = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, in_chans=1)
    with pytest.raises(TypeError, match="model: .*three channels.*choose a model"):
        load_vit(model)


@pytest.mark.parametrize("name", ["dino", "safetensors", "wrapped"])
def test_checkpoints_in_their_dialects(tmp_path, name):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224")
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("head")}
    if name == "dino":
        backbone = {f"module.backbone.{key}": value for key, value in state.items()}
        torch.save({"epoch": 3, "teacher": {**backbone, "module.head.mlp.0.weight": torch.zeros(2)}}, tmp_path / "file")
    elif name == "wrapped":
        torch.save({"epoch": 3, "model": model.state_dict()}, tmp_path / "file")
    else:
        save_file(model.state_dict(), tmp_path / "file.safetensors")
    path = next(tmp_path.iterdir())
    vit = load_vit("vit_tiny_patch16_224", checkpoint=path, device="cpu")
    for key in state:
        assert torch.equal(vit.model.state_dict()[key], state[key])
    assert load_vit("vit_tiny_patch16_224", checkpoint=path, img_size=96, device="cpu").grid == (6, 6)


def test_embedded_model_at_another_size(vit):
    larger = load_vit(img_size=(192, 256), device="cpu")
    assert larger.grid == (24, 32) and larger.classes == vit.classes
    assert len(vit.classes) == 12


def test_a_compiled_model_is_the_model():
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3).eval()
    vit = load_vit(torch.compile(model))
    assert vit.name == "VisionTransformer" and torch.equal(vit.model.cls_token, model.cls_token)
    with pytest.raises(ValueError, match="checkpoint='mine.ckpt'"):
        load_vit(Path("mine.ckpt"))
