"""Torch as an engine: the modules themselves on a CPU, a captured graph of their work on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from evspec_ros.engines.cuda_graphs import captured
from evspec_ros.engines.networks import Network
from evspec_ros.engines.protocol import Binding, require_bindings


class TorchEngine:
    """A network's own module. The other engines have to agree with it."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._device = next(network.module.parameters()).device

    def bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> BoundModule:
        """See Engine."""
        require_bindings(f"The network {self._network.name}", *self._bindings, inputs, outputs)
        return BoundModule(self._network, inputs, outputs)

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
    """A module tied to tensors; on a GPU its work is captured at the first run, for all that follow."""

    def __init__(self, network: Network, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        self._network, self._inputs, self._outputs = network, dict(inputs), dict(outputs)
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.inference_mode()
    def run(self) -> None:
        """Fill the outputs."""
        device = next(iter(self._inputs.values())).device
        if device.type != "cuda":
            self._compute()
            return
        if self._graph is None:
            self._graph, _ = captured(device, self._compute)
        self._graph.replay()

    def _compute(self) -> None:
        found = self._network.run(self._inputs)
        for name, tensor in self._outputs.items():
            tensor.copy_(found[name])
