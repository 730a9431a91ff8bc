"""Sizes and pixels against transformers' processors."""

import ast
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lrm_jax.qwen3_vl import patchify, sizes
from lrm_jax.qwen3_vl.resize import PixelBounds, bicubic, image_size, read_bounds, video_size
from lrm_jax.run.errors import UserError

CONFIG = sizes.SIZES["qwen3-vl-8b"]  # patches of 16 pixels, merged two by two
RELEASED = PixelBounds(65536, 16777216)  # preprocessor_config.json of Qwen3-VL
# Up, down, down by much, one side only, mixed; none a multiple of the other.
SIZES = [((48, 64), (96, 96)), ((90, 130), (64, 64)), ((480, 640), (96, 128)), ((64, 75), (64, 96)),
         ((200, 40), (96, 64))]  # fmt: skip


def processor(bounds):
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": bounds.fewest, "longest_edge": bounds.most},
        patch_size=16,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def picture(size, seed=0):
    """Half noise, half steps between 0 and 255, where a cubic filter overshoots."""
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 256, (*size, 3), np.uint8)
    frame[: size[0] // 2] = 255 * rng.integers(0, 2, (size[0] // 2, size[1], 3))
    return frame


@pytest.mark.parametrize("size", [(480, 640), (64, 64), (33, 500), (1080, 1920), (5000, 4000)])
@pytest.mark.parametrize("bounds", [RELEASED, PixelBounds(3136, 200_000)])
def test_sizes(size, bounds):
    patches = processor(bounds).get_number_of_image_patches(*size)
    height, width = image_size(*size, CONFIG, bounds)
    assert height % 32 == width % 32 == 0 and height * width // 256 == patches


@pytest.fixture(scope="module")
def video_smart_resize():
    """transformers' function alone: its module cannot be imported without torchvision."""
    folder = Path(transformers.__file__).parent / "models" / "qwen3_vl"
    tree = ast.parse((folder / "video_processing_qwen3_vl.py").read_text())
    (function,) = [n for n in tree.body if getattr(n, "name", None) == "smart_resize"]
    scope = {"math": math}
    exec(compile(ast.Module([function], []), "smart_resize", "exec"), scope)
    return scope["smart_resize"]


@pytest.mark.parametrize("frames", [1, 2, 3, 8, 30, 500])
@pytest.mark.parametrize("size", [(480, 640), (64, 64), (20, 40), (1080, 1920)])
def test_sizes_of_videos(video_smart_resize, frames, size):
    bounds = PixelBounds(131072, 25165824)
    want = video_smart_resize(
        max(frames, 2), *size, factor=32, min_pixels=bounds.fewest, max_pixels=bounds.most
    )
    assert video_size(frames, *size, CONFIG, bounds) == want


@pytest.mark.parametrize("before, after", SIZES)
def test_pixels_are_the_processors(before, after):
    """Pillow's and torch's antialiased bicubic (the processor's two backends) round 8-bit pixels
    in fixed point: one grey level. The normalised patches then differ by 1 / 127.5, and float32.
    Weights of 15 bits leave a pass 4 taps * 255 * 2^-16 = 0.016 off, so that about 3 % of the
    pixels may round the other way in two passes."""
    frame = picture(before)
    got = np.asarray(bicubic(frame[None], after))
    tensor = torch.from_numpy(frame).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(tensor, after, mode="bicubic", antialias=True)
    apart = np.abs(got[0].astype(int) - theirs[0].permute(1, 2, 0).numpy())
    assert apart.max() <= 1 and (apart > 0).mean() < 0.03
    exact = PixelBounds(after[0] * after[1], after[0] * after[1])
    if image_size(*before, CONFIG, exact) != after:  # the processor keeps the aspect
        after = image_size(*before, CONFIG, exact)
        got = np.asarray(bicubic(frame[None], after))
    out = processor(exact)(frame, return_tensors="np")
    assert out["image_grid_thw"].tolist() == [[1, after[0] // 16, after[1] // 16]]
    patches = np.asarray(patchify(got, CONFIG))[0]
    np.testing.assert_allclose(patches, out["pixel_values"], atol=1 / 127.5 + 1e-5, rtol=0)
    assert (np.abs(patches - out["pixel_values"]) > 1e-5).mean() < 0.03


def test_released_settings_are_read(tmp_path):
    assert read_bounds(tmp_path) is None
    processor(RELEASED).save_pretrained(tmp_path)
    assert read_bounds(tmp_path) == RELEASED and read_bounds(tmp_path, "video") is None
    inner = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    assert read_bounds(tmp_path) == RELEASED


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_mean": [0.48, 0.46, 0.41]}, "image_mean"),
        ({"size": {"height": 3}}, "no size"),
        ({"size": {"shortest_edge": 9, "longest_edge": 4}}, "no range"),
    ],
)
def test_wrong_settings(tmp_path, change, message):
    plain = {"size": {"shortest_edge": 4, "longest_edge": 9}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(plain | change))
    with pytest.raises(UserError, match=message):
        read_bounds(tmp_path)


def test_a_strip_is_refused():
    with pytest.raises(UserError, match="200 times"):
        image_size(3, 700, CONFIG, RELEASED)
