"""Writing eight neighbouring elements at once, which numba's own loops do one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

_LANES = 8


def add_eight(
    column: NDArray[np.int64], at: np.uintp, first: int, steps: NDArray[np.int64], step: int
) -> None:
    """column[at : at + 8] = first + steps[step : step + 8]; compiled, nothing looks whether they exist."""
    column[int(at) : int(at) + _LANES] = first + steps[int(step) : int(step) + _LANES]


@overload(add_eight, strict=False)
def _compiled_add_eight(
    column: Any,  # noqa: ARG001
    at: Any,  # noqa: ARG001
    first: Any,  # noqa: ARG001
    steps: Any,  # noqa: ARG001
    step: Any,  # noqa: ARG001
) -> Callable[..., None]:
    return lambda column, at, first, steps, step: _add_eight(column, at, first, steps, step)  # noqa: PLW0108 - numba needs Python here


@intrinsic
def _add_eight(
    typing: Any,  # noqa: ARG001
    column: Any,
    at: Any,
    first: Any,
    steps: Any,
    step: Any,
) -> tuple[Any, Callable[..., Any]]:
    """One vector's worth of LLVM's instructions."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        column, at, first, steps, step = arguments
        to = _eight(context, builder, signature.args[0], column, at)
        source = _eight(context, builder, signature.args[3], steps, step)
        total = builder.add(builder.load(source, align=1), _repeated(builder, first))
        builder.store(total, to, align=1)
        return context.get_dummy_value()

    return types.void(column, at, first, steps, step), write


def _eight(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    """The address of an array's eight elements from `at` on."""
    data = context.make_array(kind)(context, builder, array).data
    together = ir.VectorType(context.get_data_type(kind.dtype), _LANES)
    return builder.bitcast(builder.gep(data, [at]), together.as_pointer())


def _repeated(builder: Any, value: Any) -> Any:
    nothing = ir.Constant(ir.VectorType(value.type, _LANES), ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
    return builder.shuffle_vector(one, nothing, lanes)
