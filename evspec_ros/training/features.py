"""What the target itself writes about scenes, and the features that both models have meanwhile.

This is the one place that runs both models over data, for `evspec features` and for every training. A
directory of features has a manifest, `features.json`, and shards in safetensors, each written whole or not at
all: an interrupted extraction goes on with the shards that are missing.

Shapes: B scenes, P rows of the prompt of which the last C + 1 are kept, T tokens of the longest answer, D the
target's hidden size, E event rows, F the event model's hidden size.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from evspec_ros.errors import TrainingError
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.sizes import EVENT_IMAGES, FRAMES, MAX_NEW_TOKENS
from evspec_ros.training.files import claim, read_claim, written_whole
from evspec_ros.training.loop import Report, fast_bfloat16
from evspec_ros.training.processes import process
from evspec_ros.training.rollout import greedy_answers

MANIFEST = "features.json"
SHARD = 32  # scenes


@dataclass(frozen=True, eq=False)
class ModelPair:
    """A target and an event model, and each one's default prompt: int64 ids [n] with the one video token,
    and those before and those after the event tokens. decode: the text of the target's tokens.
    """

    target: VideoLlava
    event_model: EventGpt
    prompt_ids: Tensor
    event_ids: tuple[Tensor, Tensor]
    decode: Callable[[Sequence[int]], str] = str

    @property
    def device(self) -> torch.device:
        """Where both compute."""
        return self.prompt_ids.device

    @property
    def prompt_rows(self) -> int:
        """P: the prompt's rows, those of the video among them."""
        return len(self.prompt_ids) - 1 + FRAMES * self.target.config.vision.tokens

    @property
    def event_rows(self) -> int:
        """E."""
        return EVENT_IMAGES + self.event_model.config.vision.tokens

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of each model a text that differs where a weight differs."""
        return {"target": _fingerprint(self.target), "event_model": _fingerprint(self.event_model)}


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """B scenes as both models see them, CLIP-normalised: frames [B, 8, 3, S, S], events [B, 5, 3, S, S]."""

    frames: Tensor
    events: Tensor


Scenes = Callable[[int, int], SceneBatch]  # scenes start to stop - 1 of a source, always the same ones


@dataclass(frozen=True, eq=False)
class Answers:
    """What the target wrote about B scenes, and what both models made of it.

    prompt: [B, C + 1, D], its last rows; tokens: int64 [B, T], the end token repeated after the end; lengths:
    int64 [B], the end token counted; features: [B, C + T, layers * D], the target's of each layer kept, one
    beside the other and the last one's output last, for these rows and for all tokens but the last; events:
    [B, E, F]; event_features: [B, T, layers * F], the event model's, at its prompt's last row and at all
    tokens but the last, as if it had written the answer.
    """

    prompt: Tensor
    tokens: Tensor
    lengths: Tensor
    features: Tensor
    events: Tensor
    event_features: Tensor


class Batches(Protocol):
    """Answers in batches, by number."""

    def __len__(self) -> int:
        """How many batches."""

    def __getitem__(self, index: int) -> Answers:
        """One of them, on the models' device, floats as float32."""


@dataclass(frozen=True)
class FeaturePlan:
    """What is kept of each scene: features of layers of the target and of the event model, as
    `LlamaDecoder.forward` counts them, the last one's output always among them, and the prompt's last
    `context` rows beside its very last one.
    """

    layers: tuple[int, ...]
    event_layers: tuple[int, ...]
    context: int
    max_new_tokens: int = MAX_NEW_TOKENS
    shard: int = SHARD

    @classmethod
    def for_pair(
        cls,
        pair: ModelPair,
        layers: Sequence[int] = (),
        event_layers: Sequence[int] = (),
        context: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        shard: int = SHARD,
    ) -> FeaturePlan:
        """Layers in order, the last one added; context: None for all that there is. Raises TrainingError for
        a layer that a model does not have.
        """
        whole = pair.prompt_rows - 1
        return cls(
            _with_last(layers, pair.target.config.text.num_layers, "target"),
            _with_last(event_layers, pair.event_model.config.text.num_layers, "event model"),
            whole if context is None else min(context, whole),
            max_new_tokens,
            shard,
        )

    def scene_bytes(self, pair: ModelPair) -> int:
        """The most that a scene takes on disk: the answer as long as it may be, floats in half precision."""
        size, event_size = (model.config.text.hidden_size for model in (pair.target, pair.event_model))
        tokens = self.max_new_tokens
        floats = (
            (self.context + 1) * size
            + (self.context + tokens) * len(self.layers) * size
            + pair.event_rows * event_size
            + tokens * len(self.event_layers) * event_size
        )
        return 2 * floats + 8 * (tokens + 1)


@torch.inference_mode()
def answer(pair: ModelPair, scenes: SceneBatch, plan: FeaturePlan) -> Answers:
    """Let the target answer its prompt about B scenes, greedily and all at once, and the event model read
    what it wrote.
    """
    target = pair.target
    with autocast(pair.device):
        events = pair.event_model.encode_events(scenes.events)
        video = target.encode_frames(scenes.frames.flatten(0, 1)).chunk(len(scenes.frames))
        prompt = torch.stack([target.embed_prompt(pair.prompt_ids, one) for one in video])
        tokens, features = greedy_answers(
            target.decoder, target.lm_head, prompt, plan.max_new_tokens, layers=plan.layers
        )
    read = read_answers(pair, events, tokens, plan.event_layers)
    ends = torch.tensor(target.config.text.end_tokens, dtype=torch.int64, device=tokens.device)
    ended = torch.isin(tokens, ends).cumsum(1) > 0
    lengths = (~ended).sum(1).add(1).clamp(max=tokens.shape[1])
    first = prompt.shape[1] - plan.context - 1
    return Answers(
        prompt[:, first:].float(), tokens, lengths, features[:, first:].float(), events.float(), read
    )


@torch.no_grad()
def read_answers(pair: ModelPair, events: Tensor, tokens: Tensor, layers: tuple[int, ...]) -> Tensor:
    """The event model's features of events [B, E, F] and tokens [B, T], as in Answers."""
    model, batch = pair.event_model, len(tokens)
    before, after = (model.decoder.embed(ids).expand(batch, -1, -1) for ids in pair.event_ids)
    # tokens that it does not know, such as those around a video, are read as its first one
    readable = tokens[:, :-1].where(tokens[:, :-1] < model.config.text.vocab_size, 0)
    rows = torch.cat((before, events, after, model.decoder.embed(readable)), 1)
    with autocast(pair.device):
        features = model.decoder(rows, layers=layers).features
    return torch.cat(features, -1)[:, -tokens.shape[1] :].float()


# --- on disk ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FeatureShards:
    """A directory of features of this pair of models, complete."""

    directory: Path
    pair: ModelPair
    plan: FeaturePlan
    scenes: int

    @classmethod
    def open(cls, directory: Path, pair: ModelPair) -> FeatureShards:
        """What `extract` wrote there; raises TrainingError where it is of other models, of another size,
        damaged or not finished.
        """
        about = read_claim(directory / MANIFEST)
        others = [name for name, mark in pair.fingerprints.items() if about.get(name) != mark]
        if others:
            raise TrainingError(
                f"The features in {directory} were made with another {' and another '.join(others)}; give "
                "the checkpoints that they were made with, or extract them again."
            )
        try:
            layers = {name: tuple(about["plan"][name]) for name in ("layers", "event_layers")}
            plan = FeaturePlan(**{**about["plan"], **layers})
            found = cls(directory, pair, plan, about["scenes"])
        except (KeyError, TypeError) as error:
            raise TrainingError(
                f"{directory / MANIFEST} is of another version of this package ({error}); extract again."
            ) from error
        missing = [path.name for path in found.paths if not path.exists()]
        if missing:
            raise TrainingError(
                f"{len(missing)} of {len(found)} shards in {directory} are not there yet, the first is "
                f"{missing[0]}; give the command that extracts them once more."
            )
        return found

    @property
    def paths(self) -> list[Path]:
        """The shards' files."""
        return [
            self.directory / f"{start:08d}.safetensors" for start in range(0, self.scenes, self.plan.shard)
        ]

    def __len__(self) -> int:
        return len(range(0, self.scenes, self.plan.shard))

    def __getitem__(self, index: int) -> Answers:
        """One shard; TrainingError where it is damaged or holds tensors of another size."""
        path = self.paths[index]
        count = min(self.plan.shard, self.scenes - index * self.plan.shard)
        with _naming_damage(path), safe_open(path, "pt", str(self.pair.device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        expected = self._shapes(count, tensors["tokens"].shape[1] if "tokens" in tensors else 0)
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            raise TrainingError(
                f"{path} holds {', '.join(f'{name} {found.get(name)}' for name in wrong)} and "
                f"{MANIFEST} says {', '.join(f'{expected.get(name)}' for name in wrong)}; delete the shard "
                "and extract again."
            )
        return Answers(**{k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})

    def texts(self) -> Iterator[str]:
        """The target's answers, scene after scene."""
        for path in self.paths:
            with _naming_damage(path), safe_open(path, "pt") as file:
                yield from json.loads(file.metadata()["texts"])

    def _shapes(self, count: int, tokens: int) -> dict[str, tuple[int, ...]]:
        plan, pair = self.plan, self.pair
        size, event_size = (model.config.text.hidden_size for model in (pair.target, pair.event_model))
        return {
            "prompt": (count, plan.context + 1, size),
            "tokens": (count, tokens),
            "lengths": (count,),
            "features": (count, plan.context + tokens, len(plan.layers) * size),
            "events": (count, pair.event_rows, event_size),
            "event_features": (count, tokens, len(plan.event_layers) * event_size),
        }


def extract(
    pair: ModelPair,
    scenes: Scenes,
    directory: Path,
    plan: FeaturePlan,
    count: int,
    source: Any,
    report: Report = lambda *_: None,
) -> FeatureShards:
    """Write the features of `count` scenes of a source, each process its share of the shards that are
    missing.

    source: what the manifest says about where they come from. Raises TrainingError where the directory was
    begun with anything else, where the disk is too small, before anything is written, or full, and for a
    shard that is damaged.
    """
    state = process(pair.device)
    shards = FeatureShards(directory, pair, plan, count)
    require_space(directory, count * plan.scene_bytes(pair))
    with state.main_process_first():
        about = {**pair.fingerprints, "plan": asdict(plan), "scenes": count, "source": source}
        claim(directory / MANIFEST, json.loads(json.dumps(about)))
    done = f"answers, {directory.name}"
    for number, path in enumerate(shards.paths):
        if number % state.num_processes != state.process_index:
            continue
        start = number * plan.shard
        stop = min(start + plan.shard, count)
        if path.exists():
            with _naming_damage(path), safe_open(path, "pt"):
                pass
        else:
            _write_shard(path, pair, answer(pair, scenes(start, stop), plan))
        report(done, stop, count, 0.0)
    state.wait_for_everyone()
    return shards


def require_space(directory: Path, needed: int) -> None:
    """Raise TrainingError where the disk cannot hold so many bytes in all in the directory."""
    there = directory
    while not there.exists():
        there = there.parent
    held = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    free = shutil.disk_usage(there).free
    if needed - held > free:
        raise TrainingError(
            f"The features take up to {needed / 1e9:.2f} GB in {directory}, where {held / 1e9:.2f} GB lie "
            f"already, and the disk has {free / 1e9:.2f} GB free; ask for fewer scenes, layers or rows of "
            "context, or train without storing them."
        )


def _write_shard(path: Path, pair: ModelPair, answers: Answers) -> None:
    tensors = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in vars(answers).items()
    }
    stored = zip(tensors["tokens"].tolist(), tensors["lengths"].tolist(), strict=True)
    texts = [pair.decode(tokens[:length]) for tokens, length in stored]
    with written_whole(path) as unfinished:
        save_file(tensors, unfinished, metadata={"texts": json.dumps(texts)})


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, KeyError) as error:
        raise TrainingError(
            f"{path} is damaged or only half written ({error}); delete it and extract again."
        ) from error


# --- other ways to batches ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Computed:
    """Answers that are computed when they are asked for, and never stored."""

    pair: ModelPair
    scenes: Scenes
    plan: FeaturePlan
    count: int

    def __len__(self) -> int:
        return len(range(0, self.count, self.plan.shard))

    def __getitem__(self, index: int) -> Answers:
        start = index * self.plan.shard
        # a tensor of inference cannot be saved for a backward pass
        found = answer(self.pair, self.scenes(start, min(start + self.plan.shard, self.count)), self.plan)
        return Answers(**{name: value.clone() for name, value in vars(found).items()})


@dataclass(frozen=True, eq=False)
class Selected:
    """Some of other batches, with the features that a head reads: layers of those that were kept."""

    batches: Batches
    numbers: range
    kept: FeaturePlan
    wanted: FeaturePlan

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Answers:
        found = self.batches[self.numbers[index]]
        spare = self.kept.context - self.wanted.context
        places = [self.kept.layers.index(layer) for layer in self.wanted.layers]
        by_layer = found.features[:, spare:].chunk(len(self.kept.layers), -1)
        features = torch.cat([by_layer[place] for place in places], -1)
        return replace(found, prompt=found.prompt[:, spare:], features=features)


def autocast(device: torch.device) -> torch.autocast:
    """Bfloat16 where the device computes it in hardware."""
    return torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device.type))


def _with_last(layers: Sequence[int], last: int, model: str) -> tuple[int, ...]:
    wrong = [layer for layer in layers if not 0 <= layer <= last]
    if wrong:
        raise TrainingError(f"The {model} has no layer {wrong[0]}; choose from 0, what it reads, to {last}.")
    return tuple(sorted({*layers, last}))


def _fingerprint(model: nn.Module) -> str:
    digest = sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
