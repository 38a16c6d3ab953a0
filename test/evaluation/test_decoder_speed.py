"""The benchmark of the decoder: what it compares is the same, what it cannot run it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from evspec_ros import cli
from evspec_ros.engines.decoder import Rows
from evspec_ros.errors import CheckpointError, EngineError
from evspec_ros.evaluation.decoder_speed import DecoderBench, _SpeedRun, bench_decoder, print_speed


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@torch.inference_mode()
@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_both_decoders_compute_the_same(backend: str) -> None:
    """Prefill, step and block: logits within 1e-4 of transformers', again and again."""
    bench = _SpeedRun(DecoderBench(backend=backend), most_nodes=8)
    assert (bench._prefill() - bench._their_prefill()[0]).abs().max() <= 1e-4
    for count in (1, 9, 1, 5, 9):
        ids = torch.arange(count) * 7 % 600
        ours, theirs = bench._pass(Rows(ids)), bench._their_pass(ids)[0]
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-4


def test_every_operation_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    """Prefill, step, then each number of nodes; ratios fit the times, threads are given back."""
    settings = DecoderBench(threads=2, repetitions=1)
    seen: list[int] = []
    speed = bench_decoder(settings, (4, 8), report=seen.append)
    assert [(row.operation, row.nodes) for row in speed.rows] == [
        ("prefill", 0),
        ("step", 0),
        ("verify", 4),
        ("verify", 8),
    ]
    assert seen == [1, 2, 3, 4]
    assert torch.get_num_threads() == 1
    assert "threads: 2" in speed.machine
    prefill, step, verify, _ = speed.rows
    assert verify.ratio == pytest.approx(verify.transformers_ms / verify.ms)
    assert verify.steps == pytest.approx(verify.ms / step.ms)
    assert (prefill.steps, step.steps) == (None, 1.0)
    assert step.bandwidth_share == pytest.approx(
        (4 * (10 * (4 * 256**2 + 3 * 256 * 688 + 2 * 256) + 611 * 256) + 191 * 2 * 10 * 256 * 4)
        / (step.ms * 1e6 * speed.copy_gb_per_s)
    )
    print_speed(speed)
    assert "verify" in capsys.readouterr().out


def test_json_is_all_there_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """One object with the machine and eight rows, in half precision here, which the modules compute."""
    arguments = "bench decoder --json --random-weights --dtype bfloat16 --repetitions 1"
    assert cli.main(arguments.split()) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["rows"]) == 8
    assert {"shape", "device", "dtype", "operation", "nodes", "ms", "transformers_ms", "ratio"} <= set(
        printed["rows"][0]
    )
    assert "its precision is bfloat16" in printed["engine"]
    assert printed["machine"]


def test_full_size_without_a_gpu_is_refused() -> None:
    """Before a weight is made."""
    with pytest.raises(EngineError, match="full-size shapes need a GPU; add --device cuda"):
        bench_decoder(DecoderBench(shape="7b"))


def test_too_small_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With how much is needed and how much is free."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8_000_000_000, 8_000_000_000))
    with pytest.raises(
        EngineError, match=r"need 14 GB of the GPU's memory in torch\.float16 and 8 GB are free"
    ):
        bench_decoder(DecoderBench(shape="7b", device="cuda", dtype="float16"))


def test_a_device_that_does_not_exist_is_refused() -> None:
    """In a sentence, not in torch's list of all devices."""
    with pytest.raises(CheckpointError, match="no device 'nonsense' for the networks; choose cpu"):
        bench_decoder(DecoderBench(device="nonsense"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    """Asked for by name."""
    with pytest.raises(CheckpointError, match="torch sees no GPU"):
        bench_decoder(DecoderBench(device="cuda"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--shape 7b", "add --target DIR or --random-weights"),
        ("--shape 7b --random-weights", "The full-size shapes need a GPU"),
    ],
)
def test_the_command_says_what_the_full_size_needs(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1, one sentence on stderr."""
    assert cli.main(["bench", "decoder", *arguments.split()]) == 1
    captured = capsys.readouterr()
    assert message in captured.err.replace("\n", " ")
    assert not captured.out
