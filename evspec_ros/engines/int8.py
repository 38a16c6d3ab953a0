"""Graphs whose products are computed in int8, as strongly typed networks have it: by explicit pairs of
QuantizeLinear and DequantizeLinear. Weights are scaled by output channel; what goes into a product by the
largest magnitude that it had for recorded inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from evspec_ros.engines.protocol import Bound, Engine
from evspec_ros.errors import EngineError

Sample = Mapping[str, Tensor]  # a network's inputs, as it was given them
_PRODUCTS = ["MatMul", "Conv"]


class RecordingEngine:
    """An engine that keeps copies of what it is given, on the CPU, at most `most` times."""

    def __init__(self, engine: Engine, samples: list[Sample], most: int) -> None:
        self._engine, self._samples, self._most = engine, samples, most

    def bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Bound:
        """See Engine."""
        return _KeptRun(self._engine.bind(inputs, outputs), inputs, self._samples, self._most)

    def describe(self) -> str:
        """See Engine."""
        return self._engine.describe()


class _KeptRun:
    def __init__(self, bound: Bound, inputs: Mapping[str, Tensor], samples: list[Sample], most: int) -> None:
        self._bound, self._inputs, self._samples, self._most = bound, inputs, samples, most

    def run(self) -> None:
        """See Bound."""
        if len(self._samples) < self._most:
            self._samples.append({name: tensor.cpu().clone() for name, tensor in self._inputs.items()})
        self._bound.run()


def quantise(graph: Path, samples: Iterable[Sample]) -> None:
    """Put int8 in the place of a float32 or float16 graph's products of constants; samples: of its inputs.

    Raises EngineError without a sample and for a graph that ONNX Runtime cannot quantise.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class SampleReader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter([{name: one.numpy() for name, one in sample.items()} for sample in samples])

        def get_next(self) -> Mapping[str, object] | None:
            return next(self._left, None)

    logging.getLogger().addFilter(_no_advice)
    try:
        quantize_static(
            graph,
            graph,
            SampleReader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_PRODUCTS,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=graph.with_name(f"{graph.name}.data").exists(),
            # TensorRT knows symmetric scales alone, and biases in the graph's own precision.
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
                           "MatMulConstBOnly": True},
        )  # fmt: skip
    except ValueError as error:
        raise EngineError(f"{graph} cannot be quantised to int8 ({error}); export it without.") from error
    finally:
        logging.getLogger().removeFilter(_no_advice)


def _no_advice(record: logging.LogRecord) -> bool:
    """Not that the graph should be pre-processed, which fuses into operators that TensorRT does not know."""
    return "pre-processing" not in record.getMessage()
