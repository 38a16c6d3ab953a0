"""The proof that no drafter changes a text, on tiny random models."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from evspec_ros.evaluation import lossless
from evspec_ros.evaluation.decoding import Bench
from evspec_ros.evaluation.lossless import EVENTS, LIMITS, LosslessReport, print_proof, prove, prove_visibly
from evspec_ros.networks.checkpoints import DRAFT_HEADS
from evspec_ros.networks.clip import ClipConfig
from evspec_ros.networks.eventgpt import EventGpt, EventGptConfig
from evspec_ros.networks.llama import LlamaConfig
from evspec_ros.networks.video_llava import VideoLlava, VideoLlavaConfig
from evspec_ros.speculative import DRAFTERS, Block, DecoderTarget, TargetPass
from evspec_ros.training.features import ModelPair, SceneBatch

MODELS = Path(__file__).parents[2] / "models"
TARGET, EVENT_MODEL = MODELS / "tiny_video_llava", MODELS / "tiny_eventgpt"
CLIP = ClipConfig(16, 32, 2, 2, 32, 16, projection_dim=16)


def _bench() -> Bench:
    torch.manual_seed(0)
    text = LlamaConfig(40, 32, 48, 3, 4, 4, 8, max_positions=256)
    target = VideoLlava(VideoLlavaConfig(text, CLIP, 38, 39))
    event_model = EventGpt(EventGptConfig(LlamaConfig(40, 24, 32, 1, 2, 2, 12, max_positions=96), CLIP))
    with torch.no_grad():
        for parameter in (*target.parameters(), *event_model.parameters()):
            if parameter.dim() >= 2:
                parameter.normal_(std=0.3)
    heads = {
        kind: made.head(made.config.for_target(target.config.text, 24, 10)).eval()
        for kind, made in DRAFT_HEADS.items()
    }
    prompts = torch.tensor([1, 5, 39, 7, 8]), (torch.tensor([1, 4]), torch.tensor([6]))
    pair = ModelPair(target.eval(), event_model.eval(), *prompts)
    return Bench(pair, heads, max_new_tokens=12)


def _scene() -> SceneBatch:
    return SceneBatch(torch.randn(1, 8, 3, 32, 32), torch.randn(1, 5, 3, 32, 32))


def test_every_setting_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    """All drafters with all limits; with all poolings and overlaps where they read events; none differs."""
    report = prove(_bench(), [_scene(), _scene()])
    reading = sum(kind.reads_events for kind in DRAFTERS.values())
    expected = len(LIMITS) * (reading * len(EVENTS) + len(DRAFTERS) - reading + 3)
    assert len(set(report.settings)) == expected
    assert (report.scenes, report.texts, report.different) == (2, 2 * expected, ())
    print_proof(report)
    assert "0 differ from plain decoding" in capsys.readouterr().out


def test_an_interrupted_comparison_reports_what_it_compared() -> None:
    """The scene that it was at is the last one."""

    def scenes() -> Iterator[SceneBatch]:
        yield _scene()
        os.kill(os.getpid(), signal.SIGINT)
        yield _scene()
        yield _scene()

    assert prove(_bench(), scenes()).scenes == 2


def test_a_fault_in_verification_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the target keeps one row too many, drafted texts differ and plain ones do not; differing texts
    are named by their scene.
    """
    keep, extend = DecoderTarget.keep, DecoderTarget.extend
    rows_read: list[int] = []

    def counts(self: DecoderTarget, blocks: list[Block]) -> list[TargetPass]:
        rows_read[:] = [len(block.tree) + 1 for block in blocks]
        return extend(self, blocks)

    def keeps_more(self: DecoderTarget, rows: list[list[int]]) -> None:
        keep(self, [list(range(rows_read[0] if len(rows[0]) > 1 else 1))])

    monkeypatch.setattr(DecoderTarget, "extend", counts)
    monkeypatch.setattr(DecoderTarget, "keep", keeps_more)
    report = prove(_bench(), [_scene()], first=7)
    assert {number for number, _ in report.different} == {7}
    assert not any(setting.startswith("none") for _, setting in report.different)


@pytest.mark.parametrize("exact_half", [False, True])
def test_half_precision_is_that_of_every_network(exact_half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And passes have one shape where that was asked for; what differs is reported as a share."""
    benches: list[Bench] = []
    found = LosslessReport(1, ("none",), 8, ((0, "none"),))
    monkeypatch.setattr(lossless, "prove", lambda bench, *_: (benches.append(bench), found)[1])
    report = prove_visibly(TARGET, EVENT_MODEL, [], 1, dtype="bfloat16", exact_half=exact_half)
    assert report.as_dict()["share"] == 1 / 8
    decoder = benches[0].decoder
    assert decoder.engine.same_rows == exact_half
    assert {parameter.dtype for parameter in decoder.decoder.parameters()} == {torch.bfloat16}
