"""The projection beside what this machine takes, and beside what others published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from evspec_ros.engines.selection import choose_engine
from evspec_ros.evaluation.projection import ROOFS, Pass, Projection, Roof, decoder_pass, project
from evspec_ros.networks.checkpoints import load_video_llava
from evspec_ros.networks.devices import processor
from evspec_ros.networks.llama import LlamaConfig, LlamaDecoder
from evspec_ros.networks.memory import Checkpoints
from evspec_ros.speculative.costs import measure_passes, measure_prefill
from evspec_ros.speculative.drafter import NoDrafter, Prompt
from evspec_ros.speculative.generate import generate
from evspec_ros.speculative.target import DecoderTarget

THIS = "this"
PUBLISHED = {"float16": 11.8, "int4": 38.0}  # tokens/s of Vicuna-7B behind 2,100 rows on an AGX Orin, plain
_SHAPES = (  # of decoders of random weights, none of them the one that is projected; about as many bytes
    LlamaConfig(512, 192, 512, 16, 3, 3, 64, 1024),
    LlamaConfig(512, 320, 864, 7, 5, 5, 64, 1024),
    LlamaConfig(512, 384, 1024, 5, 6, 6, 64, 1024),
)
_ROWS, _PROMPT, _TOKENS, _TEXTS = (1, 4, 8, 16, 24), 200, 32, 15


@dataclass(frozen=True)
class CheckedFigure:
    """One figure, projected and measured."""

    name: str
    projected: float
    measured: float

    @property
    def off(self) -> float:
        """By which share the projection is off."""
        return self.projected / self.measured - 1

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "off": self.off}


@dataclass(frozen=True, eq=False)
class _TimedDecoder:
    """A decoder on this machine's engine, and a prompt for it."""

    config: LlamaConfig
    target: DecoderTarget
    prompt: Prompt

    @classmethod
    def of(cls, decoder: LlamaDecoder, lm_head: nn.Linear, rows: int) -> _TimedDecoder:
        """Of a prompt of so many random rows."""
        config = decoder.config
        engine = choose_engine(decoder, lm_head).engine
        target = DecoderTarget(decoder, lm_head, frozenset(), lambda _: "", engine=engine)
        embeddings = torch.randn(1, rows, config.hidden_size, generator=torch.Generator().manual_seed(0))
        return cls(config, target, Prompt(embeddings))

    @classmethod
    def at_random(cls, config: LlamaConfig) -> _TimedDecoder:
        """One of random weights."""
        lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        return cls.of(LlamaDecoder(config).eval(), lm_head, _PROMPT)

    def pass_of(self, rows: int, before: int) -> Pass:
        """What a pass reads and computes, in float32."""
        weights = 4 * sum(one.numel() for one in self.target.decoder.layers.parameters())
        return decoder_pass(self.config, rows, before, weights, 4)

    def seconds(self) -> dict[tuple[int, int], float]:
        """By rows and rows before them: of verifications, and of the prefill."""
        rows = self.prompt.embeddings.shape[1]
        passes = measure_passes(self.target, self.prompt)
        prefill = measure_prefill(self.target, self.prompt)
        found = {(count, rows): passes[count - 1] / 1e3 for count in _ROWS}
        return found | {(rows, 0): (prefill.prompt_ms + rows * prefill.row_ms) / 1e3}


def this_machine(threads: int | None = None) -> Roof:
    """What this processor reaches, fitted to passes of decoders of other shapes than the one projected: by
    least squares of relative errors, none of the three below zero.
    """
    if threads:
        torch.set_num_threads(threads)
    rows, seconds = [], []
    for shape in _SHAPES:
        decoder = _TimedDecoder.at_random(shape)
        for (count, before), taken in decoder.seconds().items():
            one = decoder.pass_of(count, before)
            rows.append((one.layers, one.bytes, one.flops))
            seconds.append(taken)
    layer_s, per_byte, per_flop = map(float, _fit(np.array(rows, float), np.array(seconds)))
    return Roof(
        THIS,
        torch.device("cpu"),
        1 / max(per_byte, 1e-15),
        1 / max(per_flop, 1e-18),
        layer_s,
        (
            f"{processor()}, threads: {torch.get_num_threads()}, float32",
            (
                f"fitted to decoders of other shapes: {1e-9 / max(per_byte, 1e-15):.0f} GB/s, "
                f"{1e-9 / max(per_flop, 1e-18):.0f} GFLOP/s, {layer_s * 1e6:.0f} us a layer"
            ),
        ),
    )


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


@torch.inference_mode()
def check_here(target: Path, roof: Roof) -> list[CheckedFigure]:
    """Prefill, step, verifications and a whole text of this checkpoint's decoder, projected by a roof of this
    machine and measured.
    """
    model = load_video_llava(target, torch.float32, torch.device("cpu"))
    sizes = Checkpoints(model.config)
    decoder = _TimedDecoder.of(model.decoder, model.lm_head, sizes.prompt_rows)
    measured = decoder.seconds()

    def figure(name: str, rows: int, before: int) -> CheckedFigure:
        projected = 1e3 * decoder.pass_of(rows, before).seconds(roof)
        return CheckedFigure(name, projected, 1e3 * measured[rows, before])

    prompt = sizes.prompt_rows
    found = [figure("prefill, ms", prompt, 0), figure("step, ms", 1, prompt)]
    found += [figure(f"verifying {rows - 1} nodes, ms", rows, prompt) for rows in _ROWS[1:]]
    step_ms = 1e3 * decoder.pass_of(1, prompt + _TOKENS // 2).seconds(roof)
    text_ms = found[0].projected + (_TOKENS - 1) * step_ms
    return [*found, CheckedFigure(f"a text of {_TOKENS} tokens, ms", text_ms, _text_ms(decoder))]


def _text_ms(decoder: _TimedDecoder) -> float:
    """The fastest of some texts, prefill included."""

    def once() -> float:
        decoder.target.forget()
        statistics = generate(decoder.target, NoDrafter(), decoder.prompt, max_new_tokens=_TOKENS).statistics
        return statistics.prefill_ms + statistics.decode_ms

    return min(once() for _ in range(_TEXTS))


def check_published() -> list[CheckedFigure]:
    """Plain decoding of the published 7B target on an AGX Orin, tokens a second."""
    roof = ROOFS["orin_agx_64gb"]
    found = {precision: project(roof, precision=precision) for precision in PUBLISHED}
    return [
        CheckedFigure(
            f"{roof.name}, {precision}, tokens/s", found[precision].plain_tokens_per_second, measured
        )
        for precision, measured in PUBLISHED.items()
    ]


def print_projection(found: Projection, checked: Sequence[CheckedFigure]) -> None:
    """Both tables, and the assumptions."""
    console = Console(highlight=False)
    table = Table("figure", title=f"{found.device}, {found.precision}", title_justify="left")
    table.add_column("projected", justify="right")
    rows = {
        "frames, ms": found.frames_ms,
        "prefill, ms": found.prefill_ms,
        "one-token step, ms": found.step_ms,
        **{f"verifying {nodes} nodes, ms": ms for nodes, ms in found.verify_ms.items() if nodes},
        "best draft, nodes": found.best_size,
        "drafting it, ms": found.draft_ms,
        "tokens a turn": found.turn_tokens,
        "tokens/s": found.tokens_per_second,
        "tokens/s without drafting": found.plain_tokens_per_second,
        "decoding, times as fast": found.speedup,
        f"window of {found.tokens} tokens, ms": found.window_ms,
        "the same without drafting, ms": found.plain_window_ms,
    }
    for name, value in rows.items():
        table.add_row(name, f"{value:.4g}")
    console.print(table)
    checks = Table("check", title="projected beside measured and published", title_justify="left")
    for name in ("projected", "measured", "off"):
        checks.add_column(name, justify="right")
    for one in checked:
        checks.add_row(one.name, f"{one.projected:.4g}", f"{one.measured:.4g}", f"{one.off:+.0%}")
    console.print(checks)
    for assumption in found.assumptions:
        console.print(f"assumed: {assumption}", soft_wrap=True, markup=False)
