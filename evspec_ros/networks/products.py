"""Products of one input with several weights as one product, where the weights lie one behind another.

A projection keeps its own name and its own parameter, as the checkpoints have them; where it lies in memory
is all that changes. Who moves, copies or replaces one of the weights takes it away from the others, and they
are multiplied one by one again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def lay_together(
    linears: Sequence[nn.Linear], dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> None:
    """Let the weights of projections of one input, without biases, lie one behind another in one new tensor,
    by default of their own kind; those on the meta device are yet to be filled.
    """
    weights = [linear.weight for linear in linears]
    rows = [len(weight) for weight in weights]
    whole = torch.empty(
        sum(rows), weights[0].shape[1], dtype=dtype or weights[0].dtype, device=device or weights[0].device
    )
    for linear, part in zip(linears, torch.split(whole, rows), strict=True):
        if not linear.weight.is_meta:
            part.copy_(linear.weight.detach())
        linear.weight = nn.Parameter(part, requires_grad=linear.weight.requires_grad)


def joint(x: Tensor, linears: Sequence[nn.Linear]) -> Tensor:
    """The products of x [..., in] with each of them, one beside the other [..., sum of out]."""
    weight = _one_weight([linear.weight for linear in linears])
    if weight is not None:
        return F.linear(x, weight)
    return torch.cat([linear(x) for linear in linears], -1)


def _one_weight(weights: Sequence[Tensor]) -> Tensor | None:
    """All of them as one; None where they do not lie one behind another, and where somebody trains them."""
    first = weights[0]
    if any(type(weight) is not nn.Parameter for weight in weights):  # packed in fewer bits
        return None
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # torch has no types for it
        return torch.cat(list(weights))  # exporters fold it
    if torch.is_grad_enabled():
        return None
    storage, place, rows = first.untyped_storage().data_ptr(), first.storage_offset(), 0
    for weight in weights:
        behind = weight.storage_offset() == place and weight.untyped_storage().data_ptr() == storage
        if not behind or not weight.is_contiguous():
            return None
        place += weight.numel()
        rows += len(weight)
    return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))
