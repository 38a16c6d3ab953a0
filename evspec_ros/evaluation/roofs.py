"""What this machine reaches, measured on networks of other shapes than those that are projected.

Decoders on this machine's engine, towers on torch, and block heads as `BlockDrafter` runs them, each with
costs of their own: of a layer (its operators, and what surrounds them), a byte and an operation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from evspec_ros.engines.selection import choose_engine
from evspec_ros.evaluation.projection import Pass, Roof, decoder_pass, draft_passes, tower_pass
from evspec_ros.networks.block_head import BlockConfig, BlockHead
from evspec_ros.networks.clip import ClipConfig
from evspec_ros.networks.devices import processor
from evspec_ros.networks.draft_head import spread_layers
from evspec_ros.networks.llama import LlamaConfig, LlamaDecoder
from evspec_ros.networks.memory import Checkpoints
from evspec_ros.networks.video_llava import VideoLlava, VideoLlavaConfig
from evspec_ros.sizes import FRAMES
from evspec_ros.speculative.block import BlockDrafter
from evspec_ros.speculative.costs import least_ms, measure_passes, measure_prefill
from evspec_ros.speculative.drafter import DraftLimits, NoDrafter, Prompt
from evspec_ros.speculative.event_side import EventSide
from evspec_ros.speculative.generate import generate
from evspec_ros.speculative.statistics import DecodingStatistics
from evspec_ros.speculative.target import DecoderTarget

THIS = "this"
ROWS, TOKENS = (1, 4, 8, 16, 24), 32  # of timed passes, and of timed texts
NODES = 8  # of timed drafts
_PROMPT = 200  # rows
_TEXTS, _LOOKS, _ROUNDS = 8, 15, 5  # how often texts, frames and decoders are timed: the fastest counts
_ITEMSIZE = 4
# None of them is what is projected; decoders of about as many bytes as the tiny one.
_DECODERS = (
    LlamaConfig(512, 192, 512, 16, 3, 3, 64, 1024),
    LlamaConfig(512, 320, 864, 7, 5, 5, 64, 1024),
    LlamaConfig(512, 384, 1024, 5, 6, 6, 64, 1024),
)
_TOWERS = (
    ClipConfig(128, 512, 6, 4, 64, 16),
    ClipConfig(256, 1024, 3, 4, 64, 16),
    ClipConfig(320, 1280, 5, 5, 80, 16),
)
_HEADS = ((1, 1, 24), (3, 3, 16), (4, 1, 24))  # heads of 64 values, layers and rows of a block


@dataclass(frozen=True, eq=False)
class TimedDecoder:
    """A decoder on this machine's engine, and a prompt for it."""

    config: LlamaConfig
    target: DecoderTarget
    prompt: Prompt

    @classmethod
    def of(cls, decoder: LlamaDecoder, lm_head: nn.Linear, rows: int) -> TimedDecoder:
        """Of a prompt of so many random rows."""
        config = decoder.config
        engine = choose_engine(decoder, lm_head).engine
        target = DecoderTarget(decoder, lm_head, frozenset(), lambda _: "", engine=engine)
        embeddings = torch.randn(1, rows, config.hidden_size, generator=torch.Generator().manual_seed(0))
        return cls(config, target, Prompt(embeddings))

    @classmethod
    def at_random(cls, config: LlamaConfig) -> TimedDecoder:
        """One of random weights."""
        lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        return cls.of(LlamaDecoder(config).eval(), lm_head, _PROMPT)

    def pass_of(self, rows: int, before: int) -> Pass:
        """What a pass reads and computes, in float32."""
        return decoder_pass(self.config, rows, before, _bytes(self.target.decoder.layers), _ITEMSIZE)

    def seconds(self) -> dict[tuple[int, int], float]:
        """By rows and rows before them: of verifications, and of the prefill."""
        rows = self.prompt.embeddings.shape[1]
        passes = measure_passes(self.target, self.prompt)
        prefill = measure_prefill(self.target, self.prompt)
        found = {(count, rows): passes[count - 1] / 1e3 for count in ROWS}
        return found | {(rows, 0): (prefill.prompt_ms + rows * prefill.row_ms) / 1e3}

    def text_seconds(self) -> float:
        """Of TOKENS tokens, prefill included, without drafting."""

        def once() -> float:
            self.target.forget()
            found = generate(self.target, NoDrafter(), self.prompt, max_new_tokens=TOKENS).statistics
            return (found.prefill_ms + found.decode_ms) / 1e3

        return min(once() for _ in range(_TEXTS))

    def draft_pass_of(self, head: BlockHead) -> Pass:
        """What drafting takes in one turn of a text."""
        sizes = Checkpoints(VideoLlavaConfig(self.config, ClipConfig()), None, head.config)
        before = self.prompt.embeddings.shape[1] + TOKENS // 2
        return draft_passes(sizes, NODES, before, _bytes(head), _ITEMSIZE)[1]

    def draft_seconds(self, head: BlockHead) -> float:
        """Of drafting NODES nodes, the mean of a text's turns."""
        drafter, limits = BlockDrafter(self.target, head, EventSide()), DraftLimits(NODES, NODES)

        def once() -> DecodingStatistics:
            return generate(
                self.target, drafter, self.prompt, max_new_tokens=TOKENS, limits=limits
            ).statistics

        return min(one.draft_ms / one.target_passes for one in (once() for _ in range(_TEXTS))) / 1e3


@torch.inference_mode()
def frames_seconds(model: VideoLlava, frames: int) -> float:
    """From so many frames' pixels to their embeddings, the fastest of some times."""
    size = model.config.vision.image_size
    pixels = torch.zeros(frames, 3, size, size)
    return least_ms(lambda: model.encode_frames(pixels), _LOOKS) / 1e3


def this_machine(threads: int | None = None) -> Roof:
    """What this processor reaches: by least squares of relative errors, no cost below zero."""
    if threads:
        torch.set_num_threads(threads)
    decoders = [TimedDecoder.at_random(shape) for shape in _DECODERS]
    roof = _fitted("passes of decoders", list(_decoder_passes(decoders)))
    frames = _fitted("towers", list(_tower_passes()))
    head = _beside(_of_one_thread(roof), "block heads", list(_head_passes(decoders)))
    machine = f"{processor()}, threads: {torch.get_num_threads()}, float32"
    assumptions = (machine, *roof.assumptions, *frames.assumptions, *head.assumptions)
    return replace(roof, assumptions=assumptions, frames=frames, head=head)


def passes_seconds(decoders: Sequence[TimedDecoder]) -> list[dict[tuple[int, int], float]]:
    """`TimedDecoder.seconds` of each: they are timed in turn, so that a moment at which others use the memory
    is nobody's fastest.
    """
    rounds = [[decoder.seconds() for decoder in decoders] for _ in range(_ROUNDS)]
    return [
        {key: min(found[key] for found in of_one) for key in of_one[0]}
        for of_one in zip(*rounds, strict=True)
    ]


def _decoder_passes(decoders: Sequence[TimedDecoder]) -> Iterator[tuple[Pass, float]]:
    for decoder, seconds in zip(decoders, passes_seconds(decoders), strict=True):
        for (count, before), taken in seconds.items():
            yield decoder.pass_of(count, before), taken


def _tower_passes() -> Iterator[tuple[Pass, float]]:
    for vision in _TOWERS:
        model = VideoLlava(VideoLlavaConfig(LlamaConfig(64, 256, 256, 1, 4, 4, 64, 64), vision)).eval()
        for frames in (1, FRAMES):
            yield tower_pass(model.config, frames, _ITEMSIZE), frames_seconds(model, frames)


def _head_passes(decoders: Sequence[TimedDecoder]) -> Iterator[tuple[Pass, float]]:
    for decoder, (heads, layers, block) in zip(decoders, _HEADS, strict=True):
        target = decoder.config
        config = BlockConfig(
            target_size=target.hidden_size, layers=spread_layers(target.num_layers),
            vocab_size=target.vocab_size, hidden_size=64 * heads, intermediate_size=192 * heads,
            num_layers=layers, num_heads=heads, head_dim=64, event_size=64, max_positions=1024, block=block,
        )  # fmt: skip
        head = BlockHead(config).eval()
        yield decoder.draft_pass_of(head), decoder.draft_seconds(head)


def _of_one_thread(roof: Roof) -> Roof:
    """ONNX Runtime computes heads on one, as their products are too small to share."""
    threads = torch.get_num_threads()
    return replace(roof, bytes_per_s=roof.bytes_per_s / threads, flops_per_s=roof.flops_per_s / threads)


def _beside(roof: Roof, what: str, timed: Sequence[tuple[Pass, float]]) -> Roof:
    """The same rates, and what else these passes took, as the cost of a layer."""
    free = replace(roof, layer_s=0.0)
    layer_s = float(np.median([max(0.0, taken - one.seconds(free)) / one.layers for one, taken in timed]))
    told = f"what else {what} of other shapes took, with their drafter: {layer_s * 1e6:.0f} us a layer"
    return replace(roof, layer_s=layer_s, assumptions=(told,))


def _fitted(what: str, timed: Sequence[tuple[Pass, float]]) -> Roof:
    """The roof below which these passes took these seconds."""
    rows = np.array([(one.layers, one.bytes, one.flops) for one, _ in timed], float)
    layer_s, per_byte, per_flop = map(float, _fit(rows, np.array([taken for _, taken in timed])))
    bytes_per_s, flops_per_s = 1 / max(per_byte, 1e-15), 1 / max(per_flop, 1e-18)
    told = (
        f"fitted to {what} of other shapes: {bytes_per_s / 1e9:.0f} GB/s, {flops_per_s / 1e9:.0f} GFLOP/s, "
        f"{layer_s * 1e6:.0f} us a layer"
    )
    return Roof(THIS, torch.device("cpu"), bytes_per_s, flops_per_s, layer_s, (told,))


def _fit(rows: np.ndarray[Any, np.dtype[np.float64]], seconds: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    """The costs of a layer, a byte and a flop: those of the three that help, none negative."""
    scaled = rows / seconds[:, None]
    chosen = [0, 1, 2]
    while True:
        found = np.zeros(3)
        found[chosen] = np.linalg.lstsq(scaled[:, chosen], np.ones(len(seconds)), rcond=None)[0]
        if (found >= 0).all():
            return found
        chosen.remove(int(found.argmin()))


def _bytes(module: nn.Module) -> int:
    return sum(one.nbytes for one in module.parameters())
