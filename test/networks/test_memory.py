"""The memory map against what models really hold, and against figures known by hand."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evspec_ros.errors import CheckpointError
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.loading import load_describer
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
from evspec_ros.prompts import DEFAULT_PROMPT, target_prompt
from evspec_ros.sizes import CACHE_STEP
from evspec_ros.speculative.registry import drafter_kind

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
    assert (
        sum(
            count
            for part, count in parts.items()
            if part not in ("activations", "kept frames") and "cache" not in part
        )
        == held
    )


@pytest.mark.parametrize("kv", ["auto", "float16", "int8"])
def test_the_cache_is_as_large_as_the_real_one(kv: str, tiny: Checkpoints) -> None:
    """Scales included."""
    dtype = {"auto": torch.float32, "float16": torch.float16, "int8": torch.int8}[kv]
    alone = replace(tiny, event_model=None, draft_head=None)
    assert alone.rows % CACHE_STEP == 0
    cache = KVCache(tiny.target.text, alone.rows, dtype=dtype)
    held = cache._kv.nbytes + cache._scales.nbytes
    assert memory_map(alone, "float32", kv, CPU).parts["KV cache"] == held


def test_captured_graphs_are_in_the_map_of_a_gpu_alone() -> None:
    """At full size they take more than their logits, 121 rows of 32,064 values, and less than a fiftieth of
    the weights.
    """
    parts = memory_map(published(), "float16", "auto", GPU).parts
    assert 2 * 121 * 32064 < parts["CUDA graphs"] < parts["target: decoder layers"] / 50
    assert "CUDA graphs" not in memory_map(published(), "float16", "auto", CPU).parts


def _held(kind: type) -> int:
    """Bytes of all key/value caches that there are."""
    gc.collect()
    caches = [found for found in gc.get_objects() if type(found) is kind]
    return sum(cache._kv.nbytes + cache._scales.nbytes for cache in caches)


@pytest.mark.parametrize(
    ("drafter", "head", "overlap"),
    [
        ("none", None, "off"),
        ("combined", "tiny_eagle3", "on"),
        ("combined", "tiny_eagle3", "off"),
        ("eagle2", "tiny_eagle", "off"),
        ("eventgpt", None, "off"),
        ("feature", "tiny_feature", "off"),
    ],
)
def test_the_map_is_what_a_describer_allocates(drafter: str, head: str | None, overlap: str) -> None:
    """Caches byte for byte, after the warm-up and a text of full length; and the frames that are kept."""
    before = _held(KVCache)
    path = MODELS / head if head else None
    describer = load_describer(TARGET, EVENT_MODEL, path, drafter=drafter, overlap=overlap)
    ids = describer._reader.target.tokenizer.encode(target_prompt(DEFAULT_PROMPT), bos=True)
    sizes = Checkpoints(
        read_video_llava_config(TARGET),
        read_eventgpt_config(EVENT_MODEL) if drafter_kind(drafter).reads_events else None,
        None if path is None else read_draft_head_config(path),
        event_text=drafter_kind(drafter).has_event_text(overlap == "on"),
        text_tokens=len(ids) - 1,
    )
    for window in range(5):
        images = [np.full((64, 64, 3), 8 * window + number, np.uint8) for number in range(8)]
        frames = [Frame(number, image) for number, image in enumerate(images)]
        described = describer.describe(Events.empty(64, 64), frames, stamp_ns=0)
        assert described.statistics.prompt_rows == sizes.prompt_rows
    parts = memory_map(sizes, "float32", "auto", CPU).parts
    assert sum(count for part, count in parts.items() if "cache" in part) == _held(KVCache) - before
    kept = {
        feature.untyped_storage().data_ptr(): feature.untyped_storage().nbytes()
        for feature in describer._reader._frame_features._features.values()
    }
    assert sum(kept.values()) == parts["kept frames"]


def test_the_published_caches_have_their_rows() -> None:
    """2,304 of the target: 2,056 of the video, 64 of text, 130 to measure passes, in steps of 128."""
    sizes = published()
    assert sizes.rows == 2304
    assert sizes.event_rows == 768  # 64 + 5 + 577 + 120
    assert sizes.head_rows(CPU) == 582 + 2120 + 120
    assert sizes.head_rows(torch.device("cuda")) == 582 + 2120 + 120 + 780  # 39 + 38 + ... + 1


def test_the_published_target_has_seven_billion_weights_and_2056_video_tokens() -> None:
    """Vicuna-7B's 6.48 billion in its layers; 2 x 32 layers x 4096 values of cache per row."""
    sizes = published()
    assert sizes.prompt_rows - memory.TEXT_TOKENS == 2056
    found = memory_map(replace(sizes, event_model=None, draft_head=None), "float16", "float16", GPU)
    assert found.parts["target: decoder layers"] == pytest.approx(2 * 6.476e9, rel=1e-3)
    assert found.parts["KV cache"] == 2 * 32 * 4096 * 2 * sizes.rows
    assert list(found.parts) == [
        "target: decoder layers", "target: the rest", "KV cache", "kept frames", "activations",
        "CUDA graphs",
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
