"""TensorRT: ONNX graphs compiled to plans, and plans run on torch's CUDA tensors.

One module for TensorRT for RTX 1.7 and for TensorRT 10.3 to 11. Networks are always strongly typed: a graph
computes in the precision that it was exported in, the only way that every one of these versions knows.

Plans are built for real by the tests. Running them, capturing them and refitting them was never tried: that
needs a GPU that the library supports, and none was at hand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from evspec_ros.engines.capture import Captured, graph_pool
from evspec_ros.engines.networks import Profile, Shape
from evspec_ros.engines.protocol import Binding, require_bindings
from evspec_ros.engines.tensorrt_library import RTX, Capability, gpu, require_library, require_running, shown
from evspec_ros.errors import EngineError
from evspec_ros.networks.memory import GIB
from evspec_ros.networks.weights import free_bytes

if TYPE_CHECKING:
    import tensorrt as trt

    Plan: TypeAlias = bytes | memoryview
else:
    trt = require_library()

IS_RTX = trt.__name__ == RTX
WORKSPACE = GIB  # bytes of the GPU's memory that a layer may take while it runs, beside its tensors
_rtx: Any = trt  # for what TensorRT for RTX alone has

BASE_BYTES, BYTES_A_BYTE = 500_000_000, 3.0  # memory of a build: at all, and by the bytes of its graph
_DTYPES = {
    trt.DataType.FLOAT: torch.float32,
    trt.DataType.HALF: torch.float16,
    trt.DataType.BF16: torch.bfloat16,
    trt.DataType.INT32: torch.int32,
    trt.DataType.INT64: torch.int64,
    trt.DataType.BOOL: torch.bool,
}


@dataclass(frozen=True)
class Recipe:
    """What a plan is compiled from and for.

    graph: an ONNX file, with external data beside it where it names some; profiles: of its inputs of open
    shapes, one after another; capabilities: of the GPUs that shall run it, none for the one at hand;
    refittable: whether its weights can be exchanged later; workspace: see WORKSPACE.
    """

    graph: Path
    profiles: Sequence[Profile] = ()
    capabilities: tuple[Capability, ...] = ()
    refittable: bool = False
    workspace: int = WORKSPACE


class _Log(trt.ILogger):
    """Keeps the library's errors for our own sentences; what else it says goes to Python's log."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by the library, from any of its threads."""
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self._errors.append(" ".join(msg.split()))
        else:
            logging.getLogger(__name__).debug(msg)

    def take(self) -> str:
        """The errors since the last call, the first of which tells most."""
        errors, self._errors = self._errors, []
        return "; ".join(errors[:2]) or "it does not say why"


_log = _Log()  # the library takes one in a process, the first


class _Monitor(trt.IProgressMonitor):
    """How much of a build is done, from 0 to 1, out of phases that lie in one another.

    Nothing may be raised through the library: what the report raises (an interruption, too) is kept, and the
    build is told to stop.
    """

    def __init__(self, report: Callable[[float], None]) -> None:
        trt.IProgressMonitor.__init__(self)
        self.raised: BaseException | None = None
        self._report = report
        self._phases: dict[str, _Phase] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: Any) -> None:
        """Called by the library."""
        self._phases[phase_name] = _Phase(parent_phase, max(1, int(num_steps)))

    def step_complete(self, phase_name: str, step: Any) -> bool:
        """Called by the library; False stops the build."""
        phase = self._phases.get(phase_name)
        if phase is not None:
            phase.done = int(step) + 1
        return self._tell()

    def phase_finish(self, phase_name: str) -> None:
        """Called by the library."""
        self._phases.pop(phase_name, None)

    def _tell(self) -> bool:
        try:
            if self.raised is None:
                tops = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
                self._report(min(1.0, max(map(self._share, tops), default=0.0)))
        except BaseException as error:  # noqa: BLE001 (see the class)
            self.raised = error
        return self.raised is None

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        inner = [self._share(child) for child, found in self._phases.items() if found.parent == name]
        return min(phase.steps, phase.done + max(inner, default=0.0)) / phase.steps


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


def library() -> str:
    """Which TensorRT this is, as plans depend on it."""
    return f"{trt.__name__} {trt.__version__}"


def graph_files(graph: Path) -> list[Path]:
    """An ONNX file and the files of its external data, in a fixed order.

    Raises EngineError where one is missing or the file is no ONNX graph.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(graph, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise EngineError(f"{graph} is no ONNX graph ({error}); export it again.") from error
    if not model.graph.output:
        raise EngineError(f"{graph} is no ONNX graph (it gives nothing); export it again.")
    places = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [graph, *(graph.parent / place for place in sorted(places))]
    if missing := [file for file in files if not file.is_file()]:
        raise EngineError(f"{graph} needs {missing[0]}, which is not there; export it again.")
    return files


def build(recipe: Recipe, report: Callable[[float], None] = lambda _: None) -> Plan:
    """Compile a graph; report: told from time to time which share is done.

    Raises EngineError where there is too little memory, where TensorRT cannot compile the graph, and for
    capabilities that it does not compile for.
    """
    capabilities = required_capabilities(recipe)
    _require_memory(recipe.graph)
    builder = trt.Builder(_log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(recipe.graph, network)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace)
    if recipe.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if IS_RTX:
        _compile_for(capabilities, config)
    for profile in recipe.profiles:
        _add_profile(profile, builder, config, recipe.graph)
    monitor = _Monitor(report)
    config.progress_monitor = monitor
    plan: Any = builder.build_serialized_network(network, config)
    if monitor.raised is not None:
        raise monitor.raised
    if plan is None:
        raise EngineError(f"TensorRT cannot compile {recipe.graph}: {_log.take()}.")
    return memoryview(plan)


def required_capabilities(recipe: Recipe) -> tuple[Capability, ...]:
    """Those that a plan is compiled for, in order; raises EngineError where the library cannot."""
    at_hand = gpu()
    asked = tuple(sorted(set(recipe.capabilities))) or (() if at_hand is None else (at_hand,))
    if not asked:
        raise EngineError(
            "There is no GPU here to compile for: name one by --compute-capability "
            f"({shown(*_rtx_capabilities())})."
            if IS_RTX
            else f"TensorRT {trt.__version__} compiles for the GPU at hand alone, and torch sees none; build "
            "on the machine that shall run it, or for a desktop GPU with tensorrt-rtx."
        )
    possible = _rtx_capabilities() if IS_RTX else ((at_hand,) if at_hand else ())
    if impossible := [capability for capability in asked if capability not in possible]:
        raise EngineError(
            f"{'TensorRT for RTX' if IS_RTX else 'TensorRT'} {trt.__version__} does not compile for compute "
            f"capability {shown(*impossible)} here, only for {shown(*possible) or 'a GPU at hand'}; name "
            "another one, or another backend."
        )
    if recipe.refittable and asked != (at_hand,):
        raise EngineError(
            f"An engine whose weights can be exchanged is compiled on the GPU that shall run it, not for "
            f"{shown(*asked)} elsewhere; build it there, or one that keeps its weights."
        )
    return asked


def _rtx_capabilities() -> tuple[Capability, ...]:
    values = (int(value) for value in _rtx.ComputeCapability.__members__.values())
    return tuple(sorted(divmod(value, 10) for value in values if value >= 10))


def _compile_for(capabilities: Sequence[Capability], config: Any) -> None:
    config.num_compute_capabilities = len(capabilities)
    for index, (major, minor) in enumerate(capabilities):
        config.set_compute_capability(_rtx.ComputeCapability(10 * major + minor), index)


def _require_memory(graph: Path) -> None:
    free = free_bytes("cpu")
    needed = build_bytes(graph)
    if free is not None and needed > free:
        raise EngineError(
            f"Compiling {graph} takes about {needed / GIB:.1f} GiB of memory and {free / GIB:.1f} GiB are "
            "free; end what takes the memory, or build on a larger machine."
        )


def build_bytes(graph: Path) -> int:
    """About how much memory a build takes, by the size of the graph; see docs/tensorrt.md."""
    return BASE_BYTES + int(BYTES_A_BYTE * sum(file.stat().st_size for file in graph_files(graph)))


def _parse(graph: Path, network: trt.INetworkDefinition) -> None:
    parser = trt.OnnxParser(network, _log)
    if parser.parse_from_file(str(graph)):
        return
    errors: list[trt.ParserError] = [parser.get_error(index) for index in range(parser.num_errors)]
    _log.take()
    told = [f"{error.node_operator() or 'the graph'} ({' '.join(error.desc().split())})" for error in errors]
    raise EngineError(
        f"TensorRT cannot read {graph}: {told[0] if told else 'it does not say why'}; export it again, of "
        "standard operators alone."
    )


def _add_profile(profile: Profile, builder: trt.Builder, config: trt.IBuilderConfig, graph: Path) -> None:
    shapes = builder.create_optimization_profile()
    for name, (least, usual, largest) in profile.items():
        shapes.set_shape(name, *(trt.Dims(list(shape)) for shape in (least, usual, largest)))
    if config.add_optimization_profile(shapes) < 0:
        raise EngineError(f"TensorRT does not accept the shapes {dict(profile)} of {graph}: {_log.take()}.")


def _shape(sizes: trt.Dims) -> Shape:
    return tuple(int(sizes[axis]) for axis in range(len(sizes)))


class TensorRtEngine:
    """A plan on the GPU at hand.

    Never run: see the module. name: of the network, for messages.
    """

    def __init__(self, plan: Plan, name: str) -> None:
        """Raises EngineError where TensorRT does not run here, and for a plan of another GPU or version."""
        require_running(name)
        self._name = name
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._runtime = trt.Runtime(_log)
        engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"The plan of {name} does not load on this GPU: {_log.take()}; build it again.")
        self._engine: trt.ICudaEngine = engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._inputs = [each for each in names if engine.get_tensor_mode(each) == trt.TensorIOMode.INPUT]
        self._outputs = [each for each in names if each not in self._inputs]
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def bindings(self, names: Sequence[str]) -> list[Binding]:
        """Names, types and shapes of inputs or outputs; a size that may change is named by its place."""
        return [
            Binding(
                name,
                _DTYPES[self._engine.get_tensor_dtype(name)],
                tuple(
                    f"{name}:{axis}" if size < 0 else int(size)
                    for axis, size in enumerate(_shape(self._engine.get_tensor_shape(name)))
                ),
            )
            for name in names
        ]

    def bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> BoundPlan:
        """See Engine: CUDA tensors. An output that is left out gets memory of its own.

        Raises EngineError, too, for shapes that the plan was not compiled for.
        """
        require_bindings(
            self._name, self.bindings(self._inputs), self.bindings(self._outputs), inputs, outputs
        )
        context = self._context()
        with torch.cuda.stream(self._stream):
            context.set_optimization_profile_async(self._profile(inputs), self._stream.cuda_stream)
        self._stream.synchronize()
        for name, tensor in inputs.items():
            context.set_input_shape(name, tuple(tensor.shape))
        tensors = {**inputs, **outputs}
        for binding in self.bindings(self._outputs):
            shape = _shape(context.get_tensor_shape(binding.name))
            if binding.name not in tensors:
                tensors[binding.name] = torch.empty(shape, dtype=binding.dtype, device=self._device)
            elif tuple(tensors[binding.name].shape) != shape:
                raise EngineError(
                    f"{self._name} gives {binding.name} as {list(shape)} for these inputs, and the "
                    f"tensor for it is {list(tensors[binding.name].shape)}."
                )
        return BoundPlan(context, tensors, self._stream, self._name)

    def _context(self) -> trt.IExecutionContext:
        """With TensorRT for RTX, kernels are made for a shape when it is met first, not beside the passes."""
        if not IS_RTX:
            return self._engine.create_execution_context()
        engine: Any = self._engine
        config = engine.create_runtime_config()
        strategies = _rtx.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        context: trt.IExecutionContext = engine.create_execution_context(config)
        return context

    def _profile(self, inputs: Mapping[str, Tensor]) -> int:
        """The first one that all shapes lie in."""
        for index in range(self._engine.num_optimization_profiles):
            if all(self._within(name, tuple(tensor.shape), index) for name, tensor in inputs.items()):
                return index
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
        raise EngineError(
            f"The plan of {self._name} was not compiled for the shapes {shapes}; build it again."
        )

    def _within(self, name: str, shape: Shape, profile: int) -> bool:
        least, _, largest = map(_shape, self._engine.get_tensor_profile_shape(name, profile))
        return all(low <= size <= high for low, size, high in zip(least, shape, largest, strict=True))

    def refit(self, graph: Path) -> None:
        """Take the weights of the same graph, exported again: those of a head that learned meanwhile.

        Raises EngineError for an engine that was not compiled for that, and for another graph.
        """
        if not self._engine.refittable:
            raise EngineError(f"The plan of {self._name} keeps its weights; build it as a refittable one.")
        refitter = trt.Refitter(self._engine, _log)
        read = trt.OnnxParserRefitter(refitter, _log).refit_from_file(str(graph))
        if not read or not refitter.refit_cuda_engine_async(self._stream.cuda_stream):
            raise EngineError(f"{self._name} does not take the weights in {graph}: {_log.take()}.")
        self._stream.synchronize()

    def describe(self) -> str:
        """Library, version and GPU."""
        return f"{library()} on {torch.cuda.get_device_name(self._device)}"


@dataclass(eq=False)
class BoundPlan:
    """A plan's execution context, tied to tensors; captured as a CUDA graph when it runs first, since the
    kernels of one pass are too short to be launched one by one.
    """

    context: trt.IExecutionContext
    tensors: Mapping[str, Tensor]  # kept here: the library knows their addresses alone
    stream: torch.cuda.Stream
    name: str
    _captured: Captured[None] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            if not self.context.set_tensor_address(name, tensor.data_ptr()):
                raise EngineError(f"{self.name} does not take the tensor {name}: {_log.take()}.")

    def run(self) -> None:
        """See Bound."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            if self._captured is None:
                self._captured = graph_pool(self.stream.device).capture(self._enqueue)
            self._captured.replay()
        current.wait_stream(self.stream)

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(torch.cuda.current_stream(self.stream.device).cuda_stream):
            raise EngineError(f"TensorRT did not run {self.name}: {_log.take()}.")
