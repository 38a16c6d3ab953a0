"""ONNX Runtime: torch tensors as a graph's inputs and outputs, read and written where they lie.

The package onnx is imported where a graph is made: without it, or without ONNX Runtime, the modules compute
everything.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evspec_ros.cancellation import interruptible
from evspec_ros.engines.protocol import Binding, require_bindings
from evspec_ros.errors import EngineError
from evspec_ros.networks.llama import KVCache

if TYPE_CHECKING:
    import onnx

try:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as _states

    _LOADING_FAILURES: tuple[type[Exception], ...] = (
        _states.Fail, _states.InvalidArgument, _states.InvalidGraph, _states.InvalidProtobuf,
        _states.NoSuchFile, _states.NotImplemented, _states.RuntimeException,
    )  # fmt: skip
except ImportError:  # a robot may do without: everything runs on torch, too
    onnxruntime, _LOADING_FAILURES = None, ()

Shape = TypeVar("Shape", bound=Hashable)
Pass = TypeVar("Pass")

PACKAGES = ("onnx", "onnxruntime")
_TYPES: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: 16,  # onnx.TensorProto.BFLOAT16; numpy has none
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.bool: np.bool_,
}
_NAMES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(bfloat16)": torch.bfloat16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}
PROVIDERS = {  # what computes; each needs those behind it for what it cannot
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}


def runtime_obstacle(provider: str = "cpu") -> str | None:
    """Why ONNX Runtime cannot compute here with one of PROVIDERS; None where it can."""
    if onnxruntime is None:
        return "ONNX Runtime is not installed (pip install onnxruntime)"
    wanted = PROVIDERS[provider][0]
    if wanted not in onnxruntime.get_available_providers():
        return f"this ONNX Runtime has no {wanted} (pip install onnxruntime-gpu)"
    return None


def missing_packages() -> str:
    """Which of the packages cannot be imported and what to do, in a few words; "" where all can be."""
    missing = [name for name in PACKAGES if not _can_import(name)]
    return f"{' and '.join(missing)} cannot be imported: pip install {' '.join(missing)}" if missing else ""


def _can_import(name: str) -> bool:
    try:
        import_module(name)
    except ImportError:
        return False
    return True


class OnnxEngine:
    """A loaded graph; `threads` compute one operator together; sizes: of axes that the graph leaves open, by
    their names, so that nothing has to be computed about shapes in each run. provider: one of PROVIDERS; of
    one on a GPU all tensors have to lie there, on the current device.

    Raises EngineError where ONNX Runtime or the provider is missing, and for a graph that it cannot load.
    """

    def __init__(
        self,
        model: onnx.ModelProto | Path,
        threads: int,
        sizes: Mapping[str, int] = MappingProxyType({}),
        provider: str = "cpu",
    ) -> None:
        if obstacle := runtime_obstacle(provider):
            raise EngineError(f"The graph cannot be run: {obstacle}; or set the backend to torch.")
        options = onnxruntime.SessionOptions()
        for axis, size in sizes.items():
            options.add_free_dimension_override_by_name(axis, size)
        options.intra_op_num_threads = threads
        # Its threads wait busily inside a pass and sleep after it, when torch's own want the cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        name = model if isinstance(model, Path) else model.graph.name
        graph = str(model) if isinstance(model, Path) else model.SerializeToString()
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=PROVIDERS[provider])
        except _LOADING_FAILURES as error:
            problem = " ".join(str(error).split())
            raise EngineError(
                f"ONNX Runtime cannot load the graph {name} ({problem}); export it again."
            ) from error
        self._threads = threads
        self._provider = provider
        self._name = f"The graph {name}"
        self._inputs, self._outputs = (
            [Binding(one.name, _NAMES[one.type], tuple(one.shape)) for one in side]
            for side in (self._session.get_inputs(), self._session.get_outputs())
        )

    def bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> BoundTensors:
        """Contiguous tensors by the graph's names, of its outputs perhaps some alone; an input and an output
        may share one memory. Raises EngineError for what is not the graph's.
        """
        require_bindings(self._name, self._inputs, self._outputs, inputs, outputs)
        return BoundTensors(self._session, inputs, outputs)

    def describe(self) -> str:
        """Version, what computes, and on the CPU how many threads."""
        version = f"ONNX Runtime {onnxruntime.__version__}"
        if self._provider == "cpu":
            return f"{version} on the CPU, threads: {self._threads}"
        return f"{version} with {PROVIDERS[self._provider][0]}"


class BoundTensors:
    """Tensors tied to a graph once, for many runs; what lies in them when it runs is what is read."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._options = onnxruntime.RunOptions()
        self._tensors = dict(inputs)  # ONNX Runtime knows their addresses alone, so somebody has to keep them
        self._outputs = dict(outputs)
        self._on_gpu = any(tensor.is_cuda for tensor in inputs.values())
        for name, tensor in inputs.items():
            self.put(name, tensor)
        for name, tensor in outputs.items():
            self._binding.bind_output(name, *_where(tensor))

    def put(self, name: str, tensor: Tensor) -> None:
        """Another tensor for one input, of another shape perhaps."""
        assert tensor.is_contiguous(), "ONNX Runtime reads contiguous memory alone"
        self._tensors[name] = tensor
        self._binding.bind_input(name, *_where(tensor))

    def run(self) -> None:
        """Fill the outputs; on a GPU, where it computes in a stream of its own, all work ends with it. Ends
        behind the operator that is being computed where nobody wants it any more: CancelledError.
        """
        if self._on_gpu:
            torch.cuda.current_stream().synchronize()
        self._options.terminate = False
        with interruptible(self._stop):
            self._session.run_with_iobinding(self._binding, self._options)

    def _stop(self) -> None:
        self._options.terminate = True


def _where(tensor: Tensor) -> tuple[str, int, Any, tuple[int, ...], int]:
    """Device, its number, type, shape and address, as ONNX Runtime wants to know them."""
    device = tensor.device
    return device.type, device.index or 0, _TYPES[tensor.dtype], tuple(tensor.shape), tensor.data_ptr()


@dataclass(frozen=True, eq=False)
class _Places:
    """The inputs that say where the rows of one step lie in the cache, as views that are quick to fill."""

    positions: NDArray[np.int64]  # [T]
    last: NDArray[np.int32]  # [1]
    total: NDArray[np.int32]  # []

    def fill(self, first: int, rows: int, depths: NDArray[np.int64] | None = None) -> None:
        """Rows one after another, or in a tree at `depths` [T], behind a prefix of `first` rows."""
        self.positions[:] = _consecutive(first, rows) if depths is None else depths + first
        self.total[()] = first + rows
        self.last[0] = first + rows - 1


class CachePass:
    """A graph's tensors for passes over one number of rows, bound together with one cache's memory.

    Names as in `decoder_graph`: those of places, bias and cache are added to the inputs and outputs given.
    A graph of several steps appends one row to the cache in each of them.
    """

    def __init__(
        self,
        engine: OnnxEngine,
        cache: KVCache,
        rows: int,
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        *,
        masked: bool,
        steps: int = 1,
    ) -> None:
        assert cache.k.dtype == torch.float32, "ONNX Runtime's attention reads a float32 cache"
        self.inputs, self.outputs = dict(inputs), dict(outputs)
        self._rows = rows
        self._places = [self._add_places(suffix) for suffix in step_suffixes(steps)]
        self._bias = torch.zeros(rows * cache.capacity) if masked else None  # a pass takes the first T * S
        if self._bias is not None:
            self.inputs["bias"] = self._bias.view(1, 1, rows, cache.capacity)
        for name, memory in (("k", cache.k), ("v", cache.v)):
            for layer, rows_of_layer in enumerate(memory):
                self.inputs[f"past_{name}.{layer}"] = rows_of_layer
                for suffix in step_suffixes(steps):
                    self.outputs[f"present_{name}.{layer}{suffix}"] = rows_of_layer
        self._bound = engine.bind(self.inputs, self.outputs)

    def _add_places(self, suffix: str) -> _Places:
        tensors = {
            "positions": torch.empty(1, self._rows, dtype=torch.int64),
            "last": torch.empty(1, dtype=torch.int32),
            "total": torch.empty((), dtype=torch.int32),
        }
        self.inputs |= {f"{name}{suffix}": tensor for name, tensor in tensors.items()}
        return _Places(tensors["positions"][0].numpy(), tensors["last"].numpy(), tensors["total"].numpy())

    def run(self, prefix: int, depths: Tensor | None = None, visible: Tensor | None = None) -> None:
        """Compute the rows behind `prefix` cached ones; depths [T] and visible [T, W] as in `Rows`."""
        for step, places in enumerate(self._places):
            places.fill(prefix + step, self._rows, None if depths is None else depths.numpy())
        if self._bias is not None:
            length = prefix + self._rows
            bias = self._bias[: self._rows * length].view(1, 1, self._rows, length).zero_()
            if visible is not None:
                bias[0, 0, :, length - visible.shape[1] :].masked_fill_(~visible, float("-inf"))
            self._bound.put("bias", bias)
        self._bound.run()


class BoundPasses(Generic[Shape, Pass]):
    """One pass for each shape that was asked for, made when it is first needed and made anew for another
    cache, whose memory it is bound to.
    """

    def __init__(self, bind: Callable[[Shape, KVCache], Pass]) -> None:
        self._bind = bind
        self._cache: KVCache | None = None
        self._passes: dict[Shape, Pass] = {}

    def get(self, shape: Shape, cache: KVCache) -> Pass:
        """The pass of a shape on this cache."""
        if cache is not self._cache:
            self._cache, self._passes = cache, {}
        if shape not in self._passes:
            self._passes[shape] = self._bind(shape, cache)
        return self._passes[shape]


def step_suffixes(steps: int) -> list[str]:
    """What follows the names of each step's tensors in a graph of several steps."""
    return [f".{step}" if step else "" for step in range(steps)]


@lru_cache(maxsize=1024)
def _consecutive(first: int, rows: int) -> NDArray[np.int64]:
    return np.arange(first, first + rows)
