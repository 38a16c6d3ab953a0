"""What stands between a decoder's products, each of it one kernel on a GPU where Triton is.

Torch launches a kernel for each operator, and in a captured pass over few rows every launch costs about as
much as such a kernel takes. So where Triton is, `torch.compile` makes one of each function here, for any
number of rows; elsewhere (on a processor, on a Jetson) they are what is written here. A row's sums do not
depend on the rows beside it, and numbers are rounded where the plain functions round them.

Shapes: B batch, T new rows, C rows of a cache, H heads of d values, K key/value heads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Generic, ParamSpec, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

_Given = ParamSpec("_Given")
_Output = TypeVar("_Output")

INDUCTOR = "inductor"
_OPTIONS: Mapping[str, Any] = {
    "compile_threads": 1,  # no processes that compile beside this one: a robot has no memory for them
    "emulate_precision_casts": True,
    # What is computed in between stays in the kernel, however much it reads.
    "force_pointwise_cat": True,
    "realize_reads_threshold": 100,
    "realize_acc_reads_threshold": 100,
    "realize_opcount_threshold": 1000,
}


@dataclass(frozen=True)
class Kernels:
    """How passes are computed: compiler, one of torch.compile's backends, or None for the plain functions;
    split: whether keys are split wherever they can be.
    """

    compiler: str | None
    split: bool


_asked: ContextVar[Kernels | None] = ContextVar("kernels", default=None)


def asked_for() -> Kernels | None:
    """What `using` says, if anything."""
    return _asked.get()


@contextmanager
def using(kernels: Kernels) -> Iterator[None]:
    """While it lasts, this thread's passes are computed so, on any device; for benches and tests."""
    token = _asked.set(kernels)
    try:
        yield
    finally:
        _asked.reset(token)


class Fused(Generic[_Given, _Output]):
    """A function of tensors that is one kernel where one can be made; counts: of which arguments which axes
    are numbers of rows or of parts, which change from pass to pass.
    """

    def __init__(self, plain: Callable[_Given, _Output], counts: Mapping[int, Sequence[int]]) -> None:
        self.plain = plain
        self._counts = counts
        self._compiled: dict[str, Callable[..., _Output]] = {}
        self._failed = False

    def __call__(self, *args: _Given.args, **kwargs: _Given.kwargs) -> _Output:
        """What it gives."""
        compiler = compiler_for(cast("Tensor", args[0]))
        if compiler is None or self._failed:
            return self.plain(*args, **kwargs)
        try:
            return self.compiled(compiler)(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:  # noqa: SLF001  # before anything is computed
            self._failed = True
            _tell(error)
            return self.plain(*args, **kwargs)

    def compiled(self, compiler: str) -> Callable[_Given, _Output]:
        """By one of torch.compile's backends: once for one row and once for any other number of rows."""
        if compiler not in self._compiled:
            options = {**_OPTIONS} if compiler == INDUCTOR else None
            self._compiled[compiler] = torch.compile(self.plain, backend=compiler, options=options)
        function = self._compiled[compiler]

        def marked(*args: _Given.args, **kwargs: _Given.kwargs) -> _Output:
            for place, axes in self._counts.items():
                torch._dynamo.maybe_mark_dynamic(args[place], axes)  # noqa: SLF001  # so documented
            return function(*args, **kwargs)

        return marked


def fused(
    counts: Mapping[int, Sequence[int]],
) -> Callable[[Callable[_Given, _Output]], Fused[_Given, _Output]]:
    """What makes a function a `Fused` one."""
    return lambda plain: Fused(plain, counts)


def compiler_for(x: Tensor) -> str | None:
    """What compiles functions of a tensor; None where they are taken as they are written."""
    asked = asked_for()
    if asked is not None:
        return asked.compiler
    if not x.is_cuda or torch.is_grad_enabled() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # torch has no types for it
        return None
    return INDUCTOR if _compiles(x.device) else None


@fused({0: (1,), 1: (1,)})
def add_norm(changed: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """residual + changed [B, T, D], and that over its root mean square, times weight [D]."""
    total = residual + changed
    return total, F.rms_norm(total, weight.shape, weight, eps)


@fused({0: (1,)})
def gated(x: Tensor) -> Tensor:
    """silu(gate) * up of gates and what they let through, side by side [B, T, 2 * n] -> [B, T, n]."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [B, H, T, d] by the angles of `llama.Rotary`."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def turned(heads: Tensor, sizes: tuple[int, int], cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys of [B, H + 2 K, T, d], turned, and values; sizes: H and K."""
    queries, kept = sizes
    both, v = torch.split(heads, [queries + kept, kept], 1)
    q, k = torch.split(rotate(both, cos, sin), [queries, kept], 1)  # [B, H, T, d], [B, K, T, d]
    return q, k, v


@fused({0: (2,), 1: (0,), 2: (0,), 3: (3,), 4: (0,)})
def rotate_into(heads: Tensor, cos: Tensor, sin: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
    """Of queries, keys and values [B, H + 2 K, T, d], turned, the queries [B, H, T, d]; keys and values are
    put into `memory` [2, B, K, C, d] at `rows` int64 [T].
    """
    kept = memory.shape[2]
    q, k, v = torch.split(heads, [heads.shape[1] - 2 * kept, kept, kept], 1)
    memory.index_copy_(3, rows, torch.stack((rotate(k, cos, sin), v)))
    return rotate(q, cos, sin)


@fused({})
def _twice(x: Tensor) -> Tensor:
    return x + x


@cache
def _compiles(device: torch.device) -> bool:
    """Whether kernels can be made for a GPU: where Triton is, one is made, while nobody waits for a text."""
    if find_spec("triton") is None:
        return False
    try:
        _twice.compiled(INDUCTOR)(torch.ones(1, device=device))
    except Exception as error:  # noqa: BLE001  # of Triton, of a C compiler that is missing, of an old driver
        _tell(error)
        return False
    return True


def _tell(error: Exception) -> None:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    logger.warning("No kernel is compiled, plain torch runs instead: %s", reason)
