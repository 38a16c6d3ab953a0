"""ONNX Runtime on the CPU: torch tensors as a graph's inputs and outputs, read and written where they lie."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

_TYPES = {torch.float32: np.float32, torch.int64: np.int64, torch.int32: np.int32}


class OnnxEngine:
    """A loaded graph; `threads` compute one operator together."""

    def __init__(self, model: onnx.ModelProto, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Its threads wait busily inside a pass and sleep after it, when torch's own want the cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._threads = threads

    def bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> BoundTensors:
        """Contiguous CPU tensors by the graph's names; an input and an output may share one memory."""
        return BoundTensors(self._session, inputs, outputs)

    def describe(self) -> str:
        """Version and threads."""
        return f"ONNX Runtime {onnxruntime.__version__} on the CPU, threads: {self._threads}"


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
        self._tensors = dict(inputs)  # ONNX Runtime knows their addresses alone, so somebody has to keep them
        self._outputs = dict(outputs)
        for name, tensor in inputs.items():
            self.put(name, tensor)
        for name, tensor in outputs.items():
            self._binding.bind_output(name, "cpu", 0, _TYPES[tensor.dtype], tensor.shape, tensor.data_ptr())

    def put(self, name: str, tensor: Tensor) -> None:
        """Another tensor for one input, of another shape perhaps."""
        assert tensor.is_contiguous(), "ONNX Runtime reads contiguous memory alone"
        self._tensors[name] = tensor
        self._binding.bind_input(name, "cpu", 0, _TYPES[tensor.dtype], tensor.shape, tensor.data_ptr())

    def run(self) -> None:
        """Fill the outputs."""
        self._session.run_with_iobinding(self._binding)
