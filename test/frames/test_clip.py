"""CLIP preprocessing against Pillow and transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from transformers.models.clip import image_processing_pil_clip

from evspec_ros.errors import CheckpointError, FrameError
from evspec_ros.frames.clip import CLIP_MEAN, CLIP_STD, ClipPreprocessor

CONFIG = {
    "do_resize": True, "size": {"shortest_edge": 336}, "resample": 3,
    "do_center_crop": True, "crop_size": {"height": 336, "width": 336},
    "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3],
}  # fmt: skip


def noise(height: int, width: int) -> NDArray[np.uint8]:
    """The hardest picture for a bicubic filter: every pixel overshoots somewhere."""
    return np.random.default_rng(height * 10_000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow_crop(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Width, then height, each by Pillow: the order of Pillow < 13 for every shape."""
    height, width = image.shape[:2]
    new_height, new_width = size * height // min(height, width), size * width // min(height, width)
    resized = Image.fromarray(image).resize((new_width, height), Image.Resampling.BICUBIC)
    resized = resized.resize((new_width, new_height), Image.Resampling.BICUBIC)
    top, left = (new_height - size) // 2, (new_width - size) // 2
    return np.asarray(resized)[top : top + size, left : left + size]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([7, 32, 64, 224]))
def test_pixels_equal_pillows_for_any_size(height: int, width: int, size: int) -> None:
    """Up and down, square, tall and wide: the resized crop is Pillow's, level for level."""
    if max(height, width) > 60 * min(height, width):
        height = width = min(height, width)
    image = noise(height, width)
    np.testing.assert_array_equal(ClipPreprocessor(size).resize(image), pillow_crop(image, size))


@pytest.mark.parametrize(
    "shape", [(480, 640), (260, 346), (720, 1280), (1080, 1920), (224, 224), (100, 173), (37, 611)]
)
@pytest.mark.parametrize("size", [64, 224, 336])
def test_values_equal_those_of_transformers(shape: tuple[int, int], size: int) -> None:
    """The normalised tensor is that of transformers' CLIPImageProcessor, to the last bit or one rounding."""
    theirs = image_processing_pil_clip.CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    images = [noise(*shape), np.full((*shape, 3), 200, np.uint8)]
    expected = theirs(images, return_tensors="np")["pixel_values"]
    pixels = ClipPreprocessor(size)(images)
    assert pixels.shape == expected.shape
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-6)


def test_an_event_image_equals_transformers(shared_data: Path) -> None:
    """A picture of real events, all hard edges on white, is prepared as transformers prepares it."""
    fields = np.load(shared_data / "EventGPT/sample1.npy", allow_pickle=True).item()
    image = np.full((480, 640, 3), 255, np.uint8)
    image[fields["y"], fields["x"]] = np.where(fields["p"][:, None] == 1, (255, 0, 0), (0, 0, 255))
    expected = image_processing_pil_clip.CLIPImageProcessorPil()([image], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(ClipPreprocessor(224)([image]), expected, rtol=0, atol=1e-6)


def test_images_of_different_sizes_and_strided_views_share_a_batch() -> None:
    """Each image is prepared by itself; a view is as good as a copy."""
    small, large = noise(50, 60), noise(300, 200)
    batch = ClipPreprocessor(32)([small, large[::2, ::-1]])
    np.testing.assert_array_equal(batch[0], ClipPreprocessor(32)([small])[0])
    np.testing.assert_array_equal(batch[1], ClipPreprocessor(32)([large[::2, ::-1].copy()])[0])
    assert ClipPreprocessor(32)([]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32),
     np.zeros((0, 4, 3), np.uint8)],
)  # fmt: skip
def test_an_array_that_is_no_rgb_image_is_refused(image: NDArray[np.uint8]) -> None:
    """Gray, four channels, floats and empty images are FrameErrors that say what is needed."""
    with pytest.raises(FrameError, match="must be uint8 RGB"):
        ClipPreprocessor(8)([image])


def test_a_published_configuration_is_read() -> None:
    """Sizes as dicts or, in old files, numbers; the file's mean and std, or CLIP's where it has none."""
    new = ClipPreprocessor.from_config(CONFIG)
    assert (new.size, new.mean, new.std) == (336, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    old = ClipPreprocessor.from_config({"size": 224, "crop_size": 224})
    assert (old.size, old.mean, old.std) == (224, CLIP_MEAN, CLIP_STD)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", None), ("size", {"height": 336}), ("size", 0), ("size", True), ("size", "336"),
        ("crop_size", 224), ("crop_size", {"height": 336, "width": 224}),
        ("resample", 2), ("do_center_crop", False), ("do_normalize", False), ("rescale_factor", 1.0),
        ("image_mean", [0.5, 0.5]), ("image_mean", "CLIP"),
        ("image_std", [0.2, 0.0, 0.3]), ("image_std", None),
    ],
)  # fmt: skip
def test_an_unusable_key_is_named(key: str, value: object) -> None:
    """The error of a configuration that cannot be followed names the key at fault."""
    with pytest.raises(CheckpointError, match=f"'{key}'"):
        ClipPreprocessor.from_config(CONFIG | {key: value})
