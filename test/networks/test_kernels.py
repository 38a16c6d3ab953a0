"""What is one kernel on a GPU with Triton: compiled code gives what the plain functions give, and no more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from random_models import llama_config
from torch import Tensor
from torch._dynamo.utils import counters

from evspec_ros.engines.capture import graph_pool
from evspec_ros.networks import attention, kernels
from evspec_ros.networks.kernels import INDUCTOR, Fused, Kernels, add_norm, fused, gated, rotate_into, using
from evspec_ros.networks.llama import KVCache, LlamaDecoder, Rotary

ROWS = (1, 8, 24, 64)
LAYERS = 3
ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def _fresh() -> Iterator[None]:
    """Nothing is compiled yet."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def _random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _norm(rows: int, dtype: torch.dtype, layer: int) -> tuple[Any, ...]:
    x, weight = _random(2, 1, rows, 48, dtype=dtype, seed=layer), _random(48, dtype=dtype, seed=9)
    return x[0], x[1], torch.nn.Parameter(weight, requires_grad=False), 1e-5


def _gate(rows: int, dtype: torch.dtype, layer: int) -> tuple[Any, ...]:
    return (_random(1, rows, 2 * 40, dtype=dtype, seed=layer),)


def _rotary(rows: int, dtype: torch.dtype, layer: int) -> tuple[Any, ...]:
    """Of one layer of a cache of several, whose places are not one behind another."""
    sizes = llama_config(2)
    cache = KVCache(sizes, 256, dtype=dtype)
    cache.memory[0].copy_(_random(*cache.memory[0].shape, dtype=dtype, seed=7))
    heads = sizes.num_heads + 2 * sizes.num_kv_heads
    x = _random(1, rows, heads, sizes.head_dim, dtype=dtype, seed=layer).transpose(1, 2)
    places = 13 + torch.arange(rows).flip(0)
    cos, sin = (table.to(dtype) for table in Rotary(sizes).at(places))
    return x, cos, sin, cache.memory[0][:, layer], places


def _parts(rows: int, dtype: torch.dtype, layer: int) -> tuple[Any, ...]:
    mixed = _random(8, 4, 2, rows, 16, dtype=dtype, seed=layer)
    padded = -(-rows // 32) * 32  # as a GPU's kernel gives them
    return mixed, _random(*mixed.shape[:-2], padded, dtype=torch.float32, seed=3)[..., :rows] * 9


FUNCTIONS: dict[str, tuple[Fused[..., Any], Callable[[int, torch.dtype, int], tuple[Any, ...]]]] = {
    "norm": (add_norm, _norm),
    "gate": (gated, _gate),
    "rotary": (rotate_into, _rotary),
    "joined": (attention._joined, _parts),
}


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_functions_give_what_the_plain_ones_give(name: str, dtype: torch.dtype) -> None:
    """For any number of rows in any layer, with what they change in place, from two compilations: one of a
    single row, one of several.
    """
    function, make = FUNCTIONS[name]
    for layer in range(LAYERS):
        for rows in ROWS:
            expected_of, given = make(rows, dtype, layer), make(rows, dtype, layer)
            expected = function.plain(*expected_of)
            with using(Kernels("aot_eager", split=False)):
                found = function(*given)
            torch.testing.assert_close(found, expected, atol=ROUNDING[dtype], rtol=ROUNDING[dtype])
            for mine, theirs in zip(given, expected_of, strict=True):
                torch.testing.assert_close(mine, theirs, atol=ROUNDING[dtype], rtol=ROUNDING[dtype])
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.usefixtures("_fresh")
def test_models_of_other_sizes_share_the_functions() -> None:
    """Another width, another epsilon, another number of heads and another capacity."""
    with using(Kernels("aot_eager", split=False)):
        for size, epsilon in ((48, 1e-5), (80, 1e-2), (32, 1e-5), (80, 1e-5)):
            x, weight = _random(2, 1, 5, size, dtype=torch.float32), torch.nn.Parameter(torch.ones(size))
            given = x[0], x[1], weight, epsilon
            torch.testing.assert_close(add_norm(*given), add_norm.plain(*given))
        for kept, capacity in ((4, 64), (2, 64), (5, 96)):
            heads = _random(1, 7 + 2 * kept, 5, 16, dtype=torch.float32)
            cos, sin = _random(2, 5, 16, dtype=torch.float32)
            memories = torch.zeros(2, 2, 1, kept, capacity, 16)
            places = torch.arange(5) * 9
            ways = zip((rotate_into, rotate_into.plain), memories, strict=True)
            turned = [way(heads, cos, sin, memory, places) for way, memory in ways]
            torch.testing.assert_close(*turned)
            torch.testing.assert_close(*memories)


def test_a_processor_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a prompt nor a pass, with or without gradients."""
    monkeypatch.setattr(Fused, "compiled", lambda *_: pytest.fail("something is compiled"))
    with torch.inference_mode(False):
        decoder = LlamaDecoder(llama_config()).eval()
    cache = KVCache(decoder.config, 64)
    decoder(_random(1, 9, 64, dtype=torch.float32), cache)
    decoder(_random(1, 1, 64, dtype=torch.float32), cache)
    with torch.inference_mode(False), torch.enable_grad():
        decoder(torch.ones(1, 3, 64)).hidden.sum().backward()


def test_without_triton_a_gpu_computes_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Jetson; nothing is tried."""
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda _: True))
    monkeypatch.setattr(kernels, "find_spec", lambda _: None)
    monkeypatch.setattr(Fused, "compiled", lambda *_: pytest.fail("something is compiled"))
    kernels._compiles.cache_clear()
    assert kernels.compiler_for(torch.ones(1)) is None
    kernels._compiles.cache_clear()


def test_a_compiler_that_fails_is_told_once_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where Triton is and cannot work, for want of a C compiler say, plain torch runs instead."""

    def failing(*_: object) -> Any:
        raise RuntimeError("Failed to find C compiler.\nSet CC.")

    monkeypatch.setattr(Tensor, "is_cuda", property(lambda _: True))
    monkeypatch.setattr(kernels, "find_spec", lambda name: name)
    monkeypatch.setattr(Fused, "compiled", failing)
    kernels._compiles.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [kernels.compiler_for(torch.ones(1)) for _ in range(2)] == [None, None]
    assert [record.message for record in caplog.records] == [
        "No kernel is compiled, plain torch runs instead: Failed to find C compiler. Set CC."
    ]
    kernels._compiles.cache_clear()


def test_a_function_that_cannot_be_compiled_is_computed_plainly(caplog: pytest.LogCaptureFixture) -> None:
    """It alone, from then on, and one line says so."""
    tried: list[object] = []

    def backend(graph: object, _: object) -> Any:
        tried.append(graph)
        raise RuntimeError("No kernel for this.")

    doubled = fused({})(lambda x: x + x)
    with caplog.at_level(logging.WARNING, kernels.__name__), using(Kernels(backend, split=False)):
        for _ in range(2):
            assert torch.equal(doubled(torch.ones(3)), torch.full((3,), 2.0))
    assert len(tried) == len(caplog.records) == 1
    assert "No kernel for this." in caplog.text


def test_who_trains_computes_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are not compiled, nor is what an exporter traces."""
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda _: True))
    monkeypatch.setattr(kernels, "_compiles", lambda _: True)
    x = torch.ones(1)
    assert kernels.compiler_for(x) == INDUCTOR
    with torch.inference_mode(False), torch.enable_grad():
        assert kernels.compiler_for(x) is None
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    assert kernels.compiler_for(x) is None


@pytest.mark.gpu
@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_kernels_of_a_gpu_give_what_the_plain_functions_give(name: str, dtype: torch.dtype) -> None:
    """By the compiler that is used there, within a graph that is captured; memory of the cache's size is
    neither copied nor allocated.
    """
    function, make = FUNCTIONS[name]
    device = torch.device("cuda")
    if kernels.compiler_for(torch.ones(1, device=device)) is None:
        pytest.skip("needs Triton")
    for rows in ROWS:
        plain, ours = ([x.cuda() if isinstance(x, Tensor) else x for x in make(rows, dtype, 1)] for _ in "ab")
        expected = function.plain(*plain)
        captured = graph_pool(device).capture(lambda: function(*ours))  # noqa: B023
        torch.testing.assert_close(captured.replay(), expected, atol=ROUNDING[dtype], rtol=ROUNDING[dtype])
        torch.testing.assert_close(ours, plain, atol=ROUNDING[dtype], rtol=ROUNDING[dtype])
    memory = torch.zeros(2, 1, 8, 100_000, 64, dtype=dtype, device=device)
    heads, tables = (
        torch.ones(1, 24, 3, 64, dtype=dtype, device=device),
        torch.ones(3, 64, dtype=dtype, device=device),
    )
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        rotate_into(heads, tables, tables, memory, torch.arange(3, device=device))
    assert torch.cuda.max_memory_allocated() - before < memory.nbytes / 10
