"""How fast the drafter's networks run on the engines at hand, beside torch's own modules, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from evspec_ros.engines.export import graph
from evspec_ros.engines.networks import Network
from evspec_ros.engines.onnx_runtime import OnnxEngine, runtime_obstacle
from evspec_ros.engines.plans import PlanCache, tensorrt_engine
from evspec_ros.engines.protocol import Engine
from evspec_ros.engines.tensorrt_library import obstacle as tensorrt_obstacle
from evspec_ros.engines.torch_engine import TorchEngine

_WARM_UPS = 5


@dataclass(frozen=True)
class EngineSpeed:
    """One network in one shape on one backend.

    ms, torch_ms: the median of a run, and of the modules themselves, eager, measured in turn with it; ratio:
    the second over the first. build_s: exporting, compiling and loading; plan_mb: of graph or plan, None for
    torch.
    """

    network: str
    shape: str
    backend: str
    precision: str
    ms: float
    torch_ms: float
    ratio: float
    build_s: float
    plan_mb: float | None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Contender:
    backend: str
    build_s: float
    plan_mb: float | None
    run: Callable[[], None]


def bench_visibly(networks: Sequence[Network], repetitions: int) -> list[EngineSpeed]:
    """Every network in its usual shapes, with progress on stderr."""
    shapes = [(network, sizes) for network in networks for sizes in _usual(network)]
    console = Console(stderr=True)
    return [
        row
        for network, sizes in track(shapes, "Measuring ...", console=console)
        for row in _bench(network, sizes, repetitions)
    ]


def print_speeds(rows: Iterable[EngineSpeed]) -> None:
    """A table on stdout."""
    table = Table(title="The drafter's networks, beside torch's own modules")
    columns = ("network", "shape", "backend", "precision", "ms", "torch ms", "ratio", "build s", "MB")
    for column in columns:
        named = column in columns[:4]
        table.add_column(column, justify="left" if named else "right", no_wrap=named)
    for row in rows:
        numbers = (f"{row.ms:.2f}", f"{row.torch_ms:.2f}", f"{row.ratio:.2f}", f"{row.build_s:.1f}")
        size = "" if row.plan_mb is None else f"{row.plan_mb:.1f}"
        table.add_row(row.network, row.shape, row.backend, row.precision, *numbers, size)
    Console().print(table)


def _bench(network: Network, sizes: Mapping[str, tuple[int, ...]], repetitions: int) -> list[EngineSpeed]:
    inputs = {name: _of_shape(one, sizes.get(name, tuple(one.shape))) for name, one in network.inputs.items()}
    outputs = {
        name: one.clone(memory_format=torch.contiguous_format) for name, one in network.run(inputs).items()
    }
    contenders = list(_contenders(network, inputs, outputs))
    weight = next(network.module.parameters())
    eager: tuple[str, Callable[[], object]] = ("", lambda: network.run(inputs))
    runs = [eager, *((one.backend, one.run) for one in contenders)]
    times: dict[str, list[float]] = {name: [] for name, _ in runs}
    for _ in range(_WARM_UPS + repetitions):
        for name, run in runs:
            started = time.perf_counter()
            run()
            if weight.is_cuda:
                torch.cuda.synchronize(weight.device)
            times[name].append((time.perf_counter() - started) * 1e3)
    ms = {name: median(found[_WARM_UPS:]) for name, found in times.items()}
    return [
        EngineSpeed(
            network=network.name,
            shape=_shown(inputs, network),
            backend=one.backend,
            precision=str(weight.dtype).removeprefix("torch."),
            ms=ms[one.backend],
            torch_ms=ms[""],
            ratio=ms[""] / ms[one.backend],
            build_s=one.build_s,
            plan_mb=one.plan_mb,
        )
        for one in contenders
    ]


def _contenders(
    network: Network, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> Iterable[_Contender]:
    """Those that run here: on the CPU ONNX Runtime; on a GPU captured graphs and, where there are such for
    it, TensorRT and ONNX Runtime.
    """
    weight = next(network.module.parameters())
    if weight.is_cuda:
        yield _contender("cuda_graphs", inputs, outputs, lambda: (TorchEngine(network), None))
        if tensorrt_obstacle() is None:
            yield _contender("tensorrt", inputs, outputs, lambda: _compiled(network))
    provider = "cuda" if weight.is_cuda else "cpu"
    if runtime_obstacle(provider) is None:

        def load() -> tuple[Engine, float]:
            model = graph(network)
            engine = OnnxEngine(model, torch.get_num_threads(), provider=provider)
            return engine, model.ByteSize() / 1e6

        yield _contender("onnxruntime", inputs, outputs, load)


def _compiled(network: Network) -> tuple[Engine, float]:
    """A plan that is compiled now, whatever lies in the cache, and its size, MB."""
    with TemporaryDirectory() as folder:
        cache = PlanCache(Path(folder))
        engine = tensorrt_engine(network, cache)
        return engine, sum(entry.size for entry in cache.entries()) / 1e6


def _contender(
    backend: str,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    load: Callable[[], tuple[Engine, float | None]],
) -> _Contender:
    started = time.perf_counter()
    engine, size = load()
    bound = engine.bind(inputs, outputs)
    return _Contender(backend, time.perf_counter() - started, size, bound.run)


def _usual(network: Network) -> list[Mapping[str, tuple[int, ...]]]:
    """The shapes that its profiles call usual, those of its examples where it has none."""
    return [{name: usual for name, (_, usual, _) in profile.items()} for profile in network.profiles] or [{}]


def _of_shape(example: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Other tensors of that kind: numbers as they come, places one after another, masks of nothing."""
    if tuple(example.shape) == shape:
        return example
    if not example.is_floating_point():
        return torch.arange(shape[0], device=example.device)
    if bool(example.isinf().any()):
        return example.new_zeros(shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(example)


def _shown(inputs: Mapping[str, Tensor], network: Network) -> str:
    """The sizes that may change, else the first input's shape."""
    sizes = {
        axis: inputs[name].shape[place]
        for name, axes in network.dynamic.items()
        if name in inputs
        for place, axis in axes.items()
    }
    sizes.pop("S", None)
    if not sizes:
        return "x".join(map(str, next(iter(inputs.values())).shape))
    return " ".join(f"{axis}={size}" for axis, size in sizes.items())
