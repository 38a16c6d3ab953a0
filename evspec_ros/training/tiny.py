"""Trains the tiny checkpoints from simulated scenes: first the two CLIP towers, then the language models on
them.

The towers learn to name what lies under each patch, as CLIP's come with knowledge of objects, and go on
with that beside the captions. The target's decoder begins shallow, which is where it learns to look, and is
then deepened by layers that change nothing at first (LLaMA Pro's block expansion, arXiv 2401.02415).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor, nn

from evspec_ros.frames.clip import CLIP_MEAN, CLIP_STD
from evspec_ros.networks.checkpoints import save_eventgpt, save_video_llava
from evspec_ros.networks.clip import ClipTower
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.llama import DecoderLayer, LlamaDecoder
from evspec_ros.networks.tiny import TINY_CLIP, tiny_eventgpt, tiny_video_llava
from evspec_ros.networks.tokenizer import save_tokenizer
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.prompts import DEFAULT_PROMPT, EVENT_TOKENS, VIDEO_TOKEN, event_prompt, target_prompt
from evspec_ros.training import dataset
from evspec_ros.training.dataset import FRAMES, FRAMES_S, MAX_OBJECTS, NO_OBJECT, Samples
from evspec_ros.training.loop import Report, Schedule, fit
from evspec_ros.training.scenes import COLOURS, DIRECTIONS, SHAPES, SPEEDS
from evspec_ros.training.tokenizer import train_tokenizer

IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
TARGET_TOKENS = (IMAGE_TOKEN, VIDEO_TOKEN, PAD_TOKEN)
MOTIONS = (len(DIRECTIONS) + 1, 2)  # directions and none; slow, quick
IGNORED = -100  # cross entropy's mark for a position that does not count


TOWER = Schedule(steps=1500, learning_rate=1e-3)
SHALLOW = Schedule(steps=3300, learning_rate=1e-3)
DEEP = Schedule(steps=150, learning_rate=3e-4)
EVENT = Schedule(steps=700, learning_rate=1e-3)


@dataclass(frozen=True)
class TinyPlan:
    """How long each stage is trained; the defaults made the checkpoints in models/."""

    scenes: int = 24_576
    batch: int = 16
    tower_batch: int = 96
    tower: Schedule = TOWER
    shallow: Schedule = SHALLOW
    deep: Schedule = DEEP
    event: Schedule = EVENT
    shallow_layers: int = 4


TINY_PLAN = TinyPlan()


def train_tiny(run: Path, models: Path, plan: TinyPlan = TINY_PLAN, report: Report = lambda *_: None) -> None:
    """Make models/tiny_video_llava and models/tiny_eventgpt; run keeps the data and every stage's state.

    Interrupt it at any time and call it again: it goes on where it was. Raises TrainingError.
    """
    dataset.prepare(run / "scenes", "train", plan.scenes, report)
    samples = dataset.load(run / "scenes", "train", plan.scenes)
    target = train_target(samples, run, plan, report)
    _write(models / "tiny_video_llava", target, save_video_llava, TARGET_TOKENS)
    event_model = train_event_model(samples, run, plan, report)
    _write(models / "tiny_eventgpt", event_model, save_eventgpt, EVENT_TOKENS)


def train_target(samples: Samples, run: Path, plan: TinyPlan, report: Report) -> VideoLlava:
    """The tiny Video-LLaVA."""
    tokenizer = train_tokenizer(TARGET_TOKENS)
    torch.manual_seed(0)
    config = tiny_video_llava(
        tokenizer.get_vocab_size(), token_id(tokenizer, IMAGE_TOKEN), token_id(tokenizer, VIDEO_TOKEN)
    )
    shallow = VideoLlava(replace(config, text=replace(config.text, num_layers=plan.shallow_layers)))
    patches = frame_patches(samples)
    probe = teach("frame-tower", shallow.video_tower, patches, run, plan, report)
    task = TargetTask(samples, tokenizer, plan.batch)
    motion = nn.Linear(config.text.hidden_size, sum(MOTIONS) + math.prod(MOTIONS))

    def loss(step: int) -> Tensor:
        seen = patches.loss(probe, plan.tower.steps + step, plan.tower_batch)
        return task.loss(shallow, motion, step) + seen

    fit("target-shallow", nn.ModuleList([shallow, probe, motion]), loss, plan.shallow, run, report)
    model = VideoLlava(config)
    deepen(shallow, model)

    def deep_loss(step: int) -> Tensor:
        return task.loss(model, motion, plan.shallow.steps + step)

    fit("target-deep", nn.ModuleList([model, motion]), deep_loss, plan.deep, run, report)
    return model


def train_event_model(samples: Samples, run: Path, plan: TinyPlan, report: Report) -> EventGpt:
    """The tiny EventGPT; it is taught the same captions, colours included, which events do not show."""
    tokenizer = train_tokenizer(EVENT_TOKENS)
    torch.manual_seed(1)
    model = EventGpt(tiny_eventgpt(tokenizer.get_vocab_size()))
    patches = event_patches(samples)
    probe = teach("event-tower", model.visual_tower, patches, run, plan, report)
    task = EventTask(samples, tokenizer, plan.batch)

    def loss(step: int) -> Tensor:
        return task.loss(model, step) + patches.loss(probe, plan.tower.steps + step, plan.tower_batch)

    fit("event-model", nn.ModuleList([model, probe]), loss, plan.event, run, report)
    return model


def deepen(shallow: VideoLlava, deep: VideoLlava) -> None:
    """Give `deep` the weights of `shallow`, its layers spread out; the layers between add nothing to begin
    with.
    """
    state = shallow.state_dict()
    ours = len(deep.decoder.layers)
    theirs = len(shallow.decoder.layers)
    places = {int(place): index for index, place in enumerate(np.linspace(0, ours - 1, theirs).round())}
    for place in range(ours):
        source = max(index for at, index in places.items() if at <= place)
        layer = deep.decoder.layers[place]
        assert isinstance(layer, DecoderLayer)
        layer.load_state_dict(shallow.decoder.layers[source].state_dict())
        if place not in places:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)
    rest = {name: tensor for name, tensor in state.items() if ".layers." not in name or "decoder" not in name}
    deep.load_state_dict(rest, strict=False)


# --- towers ------------------------------------------------------------------------------------------------


class PatchProbe(nn.Module):
    """What lies under each patch, read off a tower: looks as logits, and where the centre is."""

    def __init__(self, tower: ClipTower, looks: int) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(tower.config.hidden_size, looks + 2)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [N, 3, S, S] -> look logits [N, patches, looks], centre offsets in patches [N, patches,
        2].
        """
        out = self.head(self.tower(pixels)[:, 1:])
        return out[..., :-2], out[..., -2:]


@dataclass(frozen=True, eq=False)
class PatchTask:
    """What a tower is taught about single images.

    images: uint8 [N, M, S, S, 3], M of each scene; looks: int8 [N, 3, 2], two attributes of each object,
    NO_OBJECT where there is none; places: float32 [N, 3, M, 2], its centre in each image; sizes: values of
    the attributes.
    """

    images: NDArray[np.uint8]
    looks: NDArray[np.int8]
    places: NDArray[np.float32]
    sizes: tuple[int, int]

    def loss(self, probe: PatchProbe, step: int, batch: int) -> Tensor:
        """Cross entropy of the looks and squared error of the places, for images drawn by lot."""
        random = np.random.default_rng([2, step])
        scene = random.integers(len(self.images), size=batch)
        moment = random.integers(self.images.shape[1], size=batch)
        wanted, offsets, centred = patch_labels(self.looks[scene], self.places[scene, :, moment], self.sizes)
        logits, centres = probe(normalise(self.images[scene, moment]))
        named = F.binary_cross_entropy_with_logits(logits.float(), wanted)
        placed = ((centres.float() - offsets).square().sum(-1) * centred).sum() / centred.sum().clamp(min=1)
        # most looks are absent from most patches, so the mean over all of them is small
        total: Tensor = 20 * named + placed
        return total


def frame_patches(samples: Samples) -> PatchTask:
    """Shapes, colours and places in single frames."""
    looks = samples.looks[..., :2]
    return PatchTask(samples.frames, looks, samples.places, (len(SHAPES), len(COLOURS)))


def event_patches(samples: Samples) -> PatchTask:
    """Shapes, directions and places in single event images; what stands still is not there."""
    direction = samples.looks[..., 2:]
    looks = np.where(direction == len(DIRECTIONS), NO_OBJECT, samples.looks[..., ::2])
    last = np.repeat(samples.places[:, :, -1:], samples.event_images.shape[1], 2)  # 50 ms are short
    return PatchTask(samples.event_images, looks, last, (len(SHAPES), len(DIRECTIONS)))


def teach(
    stage: str, tower: ClipTower, task: PatchTask, run: Path, plan: TinyPlan, report: Report
) -> PatchProbe:
    """Train a tower on one task; the probe that it was trained through."""
    first, second = task.sizes
    probe = PatchProbe(tower, first + second + first * second)
    fit(stage, probe, lambda step: task.loss(probe, step, plan.tower_batch), plan.tower, run, report)
    return probe


def patch_labels(
    looks: NDArray[np.int8], places: NDArray[np.float32], sizes: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels for the patches of N images from looks [N, 3, 2] and centres [N, 3, 2].

    Wanted looks [N, patches, a + b + a b] of the objects near a patch (each attribute, then their pairs),
    the offset [N, patches, 2] of the centre that lies in it, and [N, patches] 1 where one does.
    """
    first, second = sizes
    side = TINY_CLIP.image_size // TINY_CLIP.patch_size
    middle = (np.arange(side) + 0.5) / side
    grid = np.stack(np.meshgrid(middle, middle), -1).reshape(-1, 2)  # [patches, (x, y)], row by row
    wanted = np.zeros((len(looks), side**2, first + second + first * second), np.float32)
    offsets = np.zeros((len(looks), side**2, 2), np.float32)
    centred = np.zeros((len(looks), side**2), np.float32)
    for k in range(MAX_OBJECTS):
        a, b = looks[:, k, 0].astype(int), looks[:, k, 1].astype(int)
        away = (places[:, k, None] - grid) * side  # [N, patches, 2], in patches
        near = (np.abs(away).max(-1) < 0.9) & (a != NO_OBJECT)[:, None]
        inside = (np.abs(away).max(-1) <= 0.5) & (a != NO_OBJECT)[:, None]
        image, patch = near.nonzero()
        for column in (a, first + b, first + second + a * second + b):
            wanted[image, patch, column[image]] = 1
        offsets[inside], centred[inside] = away[inside], 1
    return torch.from_numpy(wanted), torch.from_numpy(offsets), torch.from_numpy(centred)


# --- language models ---------------------------------------------------------------------------------------


class TargetTask:
    """Caption prediction from eight frames, in batches.

    Beside it the decoder is asked how what lies under each patch of the last frame moves: captions alone
    teach that slowly, for they mention it once an object.
    """

    def __init__(self, samples: Samples, tokenizer: FastTokenizer, batch: int) -> None:
        self._samples = samples
        self._answers = answer_ids(tokenizer, samples.captions)
        self._batch = batch
        self._before, self._after = (
            prompt_ids(tokenizer, part, bos)
            for part, bos in zip(target_prompt(DEFAULT_PROMPT).split(VIDEO_TOKEN), (True, False), strict=True)
        )
        self._motions = motions(samples)

    def loss(self, model: VideoLlava, motion: nn.Linear, step: int) -> Tensor:
        """Mean cross entropy of one batch's captions, plus that of what `motion` reads off the last frame."""
        chosen = drawn(len(self._samples), self._batch, step)
        pixels = normalise(self._samples.frames[chosen])  # [B, 8, 3, S, S]
        video = model.encode_frames(pixels.flatten(0, 1))
        video = video.view(self._batch, -1, video.shape[-1])
        answers = self._answers[chosen]
        told, rows = caption_loss(model.decoder, model.lm_head, self._before, video, self._after, answers)
        last_patches = rows[:, 1 - model.config.vision.tokens :]
        wanted, _, _ = patch_labels(self._motions[chosen], self._samples.places[chosen, :, -1], MOTIONS)
        moved = F.binary_cross_entropy_with_logits(motion(last_patches).float(), wanted)
        return told + 20 * moved


class EventTask:
    """Caption prediction from five event images, in batches."""

    def __init__(self, samples: Samples, tokenizer: FastTokenizer, batch: int) -> None:
        self._samples = samples
        self._answers = answer_ids(tokenizer, samples.captions)
        self._batch = batch
        before, after = event_prompt(DEFAULT_PROMPT)
        self._before, self._after = prompt_ids(tokenizer, before, True), prompt_ids(tokenizer, after, False)

    def loss(self, model: EventGpt, step: int) -> Tensor:
        """Mean cross entropy of one batch's captions."""
        chosen = drawn(len(self._samples), self._batch, step)
        events = model.encode_events(normalise(self._samples.event_images[chosen]))
        answers = self._answers[chosen]
        told, _ = caption_loss(model.decoder, model.lm_head, self._before, events, self._after, answers)
        return told


def motions(samples: Samples) -> NDArray[np.int8]:
    """(direction or, as the last one, none; 1 if quick) of each object [N, 3, 2], NO_OBJECT where there is
    none.
    """
    direction = samples.looks[..., 2]
    way = np.linalg.norm(
        samples.places[:, :, -1] - samples.places[:, :, -2], axis=-1
    )  # in a seventh of a second
    between = (max(SPEEDS["slowly"]) + min(SPEEDS["quickly"])) / 2 * FRAMES_S / (FRAMES - 1)
    return np.where(samples.looks[..., :1] == NO_OBJECT, NO_OBJECT, np.stack([direction, way > between], -1))


def caption_loss(
    decoder: LlamaDecoder, lm_head: nn.Linear, before: Tensor, seen: Tensor, after: Tensor, answers: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross entropy of answers [B, A] (IGNORED beyond their end) behind ids [b], features [B, V, D], ids
    [a]; and what the decoder makes of the features, [B, V, D].
    """
    answers = answers[:, : int((answers != IGNORED).sum(1).max())]
    batch = len(answers)
    given = answers[:, :-1].clamp(min=0)
    embeddings = torch.cat(
        (
            decoder.embed(before).expand(batch, -1, -1),
            seen,
            decoder.embed(after).expand(batch, -1, -1),
            decoder.embed(given),
        ),
        1,
    )
    hidden = decoder(embeddings).hidden
    logits = lm_head(hidden[:, -answers.shape[1] :]).float()
    told = F.cross_entropy(logits.flatten(0, 1), answers.flatten(), ignore_index=IGNORED)
    return told, hidden[:, len(before) : len(before) + seen.shape[1]]


def answer_ids(tokenizer: FastTokenizer, captions: Iterable[str]) -> Tensor:
    """Token ids [N, longest], </s> at each end and IGNORED behind it."""
    end = token_id(tokenizer, "</s>")
    rows = [[*encoding.ids, end] for encoding in tokenizer.encode_batch([str(text) for text in captions])]
    table = torch.full((len(rows), max(map(len, rows))), IGNORED)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return table


def prompt_ids(tokenizer: FastTokenizer, text: str, bos: bool) -> Tensor:
    """Token ids [T] of a part of a prompt."""
    start = [token_id(tokenizer, "<s>")] if bos else []
    return torch.tensor([*start, *tokenizer.encode(text).ids])


def token_id(tokenizer: FastTokenizer, token: str) -> int:
    """The id of a token that the tokenizer was made with."""
    index = tokenizer.token_to_id(token)
    assert index is not None, f"the tokenizer was made without {token}"
    return index


def drawn(count: int, batch: int, step: int) -> NDArray[np.int64]:
    """The samples of one step: every epoch goes through all of them in an order of its own."""
    per_epoch = count // batch
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([3, epoch]).permutation(count)
    return order[place * batch : (place + 1) * batch]


def normalise(images: NDArray[np.uint8]) -> Tensor:
    """Resized images [..., S, S, 3] -> what `ClipPreprocessor` makes of them, float32 [..., 3, S, S]."""
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    return ((torch.from_numpy(images).float() / 255 - mean) / std).movedim(-1, -3)


def _write(path: Path, model: nn.Module, save: Callable[..., None], special: Sequence[str]) -> None:
    save(model, path)
    save_tokenizer(train_tokenizer(special), path, special)
