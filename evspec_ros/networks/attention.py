"""Attention over keys and values, by torch's own kernels.

One of them gives a head's keys to one multiprocessor of a GPU. Where few rows meet many keys this leaves most
of a large one idle. There the keys are read in parts, which stand beside each other as the texts of a batch,
and what the parts give is joined by the sums of their exponentials.

Shapes: B batch, T new rows, S keys that are read, H heads of d values, K key/value heads, G = H / K, P parts.
"""

from __future__ import annotations

from functools import cache, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from evspec_ros.networks.kernels import asked_for, compiler_for, fused
from evspec_ros.sizes import CACHE_STEP, ROW_BUCKETS

_TILE = 64  # rows that a block of the kernel takes
_AT_A_TIME = 2  # blocks on a multiprocessor, in half precision
_MOST = 16  # parts; a part of the mask begins at a multiple of eight then, as the kernel wants it


def attention_mask(prefix: int, rows: int, tree: Tensor | None, like: Tensor) -> Tensor | None:
    """The additive mask [T, S] of `rows` new rows behind a visible `prefix`, in `like`'s dtype and device.

    `tree` is bool [T, W] over the last W >= T visible rows, True where a new row may see one of them (its
    ancestors and itself); None means causal. None is returned where none is
    needed: one row, or causal rows on an empty cache.
    """
    if tree is None and (prefix == 0 or rows == 1):
        return None
    visible = like.new_ones(rows, rows, dtype=torch.bool).tril_() if tree is None else tree
    mask = like.new_zeros(rows, prefix + rows)
    mask[:, prefix + rows - visible.shape[1] :].masked_fill_(~visible, hidden_score(like.dtype))
    return mask


def hidden_score(dtype: torch.dtype) -> float:
    """What is added to the score of a key that a row does not see: its share is nothing beside any that it
    sees. Not infinite: of a part in which a row sees nothing, torch's kernel would give the sum of one key.
    """
    return max(torch.finfo(dtype).min, -1e30)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    groups: int,
    scale: float,
    *,
    divisible: bool = False,
) -> Tensor:
    """q [B, H, T, d] over k and v [B, K, S, d], mask [T, S] added to the scores, None: causal; groups: G
    -> [B, T, H, d]. divisible: the mask is of `hidden_score` alone, so that keys may be read in parts.
    """
    if divisible and mask is not None and (parts := _parts(q, k)) > 1:
        return attend_in_parts(q, k, v, mask, groups, scale, parts)
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    causal = mask is None and q.shape[2] > 1
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    return mixed.transpose(1, 2)


def attend_in_parts(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, groups: int, scale: float, parts: int
) -> Tensor:
    """As `attend`, of one text, the keys in so many parts, which stand beside each other as the texts of a
    batch, without a copy: a part is a view, and so is its part of the mask. A group's rows follow each other.
    """
    kept, size = k.shape[1], k.shape[3]
    rows = q.reshape(1, kept, -1, size)  # [1, K, G * T, d]
    keys, values = (torch.unflatten(x[0], 1, (parts, -1)).transpose(0, 1) for x in (k, v))  # [P, K, S / P, d]
    added = mask.repeat(groups, 1) if groups > 1 else mask
    added = torch.unflatten(added, 1, (parts, -1)).transpose(0, 1)[:, None]  # [P, 1, G * T, S / P]
    mixed, sums = _attend_with_sums(
        rows.expand(parts, -1, -1, -1), keys, values, added.expand(-1, kept, -1, -1), scale
    )
    return _joined(*(torch.unflatten(x, 2, (groups, -1)) for x in (mixed, sums)))


def _attend_with_sums(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """What attention gives [P, K, T, d], and the logarithms of its sums of exponentials, float32 [P, K, T].

    The mask's strides are multiples of eight but for its last axis, as the GPU's kernel wants them.
    """
    if q.is_cuda:
        mixed, sums, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(  # noqa: SLF001
            q, k, v, mask, compute_log_sumexp=True, scale=scale
        )
    else:
        mixed, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
            q, k, v, attn_mask=mask, scale=scale
        )
    return mixed, sums[..., : q.shape[2]]  # the GPU's are padded


@fused({0: (3,), 1: (3,)})
def _joined(mixed: Tensor, sums: Tensor) -> Tensor:
    """What parts give [P, K, G, T, d] with the logarithms of their sums [P, K, G, T] -> [1, T, K * G, d].

    Part by part and in the shape of what comes out, so that one kernel does all of it.
    """
    mixed, sums = mixed.permute(0, 3, 1, 2, 4), sums.permute(0, 3, 1, 2)
    every = sums[..., None].expand_as(mixed).unbind()
    largest = reduce(torch.maximum, every)
    shares = [torch.exp(one - largest) for one in every]
    weighed = [share * part for share, part in zip(shares, mixed.unbind(), strict=True)]
    whole = reduce(torch.add, weighed) / reduce(torch.add, shares)
    return whole.flatten(1, 2)[None].to(mixed.dtype)


def _parts(q: Tensor, k: Tensor) -> int:
    """In how many parts keys are read, 1: whole. A power of two, as many as a GPU has places for at one time;
    whole where what the parts give would not be joined by one kernel.
    """
    asked = asked_for()
    if not asked.split if asked is not None else compiler_for(q) is None:
        return 1
    (batch, heads, rows, _), (_, kept, keys, _) = q.shape, k.shape
    if batch > 1 or rows > ROW_BUCKETS[-1] or keys % CACHE_STEP:
        return 1
    blocks = kept * -(-rows * (heads // kept) // _TILE)  # of one part
    most = min(_MOST, keys // CACHE_STEP, _AT_A_TIME * _multiprocessors(q.device) // blocks)
    return 1 << max(0, most.bit_length() - 1)


@cache
def _multiprocessors(device: torch.device) -> int:
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
