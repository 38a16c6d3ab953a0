"""Captured CUDA graphs and the memory that they share.

What a graph computes with in between is needed while it runs and not after, so graphs that never run at the
same time take it from one pool. A stream of its own means a pool of its own: the event model's graphs may run
beside the target's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from evspec_ros.cancellation import shielded
from evspec_ros.errors import EngineError

Output = TypeVar("Output")
Given_co = TypeVar("Given_co", covariant=True)

_ONE_AT_A_TIME = Lock()  # torch captures on one stream of its own, and waits for the device before it does
_WARM_UPS = 3  # runs before a capture, so that libraries have chosen kernels and allocated workspaces


class Captured(Protocol[Given_co]):
    """A computation whose launches were recorded once."""

    def replay(self) -> Given_co:
        """Run it on what lies in its inputs now; what it gives lies where the last run's lay."""


class Capturing(Protocol):
    """Records computations."""

    def capture(self, compute: Callable[[], Output]) -> Captured[Output]:
        """What `compute` does, of fixed shapes and addresses and without a look at a value; it runs a few
        times on what lies in its inputs, and other threads may use the GPU meanwhile.
        """


class Uncaptured(Generic[Output]):
    """A computation that runs anew each time."""

    def __init__(self, compute: Callable[[], Output]) -> None:
        self._compute = compute

    def replay(self) -> Output:
        """See Captured."""
        return self._compute()


class NoPool:
    """Captures nothing: passes of fixed shapes where there are no graphs."""

    def capture(self, compute: Callable[[], Output]) -> Captured[Output]:
        """See Capturing."""
        return Uncaptured(compute)


class GraphPool:
    """Captures CUDA graphs on one GPU; EngineError for another device."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise EngineError("CUDA graphs need a GPU; set device to cuda, or backend to auto.")
        self._device = device
        self._memory: Any = None  # the pool
        self._anchor: _CudaGraph[Tensor] | None = None  # never let go: a pool ends with its last graph

    def capture(self, compute: Callable[[], Output]) -> Captured[Output]:
        """See Capturing."""
        with _ONE_AT_A_TIME, shielded():
            if self._anchor is None:
                self._memory = torch.cuda.graph_pool_handle()
                self._anchor = self._record(torch.zeros(1, device=self._device).zero_)
            return self._record(compute)

    def _record(self, compute: Callable[[], Output]) -> _CudaGraph[Output]:
        current, beside = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UPS):
                compute()
        current.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            output = compute()
        return _CudaGraph(graph, output)


class _CudaGraph(Generic[Output]):
    """A graph and what its last replay gave."""

    def __init__(self, graph: torch.cuda.CUDAGraph, output: Output) -> None:
        self._graph, self._output = graph, output

    def replay(self) -> Output:
        """See Captured."""
        self._graph.replay()
        return self._output


@cache
def graph_pool(device: torch.device, *, events: bool = False) -> GraphPool:  # noqa: ARG001
    """The pool of a GPU's graphs: of those that run one after another with the target's, or of the event
    model's, which run beside them.
    """
    return GraphPool(device)
