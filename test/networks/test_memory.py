"""The memory map against what models really hold, and against figures known by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evspec_ros.errors import CheckpointError
from evspec_ros.networks import memory
from evspec_ros.networks.checkpoints import (
    load_draft_head,
    load_eventgpt,
    load_video_llava,
    read_draft_head_config,
    read_eventgpt_config,
    read_video_llava_config,
)
from evspec_ros.networks.llama import KVCache
from evspec_ros.networks.memory import Checkpoints, memory_map, published, require_memory
from evspec_ros.networks.weights import free_bytes

MODELS = Path(__file__).parents[2] / "models"
TARGET, EVENT_MODEL, HEAD = (MODELS / f"tiny_{name}" for name in ("video_llava", "eventgpt", "eagle"))
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def tiny() -> Checkpoints:
    """The sizes of the checkpoints in models/."""
    return Checkpoints(
        read_video_llava_config(TARGET), read_eventgpt_config(EVENT_MODEL), read_draft_head_config(HEAD)
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_are_those_of_the_loaded_models(dtype: str, tiny: Checkpoints) -> None:
    """Byte for byte, from the configs alone."""
    number = getattr(torch, dtype)
    models = (
        load_video_llava(TARGET, number),
        load_eventgpt(EVENT_MODEL, number),
        load_draft_head(HEAD, number),
    )
    held = sum(parameter.nbytes for model in models for parameter in model.parameters())
    parts = memory_map(tiny, dtype, "auto", CPU).parts
    assert sum(count for part, count in parts.items() if part not in ("KV cache", "activations")) == held


@pytest.mark.parametrize("kv", ["auto", "float16", "int8"])
def test_the_cache_is_as_large_as_the_real_one(kv: str, tiny: Checkpoints) -> None:
    """Scales included."""
    dtype = {"auto": torch.float32, "float16": torch.float16, "int8": torch.int8}[kv]
    alone = replace(tiny, event_model=None, draft_head=None)
    cache = KVCache(tiny.target.text, alone.rows, dtype=dtype)
    held = cache._kv.nbytes + cache._scales.nbytes
    assert memory_map(alone, "float32", kv, CPU).parts["KV cache"] == held


def test_the_published_target_has_seven_billion_weights_and_2056_video_tokens() -> None:
    """Vicuna-7B's 6.48 billion in its layers; 2 x 32 layers x 4096 values of cache per row."""
    sizes = published()
    assert sizes.prompt_rows - memory.TEXT_TOKENS == 2056
    found = memory_map(replace(sizes, event_model=None, draft_head=None), "float16", "float16", GPU)
    assert found.parts["target: decoder layers"] == pytest.approx(2 * 6.476e9, rel=1e-3)
    assert found.parts["KV cache"] == 2 * 32 * 4096 * 2 * sizes.rows
    assert list(found.parts) == [
        "target: decoder layers", "target: the rest", "KV cache", "activations",
    ]  # fmt: skip


def test_fewer_bits_take_less() -> None:
    """From float32 to int4, and int8 of the cache takes less than float16."""
    totals = [
        memory_map(published(), name, "float16", GPU).total for name in ("float32", "float16", "int8", "int4")
    ]
    assert totals == sorted(totals, reverse=True)
    assert memory_map(published(), "int4", "int8", GPU).total < totals[-1]


def test_too_little_memory_is_refused_in_one_sentence(
    tiny: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is needed and what there is."""
    needed = memory_map(tiny, "float32", "auto", CPU)
    require_memory(needed, CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda _: needed.total - 1)
    with pytest.raises(CheckpointError, match=r"need about 0\.\d GiB in float32 .* cpu has 0\.\d GiB free"):
        require_memory(needed, CPU)


def test_available_memory_is_less_than_the_machine_has() -> None:
    """And more than nothing."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    total = int(text.split("MemTotal:")[1].split()[0]) * 1024
    assert 0 < (free_bytes(CPU) or 0) < total
