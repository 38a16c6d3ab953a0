"""What a tower is taught: what lies under each patch of an image, and where the object's centre is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from evspec_ros.frames.clip import CLIP_MEAN, CLIP_STD
from evspec_ros.networks.clip import ClipTower
from evspec_ros.networks.tiny import TINY_CLIP
from evspec_ros.simulation.samples import FRAMES_S, MAX_OBJECTS, NO_OBJECT, Samples
from evspec_ros.simulation.scenes import COLOURS, DIRECTIONS, SIZES, SPEEDS
from evspec_ros.simulation.shapes import SHAPES
from evspec_ros.sizes import FRAMES

WAYS = len(DIRECTIONS) + 1  # directions and none
FRAME_LOOKS = (len(SHAPES), len(COLOURS), len(SIZES), MAX_OBJECTS)  # the last: which one from the left
EVENT_LOOKS = (len(SHAPES), WAYS, len(SIZES), MAX_OBJECTS)
MOTIONS = (WAYS, 2)  # slow, quick
NEAR = 0.75  # patches between the middle of a patch and the centre of an object that it tells of
WAY_UNIT = 0.05  # widths of the image; the usual way between two frames


@dataclass(frozen=True, eq=False)
class PatchLabels:
    """Of the patches of N images: wanted [N, patches, columns], 1 for each attribute, and each pair of the
    first two, of an object near the patch; vectors [N, patches, 2] of the object whose centre lies in it, and
    centred [N, patches], 1 where there is one.
    """

    wanted: Tensor
    vectors: Tensor
    centred: Tensor


@dataclass(frozen=True, eq=False)
class PatchTask:
    """What a tower is taught about single images.

    images: uint8 [N, M, S, S, 3], M of each scene; looks: int8 [N, 3, A], attributes of each object that is
    seen, NO_OBJECT where there is none; places: float32 [N, 3, M, 2], its centre in each image; sizes: how
    many values each attribute has, the last one being its rank from the left, which is found here.
    """

    images: NDArray[np.uint8]
    looks: NDArray[np.int8]
    places: NDArray[np.float32]
    sizes: tuple[int, ...]

    def loss(self, probe: PatchProbe, step: int, batch: int) -> Tensor:
        """`patch_loss` of images drawn by lot."""
        random = np.random.default_rng([2, step])
        scene = random.integers(len(self.images), size=batch)
        moment = random.integers(self.images.shape[1], size=batch)
        pixels = normalise(self.images[scene, moment]).to(probe.head.weight.device)
        return patch_loss(probe(pixels), self.labels(scene, moment))

    def labels(self, scene: NDArray[np.int64], moment: NDArray[np.int64] | int) -> PatchLabels:
        """Of one image of each of N scenes [N]."""
        places = self.places[scene, :, moment]
        looks = np.concatenate((self.looks[scene], ranks(self.looks[scene], places)), -1)
        return patch_labels(looks, places, self.sizes)


class PatchProbe(nn.Module):
    """What lies under each patch, read off a tower: looks as logits, and where the centre is."""

    def __init__(self, tower: ClipTower, looks: tuple[int, ...]) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(tower.config.hidden_size, columns(looks) + 2)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [N, 3, S, S] -> [N, patches, columns + 2], as `patch_loss` reads it."""
        out: Tensor = self.head(self.tower(pixels)[:, 1:])
        return out


def frame_patches(samples: Samples) -> PatchTask:
    """Shapes, colours, sizes and places in single frames."""
    return PatchTask(samples.frames, samples.looks[..., [0, 1, 3]], samples.places, FRAME_LOOKS)


def event_patches(samples: Samples) -> PatchTask:
    """Shapes, directions, sizes and places in single event images; what stands still is not there."""
    still = samples.looks[..., 2:3] == len(DIRECTIONS)
    looks = np.where(still, NO_OBJECT, samples.looks[..., [0, 2, 3]])
    last = np.repeat(samples.places[:, :, -1:], samples.event_images.shape[1], 2)  # 50 ms are short
    return PatchTask(samples.event_images, looks, last, EVENT_LOOKS)


def motion_labels(looks: NDArray[np.int8], places: NDArray[np.float32]) -> PatchLabels:
    """How the objects have moved since the frame before, for all frames but the first of looks [N, 3, A] and
    centres [N, 3, 8, 2], one after another: direction or none, slow or quick, and the way in `WAY_UNIT`.
    """
    way = places[:, :, 1:] - places[:, :, :-1]  # [N, 3, 7, 2], widths of the image
    distance = np.linalg.norm(way, axis=-1)
    direction = np.round(np.arctan2(way[..., 1], way[..., 0]) / (np.pi / 4)).astype(int) % len(DIRECTIONS)
    still = looks[:, :, None, 2] == len(DIRECTIONS)
    quick = distance > (max(SPEEDS["slowly"]) + min(SPEEDS["quickly"])) / 2 * FRAMES_S / (FRAMES - 1)
    there = looks[:, :, None, :1] != NO_OBJECT
    moves = np.where(there, np.stack((np.where(still, len(DIRECTIONS), direction), quick), -1), NO_OBJECT)

    def by_frame(per_object: NDArray[Any]) -> NDArray[Any]:  # [N, 3, 7, x] -> [7 N, 3, x]
        return per_object.swapaxes(1, 2).reshape(-1, *per_object.shape[1:2], per_object.shape[-1])

    return patch_labels(by_frame(moves), by_frame(places[:, :, 1:]), MOTIONS, by_frame(way / WAY_UNIT))


def ranks(looks: NDArray[np.int8], places: NDArray[np.float32]) -> NDArray[np.int8]:
    """How many objects are left of each, int8 [N, 3, 1], from looks [N, 3, A] and centres [N, 3, 2]."""
    there = looks[..., 0] != NO_OBJECT
    x = np.where(there, places[..., 0], np.inf)
    return np.where(there, (x[:, None] < x[:, :, None]).sum(-1), NO_OBJECT).astype(np.int8)[..., None]


def columns(sizes: tuple[int, ...]) -> int:
    """Columns of the labels for attributes of so many values."""
    return sum(sizes) + sizes[0] * sizes[1]


def patch_labels(
    looks: NDArray[np.int8],
    places: NDArray[np.float32],
    sizes: tuple[int, ...],
    vectors: NDArray[np.float32] | None = None,
) -> PatchLabels:
    """Labels from looks [N, 3, A], centres [N, 3, 2] and one vector [N, 3, 2] of each object; None: from the
    middle of the patch to the centre, in patches.
    """
    side = TINY_CLIP.image_size // TINY_CLIP.patch_size
    middle = (np.arange(side) + 0.5) / side
    grid = np.stack(np.meshgrid(middle, middle), -1).reshape(-1, 2)  # [patches, (x, y)], row by row
    starts = np.cumsum((0, *sizes))
    wanted = np.zeros((len(looks), side**2, columns(sizes)), np.float32)
    found = np.zeros((len(looks), side**2, 2), np.float32)
    centred = np.zeros((len(looks), side**2), np.float32)
    for k in range(MAX_OBJECTS):
        values = looks[:, k].astype(int)  # [N, A]
        away = (places[:, k, None] - grid) * side  # [N, patches, 2], in patches
        there = (values[:, 0] != NO_OBJECT)[:, None]
        image, patch = ((np.abs(away).max(-1) < NEAR) & there).nonzero()
        for attribute in range(len(sizes)):
            wanted[image, patch, starts[attribute] + values[image, attribute]] = 1
        wanted[image, patch, starts[-1] + values[image, 0] * sizes[1] + values[image, 1]] = 1
        inside = (np.abs(away).max(-1) <= 0.5) & there
        own = away if vectors is None else np.broadcast_to(vectors[:, k, None], away.shape)
        found[inside], centred[inside] = own[inside], 1
    return PatchLabels(torch.from_numpy(wanted), torch.from_numpy(found), torch.from_numpy(centred))


def patch_loss(out: Tensor, labels: PatchLabels) -> Tensor:
    """Cross entropy of the columns plus squared error of the vectors, from out [N, patches, columns + 2]."""
    wanted, vectors, centred = (
        label.to(out.device) for label in (labels.wanted, labels.vectors, labels.centred)
    )
    named = F.binary_cross_entropy_with_logits(out[..., :-2].float(), wanted)
    apart = (out[..., -2:].float() - vectors).square().sum(-1) * centred
    # most columns are 0 in most patches, so the mean over all of them is small
    total: Tensor = 20 * named + apart.sum() / centred.sum().clamp(min=1)
    return total


def normalise(images: NDArray[np.uint8]) -> Tensor:
    """Resized images [..., S, S, 3] -> what `ClipPreprocessor` makes of them, float32 [..., 3, S, S]."""
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    return ((torch.from_numpy(images).float() / 255 - mean) / std).movedim(-1, -3)
