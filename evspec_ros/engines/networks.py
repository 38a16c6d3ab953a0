"""The drafter's networks as functions of tensors alone, as engines run them and exporters write them down.

No cache object, no branch on a value, and no layer that is not the modules' own: each function here takes a
loaded module, calls its layers and says by which names and in which shapes its tensors go in and out.

Shapes: T new rows, C rows of a cache's memory, S = C + T, D a decoder's width, d a head's, L layers, K
key/value heads of h values each, V tokens, E event tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from evspec_ros.choices import EXPORT_PRECISIONS
from evspec_ros.errors import EngineError
from evspec_ros.networks.block_head import BlockHead, BlockPass
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.llama import KVCache, LlamaConfig, LlamaDecoder, RMSNorm
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.sizes import CACHE_STEP, EVENT_IMAGES, LARGEST_TREE, cache_rows

_USUAL = 5 * CACHE_STEP  # rows that a memory usually has: the event tokens, a question and an answer
EXPORT_DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in EXPORT_PRECISIONS}
CANDIDATES = 4  # tokens that a head's level gives of each row

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]  # least, usual and largest shape by input


@dataclass(frozen=True, eq=False)
class Network:
    """One function of tensors.

    module: its forward takes the inputs in their order and gives a tuple of tensors in the order of outputs;
    inputs: examples, random numbers of the right kind; dynamic: the names of axes that may change, by input
    or output; profiles: shapes that it is to be fast for, of the inputs that have such axes.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    profiles: tuple[Profile, ...] = ()

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the module itself makes of other inputs."""
        found = self.module(*(inputs[name] for name in self.inputs))
        return dict(zip(self.outputs, found, strict=True))


def encode_events(model: EventGpt) -> Network:
    """images [5, 3, side, side], CLIP-normalised, in order of time -> tokens [E, D]."""
    size, weight = model.config.vision.image_size, model.lm_head.weight
    images = _random(weight, EVENT_IMAGES, 3, size, size)
    return Network("encode_events", _EncodeEvents(model).eval(), {"images": images}, ("tokens",))


def decoder_rows(decoder: LlamaDecoder, lm_head: nn.Module, layers: tuple[int, ...] = ()) -> Network:
    """T new rows behind a memory of C rows.

    embeddings [1, T, D]; positions int64 [T]; mask [T, S], added to the scores: memory, then new rows;
    past_k.l, past_v.l [1, K, C, h] of each layer -> logits [T, V]; feature.l [T, D] of each of `layers`, as
    `LlamaDecoder.forward` counts them; k, v [L, 1, K, T, h], the new rows' keys and values.

    Reading a prompt and a step are two profiles of it: a memory of one row, which nobody sees, beside many
    rows; the whole memory beside a few.
    """
    config, weight = decoder.config, decoder.embed_tokens.weight
    inputs = {"embeddings": _random(weight, 1, 3, config.hidden_size), **_places(weight, config, 3, 5)}
    outputs = ("logits", *(f"feature.{layer}" for layer in layers), "k", "v")
    dynamic = _rows_and_memory(inputs, outputs)
    positions, largest = config.max_positions, cache_rows(config.max_positions)
    prompt = [{"T": rows, "C": 1} for rows in (1, min(_USUAL, positions), positions)]
    few = [{"T": 1, "C": 1}, {"T": 1, "C": min(_USUAL, largest)}, {"T": LARGEST_TREE + 1, "C": largest}]
    profiles = _profile(inputs, dynamic, prompt), _profile(inputs, dynamic, few)
    module = _DecoderRows(decoder, lm_head, layers).eval()
    return Network("decoder_rows", module, inputs, outputs, dynamic, profiles)


def block(head: BlockHead) -> Network:
    """`BlockHead.draft`, tensors by the names of its arguments and of BlockPass, the cache as past_k.l,
    past_v.l [1, H, C, h].
    """
    config, weight = head.config, head.fc.weight
    memory = _memory(weight, config.layer, 2 * config.read_rows)
    inputs = {
        "features": _random(weight, config.read_rows, len(config.layers) * config.target_size),
        "count": torch.full((1,), 2, device=weight.device),
        "last": _random(weight, 1, config.target_size),
        "length": torch.full((1,), config.read_rows - 1, device=weight.device),
        **memory,
    }
    dynamic = {name: {2: "C"} for name in memory}
    largest = cache_rows(config.max_positions)
    profile = _profile(inputs, dynamic, [{"C": rows} for rows in (1, min(_USUAL, largest), largest)])
    return Network("block", _BlockDraft(head).eval(), inputs, BlockPass._fields, dynamic, (profile,))


def head_level(head: DraftHead, norm: RMSNorm, lm_head: nn.Module) -> Network:
    """T rows of a draft head of EAGLE's kind, a level of its tree or a text; norm and lm_head are the
    target's.

    embeddings [1, T, D] at t + 1; carried [1, T, d] from t; positions, mask and memory as in `decoder_rows`
    -> output [T, d]; logits [T, V]; tokens int64 [T, CANDIDATES], the likeliest ones, and their
    probabilities, float32; k, v [1, 1, K, T, h].
    """
    config = head.config
    weight, norm_weight = next(head.layers.parameters()), norm.weight
    inputs = {
        "embeddings": _random(weight, 1, 3, len(norm_weight)),
        "carried": _random(weight, 1, 3, config.hidden_size),
        **_places(weight, config.layer, 3, 5),
    }
    outputs = ("output", "logits", "tokens", "probabilities", "k", "v")
    dynamic = _rows_and_memory(inputs, outputs)
    largest = cache_rows(config.max_positions)
    least, usual, most = {"T": 1, "C": 1}, {"T": CANDIDATES, "C": min(_USUAL, largest)}, LARGEST_TREE + 1
    profile = _profile(inputs, dynamic, [least, usual, {"T": most, "C": largest}])
    name = f"{config.kind}_level"
    return Network(name, _HeadLevel(head, norm, lm_head).eval(), inputs, outputs, dynamic, (profile,))


def drafter_networks(event_model: EventGpt, heads: Iterable[nn.Module], target: VideoLlava) -> list[Network]:
    """All that runs on engines when these draft; raises EngineError for a head that does not."""
    found = [encode_events(event_model), decoder_rows(event_model.decoder, event_model.lm_head)]
    for head in heads:
        if isinstance(head, BlockHead):
            found.append(block(head))
        elif isinstance(head, DraftHead):
            found.append(head_level(head, target.decoder.norm, target.lm_head))
        else:
            raise EngineError(
                f"A draft head of kind {type(head).__name__} runs on torch alone; export one of kind eagle, "
                "eagle3 or block."
            )
    return found


class _EncodeEvents(nn.Module):
    def __init__(self, model: EventGpt) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.model.encode_events(images),)


class _DecoderRows(nn.Module):
    def __init__(self, decoder: LlamaDecoder, lm_head: nn.Module, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.decoder, self.lm_head, self.layers = decoder, lm_head, layers

    def forward(
        self, embeddings: Tensor, positions: Tensor, mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        memory = _PastRows(past)
        rotary = self.decoder.rotary.at(positions)
        hidden, features = self.decoder.through(embeddings, rotary, mask, memory, self.layers)
        return self.lm_head(hidden[0]), *(feature[0] for feature in features), *memory.new_rows()


class _BlockDraft(nn.Module):
    def __init__(self, head: BlockHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, features: Tensor, count: Tensor, last: Tensor, length: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        layers = len(past) // 2
        return tuple(self.head.draft(features, count, last, length, past[:layers], past[layers:]))


class _HeadLevel(nn.Module):
    def __init__(self, head: DraftHead, norm: RMSNorm, lm_head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.norm, self.lm_head = head.readout(norm, lm_head)

    def forward(
        self, embeddings: Tensor, carried: Tensor, positions: Tensor, mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        memory = _PastRows(past)
        rows = self.head.rows(embeddings, carried)
        output = self.head.layers[0](rows, *self.head.rotary.at(positions), mask, memory)[0]
        logits = self.lm_head(self.norm(output))
        spread = torch.softmax(logits, -1, dtype=torch.float32)
        probabilities, tokens = spread.topk(min(CANDIDATES, logits.shape[-1]), -1)
        return output, logits, tokens, probabilities, *memory.new_rows()


class _PastRows(KVCache):
    """A cache's rows as tensors [1, K, C, h], all layers' keys, then their values; new rows are kept beside
    them, in the place of being written.
    """

    def __init__(self, past: Sequence[Tensor]) -> None:
        self._past = past[: len(past) // 2], past[len(past) // 2 :]
        self._new: tuple[list[Tensor], list[Tensor]] = [], []

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All rows of one layer, those of the memory first, and the new ones behind them."""
        for new, rows in zip(self._new, (k, v), strict=True):
            new.append(rows)
        keys, values = self._past
        return torch.cat((keys[layer], k), 2), torch.cat((values[layer], v), 2)

    def new_rows(self) -> tuple[Tensor, Tensor]:
        """Keys and values [L, 1, K, T, h] of the rows that were written."""
        keys, values = self._new
        return torch.stack(keys), torch.stack(values)


def _places(weight: Tensor, config: LlamaConfig, rows: int, held: int) -> dict[str, Tensor]:
    """Where rows lie and what they see: all but the last of a memory's rows, and each other causally."""
    mask = weight.new_zeros(rows, held + rows)
    mask[:, held:].masked_fill_(torch.ones_like(mask[:, held:], dtype=torch.bool).triu_(1), -torch.inf)
    mask[:, held - 1] = -torch.inf
    positions = torch.arange(held - 1, held - 1 + rows, device=weight.device)
    return {"positions": positions, "mask": mask, **_memory(weight, config, held)}


def _memory(weight: Tensor, config: LlamaConfig, held: int) -> dict[str, Tensor]:
    names = memory_names(config.num_layers)
    shape = (1, config.num_kv_heads, held, config.head_dim)
    return {name: _random(weight, *shape, seed=seed) for seed, name in enumerate(names)}


def memory_names(layers: int) -> list[str]:
    """Of a memory's tensors: every layer's keys, then every layer's values."""
    return [f"past_{part}.{layer}" for part in "kv" for layer in range(layers)]


def _rows_and_memory(inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, dict[int, str]]:
    """The axes that change in a network of T rows beside a memory of C."""
    axes = {"embeddings": {1: "T"}, "carried": {1: "T"}, "positions": {0: "T"}, "mask": {0: "T", 1: "S"}}
    of_inputs = {name: axes.get(name, {2: "C"}) for name in inputs}
    return of_inputs | {name: {3 if name in {"k", "v"} else 0: "T"} for name in outputs}


def _profile(
    inputs: Mapping[str, Tensor], dynamic: Mapping[str, Mapping[int, str]], sizes: Sequence[Mapping[str, int]]
) -> Profile:
    """The shapes of the inputs that change, for three sizes of T and C: the least, the usual, the largest."""

    def shape(name: str, size: Mapping[str, int]) -> Shape:
        of_axes = {**size, "S": size.get("T", 0) + size["C"]}
        found = enumerate(inputs[name].shape)
        return tuple(of_axes[dynamic[name][axis]] if axis in dynamic[name] else rows for axis, rows in found)

    least, usual, largest = sizes
    return {
        name: (shape(name, least), shape(name, usual), shape(name, largest))
        for name in inputs
        if name in dynamic
    }


def _random(weight: Tensor, *shape: int, seed: int = 0) -> Tensor:
    """Normal numbers of a weight's type, where it lies."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(weight)
