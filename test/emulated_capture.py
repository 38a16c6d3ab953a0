"""Captured graphs without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from torch import Tensor

Output = TypeVar("Output")


class EmulatedGraph(Generic[Output]):
    """Each replay computes again what was captured."""

    def __init__(self, compute: Callable[[], Output]) -> None:
        self._compute = compute
        self.output = compute()

    def replay(self) -> Output:
        """Beside what the last replay gave, so that who still reads that one is found out."""
        self.output = self._compute()
        return self.output


class EmulatedPool:
    """`GraphPool` on the CPU."""

    def __init__(self) -> None:
        self.graphs: list[EmulatedGraph[Any]] = []

    def capture(self, compute: Callable[[], Output]) -> EmulatedGraph[Output]:
        """See Capturing; the warm-ups run."""
        for _ in range(3):
            compute()
        graph = EmulatedGraph(compute)
        self.graphs.append(graph)
        return graph

    def spoil(self) -> None:
        """What every graph has given is overwritten, as others that share its memory may."""
        for graph in self.graphs:
            for tensor in _tensors(graph.output):
                tensor.fill_(float("nan") if tensor.is_floating_point() else -1)


def _tensors(given: object) -> Iterable[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, tuple):
        for one in given:
            yield from _tensors(one)
