"""The projection beside what this machine takes, and beside what others published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from evspec_ros.evaluation.projection import ROOFS, Projection, Roof, project, tower_pass
from evspec_ros.evaluation.replay.plan import ReplayPlan
from evspec_ros.evaluation.replay.sweep import replayed
from evspec_ros.evaluation.roofs import NODES, ROWS, TOKENS, TimedDecoder, frames_seconds, passes_seconds
from evspec_ros.loading import load_describer
from evspec_ros.networks.block_head import BlockHead
from evspec_ros.networks.checkpoints import load_draft_head, load_video_llava, read_eventgpt_config
from evspec_ros.networks.memory import Checkpoints
from evspec_ros.recordings import open_recording
from evspec_ros.simulation.recorded_scene import record_scene
from evspec_ros.sizes import FRAMES
from evspec_ros.windows import Window

PUBLISHED = {"float16": 11.8, "int4": 38.0}  # tokens/s of Vicuna-7B behind 2,100 rows on an AGX Orin, plain
_SCENE_S, _WINDOWS = 1.2, 8


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


@torch.inference_mode()
def check_here(target: Path, event_model: Path, block: Path, roof: Roof) -> list[CheckedFigure]:
    """What describing takes with these checkpoints, a block head among them, projected by a roof of this
    machine and measured: its parts, a text without drafting and a whole window with it.
    """
    cpu = torch.device("cpu")
    model = load_video_llava(target, torch.float32, cpu)
    head = load_draft_head(block, torch.float32, cpu)
    assert isinstance(head, BlockHead)
    sizes = Checkpoints(model.config, read_eventgpt_config(event_model), head.config)
    prompt = sizes.prompt_rows
    decoder = TimedDecoder.of(model.decoder, model.lm_head, prompt)
    (measured,) = passes_seconds([decoder])
    tower, drafting = roof.frames or roof, roof.head or roof

    def pass_ms(rows: int, before: int) -> float:
        return 1e3 * decoder.pass_of(rows, before).seconds(roof)

    def figure(name: str, rows: int, before: int) -> CheckedFigure:
        return CheckedFigure(name, pass_ms(rows, before), 1e3 * measured[rows, before])

    frames = CheckedFigure(
        f"{FRAMES} frames, ms",
        1e3 * tower_pass(model.config, FRAMES, 4).seconds(tower),
        1e3 * frames_seconds(model, FRAMES),
    )
    draft = CheckedFigure(
        f"drafting {NODES} nodes, ms",
        1e3 * decoder.draft_pass_of(head).seconds(drafting),
        1e3 * decoder.draft_seconds(head),
    )
    found = [frames, figure("prefill, ms", prompt, 0), figure("step, ms", 1, prompt)]
    found += [figure(f"verifying {rows - 1} nodes, ms", rows, prompt) for rows in ROWS[1:]]
    text_ms = pass_ms(prompt, 0) + (TOKENS - 1) * pass_ms(1, prompt + TOKENS // 2)
    found += [draft, CheckedFigure(f"a text of {TOKENS} tokens, ms", text_ms, 1e3 * decoder.text_seconds())]
    nodes, window_ms = _measured_window(target, event_model, block)
    before = prompt + TOKENS // 2
    projected = frames.projected + pass_ms(prompt, 0) + len(nodes) * draft.projected
    projected += sum(pass_ms(one + 1, before) for one in nodes)
    return [*found, CheckedFigure(f"a window in {len(nodes)} drafts, ms", projected, window_ms)]


def _measured_window(target: Path, event_model: Path, block: Path) -> tuple[list[int], float]:
    """How many nodes each draft of a simulated window's text had, and the milliseconds of its frames, its
    prefill and its text, the fastest of some times; the event model is no part of it.
    """
    describer = load_describer(target, event_model, block, drafter="block")
    window = _window()
    found = []
    for _ in range(_WINDOWS):
        describer.relieve()  # nothing of the last time is known
        frames = [replace(frame) for frame in window.frames]
        said = describer.describe(window.events, frames, stamp_ns=window.stamp_ns)
        stages = said.latency_ms
        taken = stages["encode_frames"] + stages["prefill"] + stages["decode"]
        found.append((taken, [one.drafted for one in said.passes]))
    window_ms, nodes = min(found)
    return nodes, window_ms


def _window() -> Window:
    """One of a simulated scene, with eight frames that differ."""
    with TemporaryDirectory() as folder:
        record_scene(Path(folder) / "scene", seed=0, seconds=_SCENE_S)
        return list(replayed(open_recording(Path(folder) / "scene"), ReplayPlan("", "", "")))[-1]


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
