"""`evspec doctor`: what is there, what fits, what is recommended."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evspec_ros import cli, doctor
from evspec_ros.doctor import MACHINES, judge, read_sizes, software, this_machine
from evspec_ros.errors import CheckpointError
from evspec_ros.networks.memory import GIB, published

MODELS = Path(__file__).parents[1] / "models"
TARGET, EVENT_MODEL, HEAD = (MODELS / f"tiny_{name}" for name in ("video_llava", "eventgpt", "eagle"))


def test_versions_are_those_of_what_is_imported() -> None:
    """torch's, and every name that a node needs is there."""
    found = {item.name: item for item in software()}
    assert found["torch"].version == torch.__version__
    assert {"python", "rclpy", "DDS", "torch", "tensorrt", "onnxruntime", "transformers", "cv2", "numba"} <= {
        *found
    }


def test_what_is_missing_comes_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence each; a chosen DDS that is not there is missing, too."""
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_nowhere_cpp")
    found = {item.name: item for item in software()}
    assert found["rclpy"].version is None
    assert all(item.advice for item in found.values() if item.version is None)
    assert found["DDS"].advice


@pytest.mark.parametrize(
    ("machine", "recommended"),
    [
        ("desktop", ("int8", "float16")),
        ("orin_agx_64gb", ("float16", "float16")),
        ("orin_nx_16gb", ("int4", "float16")),
    ],
)
def test_the_most_exact_precision_that_fits_is_recommended(
    machine: str, recommended: tuple[str, str]
) -> None:
    """For the 7B pair: 28 GiB in float16, so a 24 GB card takes int8 and a 16 GB module int4."""
    verdict = judge(published(), MACHINES[machine], None, None)
    assert verdict.recommended is not None
    assert (verdict.recommended.dtype, verdict.recommended.kv_dtype) == recommended
    assert verdict.recommended.total <= verdict.machine.available
    assert verdict.fits == (recommended[0] == "float16")


def test_a_smaller_cache_is_recommended_where_it_makes_the_difference() -> None:
    """And nothing where nothing fits."""
    need = judge(published(), MACHINES["desktop"], "int8", "float16").asked.total
    tight = replace(MACHINES["desktop"], memory=need - 1, reserve=0)
    found = judge(published(), tight, "int8", "float16")
    assert not found.fits
    assert found.recommended is not None
    assert (found.recommended.dtype, found.recommended.kv_dtype) == ("int8", "int8")
    none = judge(published(), replace(tight, memory=GIB), None, None)
    assert none.recommended is none.tokens_per_second is None


def test_the_limit_is_the_bandwidth_over_what_a_token_reads() -> None:
    """Vicuna-7B with 2.1 thousand rows of cache on an AGX Orin: 14 tokens a second in float16."""
    limit = judge(published(), MACHINES["orin_agx_64gb"], None, None).tokens_per_second
    assert limit is not None
    assert 13.5 < limit < 14.5


def test_this_machine_is_judged_by_what_is_free() -> None:
    """The tiny checkpoints fit in float32 or float16."""
    verdict = judge(read_sizes(TARGET, EVENT_MODEL, HEAD), this_machine(), None, None)
    assert verdict.fits
    assert verdict.recommended is not None


def test_checkpoints_without_a_target_are_refused() -> None:
    """And a directory that is none."""
    with pytest.raises(CheckpointError, match="without a target"):
        read_sizes(None, EVENT_MODEL, None)
    with pytest.raises(CheckpointError, match="no checkpoint directory"):
        read_sizes(MODELS / "nowhere", None, None)


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the tiny checkpoints on one machine, in the precision that was asked for."""
    arguments = [
        "--target",
        str(TARGET),
        "--machine",
        "orin_nx_16gb",
        "--dtype",
        "int4",
        "--kv-dtype",
        "int8",
    ]
    assert cli.main(["doctor", "--json", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    (machine,) = found["machines"]
    assert (machine["asked"]["dtype"], machine["asked"]["kv_dtype"]) == ("int4", "int8")
    assert machine["asked"]["total"] == sum(machine["asked"]["parts"].values())
    assert machine["fits"]
    assert any(item["name"] == "rclpy" for item in found["software"])


def test_tables_name_every_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without options: the published sizes on the three known machines."""
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for name in (*MACHINES, "torch", "KV cache", "activations", "in all"):
        assert name in printed


def test_a_pair_is_told_whether_its_tokens_mean_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped pair's do; without both directories nothing is said."""
    pair = ["--target", str(TARGET), "--event-model", str(EVENT_MODEL)]
    assert cli.main(["doctor", "--json", *pair]) == 0
    assert "can be drafted as they are" in json.loads(capsys.readouterr().out)["pair"]
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pair"] is None
