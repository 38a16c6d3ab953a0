"""Networks as ONNX files of standard operators, as every engine reads them.

Written by the exporter that traces and needs no further packages. It knows neither RMS norms nor, in half
precision, attention: how these are written out of plain operators stands here, once, for all networks.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import torch
from onnx import TensorProto, numpy_helper
from rich.console import Console
from rich.table import Table
from torch import Tensor

from evspec_ros.engines.networks import EXPORT_DTYPES, Network
from evspec_ros.engines.onnx_runtime import OnnxEngine
from evspec_ros.errors import EngineError

OPSET = 20  # TensorRT 10.3's parser and ONNX Runtime 1.22 know it
_LARGEST_FILE = 2_000_000_000  # bytes; protobuf holds 2 GiB, more goes into a file beside
# Of the largest magnitude of an output; of int8 only so much that another model is found out.
_TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "int8": 5e-1}
_TYPES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
_OF_SCALARS: Mapping[str, int] = dict(
    zip(("Float", "Half", "BFloat16"), _TYPES, strict=True)
)  # the exporter's


@dataclass(frozen=True)
class Exported:
    """A checked file: precision, operators, bytes with what lies beside it, and how far what it computes is
    from what torch does, as a share of the largest magnitude of an output.
    """

    network: str
    path: Path
    precision: str
    nodes: int
    size: int
    difference: float

    def as_dict(self) -> dict[str, object]:
        """As JSON has it."""
        return {**asdict(self), "path": str(self.path)}


def in_precision(network: Network, precision: str) -> Network:
    """The network with its weights and example inputs in one of EXPORT_DTYPES; itself where they are."""
    dtype = EXPORT_DTYPES[precision]
    weights = (parameter.dtype for parameter in network.module.parameters())
    if all(weight == dtype for weight in weights):
        return network
    inputs = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in network.inputs.items()
    }
    return replace(network, module=copy.deepcopy(network.module).to(dtype), inputs=inputs)


def export(network: Network, path: Path, precision: str = "float32") -> None:
    """Write a network as an ONNX file; weights of more than 2 GB go into a file beside it, `path`.data.

    A file of that name is replaced when the new one is complete. Raises EngineError for a directory that
    cannot be written and for weights that are packed in another way.
    """
    data = path.with_name(f"{path.name}.data")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".export") as directory:
            model = _traced(in_precision(network, precision), Path(directory))
            large = sum(len(weight.raw_data) for weight in model.graph.initializer) > _LARGEST_FILE
            unfinished = Path(directory) / path.name
            onnx.save(model, unfinished, save_as_external_data=large, location=data.name)
            if large:
                unfinished.with_name(data.name).replace(data)
            else:
                data.unlink(missing_ok=True)  # of an earlier, larger one
            unfinished.replace(path)
    except OSError as error:
        raise EngineError(
            f"The ONNX file {path} cannot be written ({error.strerror or error}); give another directory or "
            "make room."
        ) from error


def graph(network: Network) -> onnx.ModelProto:
    """A network as an ONNX graph in memory, in the precision that it has; of at most 2 GB."""
    with TemporaryDirectory() as directory:
        return _traced(network, Path(directory))


@torch.inference_mode()
def check(path: Path, network: Network, inputs: Mapping[str, Tensor] | None = None) -> Exported:
    """Compare a file with the network that it was made of: by onnx's checker, by names, shapes and types, and
    by numbers (ONNX Runtime's; a bfloat16 graph is computed in float32, as the CPU has no such kernels).
    inputs: of an int8 graph such as it was calibrated for; by default the network's examples.

    Raises EngineError for a file that is missing or broken and for one of another model.
    """
    model = read_graph(path)
    precision = next((kind for kind in map(_precision, model.graph.input) if kind), "float32")
    same = in_precision(network, precision)
    inputs = inputs or same.inputs
    size = path.stat().st_size + sum(file.stat().st_size for file in path.parent.glob(f"{path.name}.data"))
    runnable: onnx.ModelProto | Path = path
    if precision == "bfloat16":
        runnable, same = _in_float32(model), in_precision(network, "float32")
        inputs = same.inputs
    expected = same.run(inputs)
    found = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in expected.items()}
    OnnxEngine(runnable, torch.get_num_threads()).bind(inputs, found).run()
    difference = max(
        float((found[name] - tensor).abs().max() / tensor.abs().max().clamp(min=1e-6))
        for name, tensor in expected.items()
        if tensor.is_floating_point()
    )
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        precision = "int8"
    if not difference <= _TOLERANCES[precision]:
        raise EngineError(
            f"{path} does not compute what the model at hand does (they differ by {difference:.2g} of the "
            f"largest value, {_TOLERANCES[precision]} is allowed): it was made of another model; export it "
            "again."
        )
    return Exported(network.name, path, precision, len(model.graph.node), size, difference)


def read_graph(path: Path) -> onnx.ModelProto:
    """A file's graph with its weights, after onnx's checker; EngineError where there is none."""
    try:
        onnx.checker.check_model(path, full_check=True)
        return onnx.load(path)
    except (OSError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        why = str(error).strip().splitlines()
        raise EngineError(
            f"{path} is no ONNX file that can be read ({why[0] if why else type(error).__name__}); export it "
            "again."
        ) from error


def print_exported(rows: Iterable[Exported]) -> None:
    """A table on stdout."""
    table = Table(title="ONNX files, as checked against torch")
    for column in ("network", "precision", "operators", "MB", "difference", "file"):
        table.add_column(column, justify="left" if column in {"network", "file"} else "right")
    for row in rows:
        size, difference = f"{row.size / 1e6:.1f}", f"{row.difference:.1e}"
        table.add_row(row.network, row.precision, str(row.nodes), size, difference, str(row.path))
    Console().print(table)


def _traced(network: Network, directory: Path) -> onnx.ModelProto:
    """What the exporter makes of it; weights of more than 2 GB pass through files in the directory."""
    file = directory / "traced.onnx"
    with warnings.catch_warnings(), _written_out(), torch.inference_mode():
        # The exporter that needs no further packages calls itself deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        # What it traces depends on shapes alone, and all of them but the dynamic ones are fixed.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.filterwarnings(
            "ignore", "Constant folding", UserWarning
        )  # is not done throughout: no matter
        torch.onnx.export(
            network.module,
            tuple(network.inputs.values()),
            str(file),
            dynamo=False,
            opset_version=OPSET,
            input_names=tuple(network.inputs),
            output_names=network.outputs,
            dynamic_axes=network.dynamic,
        )
    return onnx.load(file)


@contextmanager
def _written_out() -> Iterator[None]:
    """While it lasts, the exporter writes these operators as `_SYMBOLICS` say."""
    for name, symbolic in _SYMBOLICS.items():
        torch.onnx.register_custom_op_symbolic(name, symbolic, OPSET)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in _SYMBOLICS:
            torch.onnx.unregister_custom_op_symbolic(name, OPSET)  # type: ignore[attr-defined]


def _rms_norm(g: Any, x: Any, _: Any, weight: Any, epsilon: Any) -> Any:
    """x / sqrt(mean(x^2) + epsilon) * weight, the root in float32, as engines recognise it."""
    half = x.type().scalarType() != "Float"
    exact = g.op("Cast", x, to_i=TensorProto.FLOAT) if half else x
    square = g.op("Pow", exact, g.op("Constant", value_t=torch.tensor(2.0)))
    mean = g.op("ReduceMean", square, g.op("Constant", value_t=torch.tensor([-1])), keepdims_i=1)
    epsilon = g.op("Constant", value_t=torch.tensor(epsilon.node().t("value").item()))
    normed = g.op("Div", exact, g.op("Sqrt", g.op("Add", mean, epsilon)))
    if half:
        normed = g.op("Cast", normed, to_i=_onnx_type(x))
    return g.op("Mul", normed, weight)


def _attention(
    g: Any, q: Any, k: Any, v: Any, mask: Any, dropout: Any, causal: Any, scale: Any, grouped: Any
) -> Any:
    """softmax(q * scale @ k^T + mask) @ v, the scale a constant of q's type."""
    del dropout, causal, grouped  # none of the networks has any
    kind = EXPORT_DTYPES[_TYPES[_onnx_type(q)]]
    constant = g.op("Constant", value_t=torch.tensor(scale.node().t("value").item(), dtype=kind))
    scores = g.op("MatMul", g.op("Mul", q, constant), g.op("Transpose", k, perm_i=[0, 1, 3, 2]))
    if not mask.node().mustBeNone():
        scores = g.op("Add", scores, mask)
    return g.op("MatMul", g.op("Softmax", scores, axis_i=-1), v)


def _onnx_type(value: Any) -> int:
    return _OF_SCALARS[value.type().scalarType()]


def _addcmul(g: Any, x: Any, one: Any, other: Any, _: Any) -> Any:
    """x + one * other, without the factor 1, which the exporter has in float32."""
    return g.op("Add", x, g.op("Mul", one, other))


def _convolution(g: Any, x: Any, weight: Any, bias: Any, stride: Any, *_: Any) -> Any:
    """A convolution of patches, which stand side by side; before opset 22 there is none in bfloat16."""
    wide = _onnx_type(x) == TensorProto.BFLOAT16
    terms = [x, weight] if bias.node().mustBeNone() else [x, weight, bias]
    if wide:
        terms = [g.op("Cast", term, to_i=TensorProto.FLOAT) for term in terms]
    strides = stride.node().t("value").tolist()
    patches = g.op("Conv", *terms, strides_i=strides)
    return g.op("Cast", patches, to_i=TensorProto.BFLOAT16) if wide else patches


_SYMBOLICS: Mapping[str, Callable[..., Any]] = {
    "aten::_convolution": _convolution,
    "aten::addcmul": _addcmul,
    "aten::rms_norm": _rms_norm,
    "aten::scaled_dot_product_attention": _attention,
}


def _precision(tensor: onnx.ValueInfoProto) -> str | None:
    return _TYPES.get(tensor.type.tensor_type.elem_type)


def _in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with float32 in the place of bfloat16."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    constants = [attribute for node in graph.node for attribute in node.attribute]
    for tensor in [*graph.initializer, *(constant.t for constant in constants if constant.HasField("t"))]:
        if tensor.data_type == TensorProto.BFLOAT16:
            exact = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(exact, tensor.name))
    for constant in constants:
        if constant.name == "to" and constant.i == TensorProto.BFLOAT16:
            constant.i = TensorProto.FLOAT
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return wide
