"""Torch as an engine: the modules themselves on a CPU, a captured graph of their work on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from evspec_ros.engines.capture import Captured, Capturing, graph_pool
from evspec_ros.engines.networks import Network
from evspec_ros.engines.protocol import Binding, require_bindings


class TorchEngine:
    """A network's own module. The other engines have to agree with it."""

    def __init__(self, network: Network, *, events: bool = False) -> None:
        """events: it is the event model's and may run beside the target."""
        self._network = network
        self._device = next(network.module.parameters()).device
        self._pool = graph_pool(self._device, events=events) if self._device.type == "cuda" else None

    def bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> BoundModule:
        """See Engine."""
        require_bindings(f"The network {self._network.name}", *self._bindings, inputs, outputs)
        return BoundModule(self._network, inputs, outputs, self._pool)

    def describe(self) -> str:
        """Torch and the device."""
        if self._device.type == "cuda":
            return f"torch {torch.__version__}, captured on {torch.cuda.get_device_name(self._device)}"
        return f"torch {torch.__version__} on the CPU, threads: {torch.get_num_threads()}"

    @cached_property
    def _bindings(self) -> tuple[list[Binding], list[Binding]]:
        """Inputs and outputs as the network's examples have them."""
        network = self._network
        inputs, outputs = (
            [Binding(name, one.dtype, self._shape(name, one)) for name, one in side.items()]
            for side in (network.inputs, network.run(network.inputs))
        )
        return inputs, outputs

    def _shape(self, name: str, example: Tensor) -> tuple[int | str, ...]:
        axes = self._network.dynamic.get(name, {})
        return tuple(axes.get(axis, size) for axis, size in enumerate(example.shape))


class BoundModule:
    """A module tied to tensors; where there is a pool its work is captured at the first run, for all that
    follow.
    """

    def __init__(
        self,
        network: Network,
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        pool: Capturing | None = None,
    ) -> None:
        self._network, self._inputs, self._outputs = network, dict(inputs), dict(outputs)
        self._pool = pool
        self._captured: Captured[None] | None = None

    @torch.inference_mode()
    def run(self) -> None:
        """Fill the outputs."""
        if self._pool is None:
            self._compute()
            return
        if self._captured is None:
            self._captured = self._pool.capture(self._compute)
        self._captured.replay()

    def _compute(self) -> None:
        found = self._network.run(self._inputs)
        for name, tensor in self._outputs.items():
            tensor.copy_(found[name])
