"""The one way in which a network is executed, whatever executes it.

An engine holds a network. Bound to tensors once, it runs on them as often as wanted: what lies in the inputs
when it runs is what is read, and the outputs are overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from evspec_ros.errors import EngineError


class Bound(Protocol):
    """An engine tied to tensors."""

    def run(self) -> None:
        """Fill the outputs; on a GPU as work of the current stream, which nobody waits for here."""


class Engine(Protocol):
    """A network, ready to run."""

    def bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Bound:
        """Tie it to contiguous tensors by their names; of its outputs some may be left out.

        Raises EngineError for a name, a shape or a type that is not the network's (`require_bindings`).
        """

    def describe(self) -> str:
        """What computes, in a few words."""


@dataclass(frozen=True)
class Binding:
    """One input or output: its type, and its shape, with names in the place of sizes that may change."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]


def require_bindings(
    network: str,
    expected_inputs: Sequence[Binding],
    expected_outputs: Sequence[Binding],
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
) -> None:
    """Raise EngineError, in one sentence, where tensors are not what a network expects.

    A name in the place of a size means one size throughout; of the outputs some may be left out.
    """
    if missing := [binding.name for binding in expected_inputs if binding.name not in inputs]:
        raise EngineError(
            f"{network} wants a tensor {missing[0]!r}, and those at hand are {', '.join(inputs)}; it is of "
            "another model: export it again."
        )
    sizes: dict[str, int] = {}
    for expected, given in ((expected_inputs, inputs), (expected_outputs, outputs)):
        of_names = {binding.name: binding for binding in expected}
        for name, tensor in given.items():
            if name not in of_names:
                raise EngineError(
                    f"{network} has no tensor {name!r}, it has {', '.join(of_names)}; it is of another "
                    "model: export it again."
                )
            _require(network, of_names[name], tensor, sizes)


def _require(network: str, binding: Binding, tensor: Tensor, sizes: dict[str, int]) -> None:
    """One tensor; sizes: of the named axes met so far, which is added to."""
    shape = tuple(tensor.shape)
    fits = len(shape) == len(binding.shape) and all(
        size == (sizes.setdefault(axis, size) if isinstance(axis, str) else axis)
        for axis, size in zip(binding.shape, shape, strict=True)
    )
    if not fits or tensor.dtype != binding.dtype:
        raise EngineError(
            f"{network} wants {binding.name} as {_shown(binding.dtype, binding.shape)}, and the model at "
            f"hand has {_shown(tensor.dtype, shape)}; it is of another model or precision: export it again."
        )
    assert tensor.is_contiguous(), "Engines read and write contiguous memory alone"


def _shown(dtype: torch.dtype, shape: tuple[int | str, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} [{', '.join(map(str, shape))}]"
