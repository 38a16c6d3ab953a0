"""The benchmark of drafters, on tiny random models and on the shipped ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evspec_ros import cli
from evspec_ros.engines.block import BlockOutput, OnnxBlock
from evspec_ros.errors import EvspecError, GenerationError
from evspec_ros.evaluation.decoding import (
    CURVE_ROWS,
    Bench,
    Contestant,
    DecodingReport,
    DecodingRow,
    ablations,
    contestants,
    held_out,
)
from evspec_ros.evaluation.decoding_report import plot_report, print_report
from evspec_ros.networks.block_head import BlockHead, BlockPass
from evspec_ros.networks.checkpoints import DRAFT_HEADS, load_draft_head
from evspec_ros.networks.clip import ClipConfig
from evspec_ros.networks.eventgpt import EventGpt, EventGptConfig
from evspec_ros.networks.llama import KVCache, LlamaConfig
from evspec_ros.networks.video_llava import VideoLlava, VideoLlavaConfig
from evspec_ros.speculative import DRAFTERS, INGREDIENTS, DraftLimits
from evspec_ros.speculative.statistics import DecodingStatistics
from evspec_ros.training.features import ModelPair, SceneBatch
from evspec_ros.training.head_run import load_pair

CLIP = ClipConfig(16, 32, 2, 2, 32, 16, projection_dim=16)
MODELS = Path(__file__).parents[2] / "models"


def _bench() -> Bench:
    torch.manual_seed(0)
    target = VideoLlava(
        VideoLlavaConfig(LlamaConfig(40, 32, 48, 3, 4, 4, 8, max_positions=256), CLIP, 38, 39)
    )
    event_model = EventGpt(EventGptConfig(LlamaConfig(40, 24, 32, 1, 2, 2, 12, max_positions=96), CLIP))
    heads = {
        kind: made.head(made.config.for_target(target.config.text, 24, 10)).eval()
        for kind, made in DRAFT_HEADS.items()
    }
    prompts = torch.tensor([1, 5, 39, 7, 8]), (torch.tensor([1, 4]), torch.tensor([6]))
    pair = ModelPair(target.eval(), event_model.eval(), *prompts)
    return Bench(pair, heads, DraftLimits(8, 8), max_new_tokens=15)


def _streams(count: int, windows: int) -> Iterator[list[SceneBatch]]:
    for _ in range(count):
        yield [SceneBatch(torch.randn(1, 8, 3, 32, 32), torch.randn(1, 5, 3, 32, 32)) for _ in range(windows)]


@pytest.fixture(scope="module")
def rows() -> tuple[DecodingRow, ...]:
    """All drafters on two streams of two windows."""
    bench = _bench()
    return bench.race(contestants(bench.able()), _streams(2, 2))


def test_every_drafter_has_its_rows(rows: tuple[DecodingRow, ...]) -> None:
    """At both temperatures; with and without overlap where it reads events; plain decoding first."""
    found = [(row.drafter, row.overlap, row.temperature) for row in rows]
    assert found[0] == ("none", False, 0.0)
    assert len(set(found)) == len(found)
    for name, kind in DRAFTERS.items():
        for temperature in (0.0, 1.0):
            assert (name, False, temperature) in found
            assert ((name, True, temperature) in found) == kind.reads_events


def test_figures_fit_each_other(rows: tuple[DecodingRow, ...]) -> None:
    """Greedy texts are the baseline's; speed-ups are the ratios of what was measured."""
    none = rows[0]
    assert none.speedup == none.speedup_decode == none.mean_accepted_length == none.prefill_slowdown == 1.0
    for row in rows:
        assert row.scenes == 4
        assert row.identical == (None if row.temperature else True)
        if not row.temperature:
            assert row.tokens == none.tokens
            assert row.speedup == pytest.approx(none.seconds / row.seconds)
            assert row.target_step_ms == none.verify_ms
        passes = (row.tokens - row.scenes) / row.mean_accepted_length  # of the target
        assert row.draft_passes * row.draft_ms_per_pass == pytest.approx(
            passes * row.draft_ms if row.draft_passes else 0.0
        )
        if row.drafter == "block":  # one for each draft, and one token at least is left for the target
            assert 0 < row.draft_passes <= passes
        assert (row.event_ms > 0) == (DRAFTERS[row.drafter].reads_events)
        assert row.event_hidden_ms <= row.event_ms * row.overlap
        assert json.loads(json.dumps(row.as_dict()))["drafter"] == row.drafter


def test_an_ablation_takes_each_ingredient_away() -> None:
    """The names say which; without a head nothing is read of the target's features."""
    bench = _bench()
    entries = [bench.entry(contestant) for contestant in ablations()]
    assert [entry.contestant.without for entry in entries[2:]] == [(name,) for name in INGREDIENTS]
    assert [bool(entry.drafter.layers) for entry in entries] == [False, True, True, False, True]


@pytest.mark.parametrize(
    ("name", "runs_a_pass"), [("none", (0, 0)), ("block", (1, 1)), ("eagle3", (2, 8)), ("feature", (7, 8))]
)
def test_runs_of_a_drafter_s_network_are_counted(name: str, runs_a_pass: tuple[float, float]) -> None:
    """In drafts of eight nodes without costs: none, one for a block, several where each token needs one;
    a draft that ends with an end token is shorter.
    """
    statistics = _shown(name)
    fewest, most = runs_a_pass
    drafts = statistics.drafted_by_position[0] if statistics.drafted else 0
    assert fewest * drafts <= statistics.draft_passes <= most * drafts


SHORT = "bench decode --scenes 1 --streams 0 --drafter block --drafter combined"


def test_the_command_says_what_computed(capsys: pytest.CaptureFixture[str]) -> None:
    """In half precision here, which the modules compute; whether the texts are plain decoding's of the same
    run is found out all the same.
    """
    assert cli.main([*SHORT.split(), "--json", "--dtype", "bfloat16"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["dtype"] == "bfloat16"
    assert "its precision is bfloat16" in printed["engine"]
    assert printed["machine"]
    assert all(row["identical"] in (True, False) for row in printed["rows"] if not row["temperature"])
    assert [row for row in printed["rows"] if row["drafter"] == "block" and row["draft_ms_per_pass"] > 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            "--device cuda",
            "torch sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        ("--device tpu", "no device 'tpu' for the networks; choose cpu, cuda or cuda:N"),
        ("--backend cuda_graphs", "CUDA graphs need a GPU; set device to cuda"),
        ("--backend onnxruntime --dtype float16", "its precision is float16, not float32"),
    ],
)
def test_where_it_cannot_run_is_a_sentence(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1 and what to do; nothing on stdout."""
    assert cli.main([*SHORT.split(), *arguments.split()]) == 1
    captured = capsys.readouterr()
    assert message in captured.err.replace("\n", " ")
    assert not captured.out


def test_a_benchmark_of_nothing_is_refused() -> None:
    """There is nothing to divide by."""
    with pytest.raises(GenerationError, match="at least one scene"):
        _bench().race([Contestant("none")], ())


def test_the_report_is_printed_and_drawn(
    rows: tuple[DecodingRow, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every drafter by its name; a picture where it was asked for, a sentence where it cannot be."""
    report = DecodingReport(
        rows, rows, (), (), dict.fromkeys(CURVE_ROWS, 1.0), 2.0, "a machine", "float32", "torch"
    )
    print_report(report)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("eventgpt_adapter", "combined", "60 rows 1.00", "on a machine"))
    plot_report(report, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    with pytest.raises(EvspecError, match="cannot be written"):
        plot_report(report, tmp_path / "nowhere" / "bench.png")


def test_the_stream_s_figures_are_the_default_drafter_s(rows: tuple[DecodingRow, ...]) -> None:
    """Beside them lie all rows of the stream."""
    stream = DecodingReport((), rows, (), (), {}, 1.0, "", "", "").as_dict()["stream"]
    assert (stream["drafter"], stream["overlap"], stream["temperature"]) == ("combined", False, 0.0)
    assert len(stream["rows"]) == len(rows)


# What the shipped checkpoints reach, greedily, on eight held-out scenes in drafts of eight nodes: tokens per
# pass of the target with the bonus token, and of the drafts that were so long the share accepted there.
SHIPPED = {
    "block": (7.84, [1.0, 0.95, 0.97, 0.97, 0.94, 0.94, 0.85, 0.87]),
    "eagle": (7.27, [1.0, 0.95, 0.92, 0.92, 0.89, 0.86, 0.74, 0.63]),
    "eagle2": (7.27, [1.0, 0.90, 0.88, 0.88, 0.87, 0.86, 0.74, 0.65]),
    "eagle3": (7.84, [1.0, 0.97, 0.97, 0.94, 1.0, 0.97, 0.94, 0.94]),
    "eventgpt": (5.05, [0.90, 0.84, 0.77, 0.55, 0.43, 0.35, 0.30, 0.21]),
    "eventgpt_adapter": (4.89, [0.82, 0.76, 0.72, 0.53, 0.48, 0.33, 0.30, 0.24]),
    "feature": (2.61, [0.91, 0.41, 0.23, 0.08, 0.01, 0.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("name", list(SHIPPED))
def test_shipped_heads_are_accepted_as_often_as_when_they_were_trained(name: str) -> None:
    """Within five per cent, as a whole and position by position.

    A fault in how features are handed over leaves every text right; it shows here alone.
    """
    _require_acceptance(_shown(name), name)


def _require_acceptance(shown: DecodingStatistics, name: str) -> None:
    """That of SHIPPED."""
    expected = SHIPPED[name]
    assert shown.mean_accepted_length == pytest.approx(expected[0], rel=0.05)
    assert shown.acceptance_by_position == pytest.approx(expected[1], rel=0.05, abs=0.02)


def _shown(name: str) -> DecodingStatistics:
    """What a shipped head is accepted on eight held-out scenes, whose texts are plain decoding's."""
    heads = {kind: load_draft_head(MODELS / f"tiny_{kind}") for kind in DRAFTERS[name].head_kinds[:1]}
    bench = Bench(load_pair(MODELS / "tiny_video_llava", MODELS / "tiny_eventgpt"), heads, DraftLimits(8, 8))
    entry, plain = bench.entry(Contestant(name)), bench.entry(Contestant("none"))
    for window in (stream[0] for stream in held_out(8)):
        for one in (entry, plain):
            one.statistics += (said := bench.describe(one, bench.prompt(window), one.limits)).statistics
            one.texts.append(said.tokens)
    assert entry.texts == plain.texts
    return entry.statistics


def _late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every turn's features one row late: the last of the turn before comes first."""
    run, last = OnnxBlock.run, [torch.zeros(1)]

    def late(self: OnnxBlock, features: torch.Tensor, token: int, cache: KVCache) -> BlockOutput:
        before = last[0] if last[0].dim() > 1 else features[:1]
        last[0] = features[-1:].clone()
        return run(self, torch.cat((before, features))[:-1], token, cache)

    monkeypatch.setattr(OnnxBlock, "run", late)


def _padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pads a turn stays in the context and is seen by the next ones."""
    run = OnnxBlock.run

    def padded(self: OnnxBlock, features: torch.Tensor, token: int, cache: KVCache) -> BlockOutput:
        said = run(self, features, token, cache)
        cache.length += 2
        return said

    monkeypatch.setattr(OnnxBlock, "run", padded)


def _masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another token stands where the last one belongs, the same in every turn."""
    run = OnnxBlock.run

    def masked(self: OnnxBlock, features: torch.Tensor, token: int, cache: KVCache) -> BlockOutput:
        return run(self, features, 0, cache)

    monkeypatch.setattr(OnnxBlock, "run", masked)


def _other_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event rows stand where the text's belong, and the other way round."""
    read = OnnxBlock.read

    def swapped(self: OnnxBlock, features: torch.Tensor, events: torch.Tensor | None, cache: KVCache) -> None:
        read(self, features, None, cache)
        read(self, features[:0], events, cache)

    monkeypatch.setattr(OnnxBlock, "read", swapped)


def _unmasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the block sees the masks behind it, too."""
    draft = BlockHead.draft

    def unmasked(self: BlockHead, *arguments: torch.Tensor) -> BlockPass:
        self.config = replace(self.config, causal=False)
        return draft(self, *arguments)

    monkeypatch.setattr(BlockHead, "draft", unmasked)


def _late_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event rows stand one place late, the last one first."""
    read = OnnxBlock.read

    def late(self: OnnxBlock, features: torch.Tensor, events: torch.Tensor | None, cache: KVCache) -> None:
        read(self, features, None if events is None else events.roll(1, 0), cache)

    monkeypatch.setattr(OnnxBlock, "read", late)


FAULTS = [_late, _padded, _masked, _unmasked, _other_events, _late_events]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_what_a_block_reads_shows_in_its_acceptance(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The texts stay plain decoding's, and the test above would fail: as a whole or at single positions."""
    fault(monkeypatch)
    shown = _shown("block")
    assert shown.mean_accepted_length < SHIPPED["block"][0] - 0.1
    with pytest.raises(AssertionError):
        _require_acceptance(shown, "block")
