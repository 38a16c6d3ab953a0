"""What the names in `choices` mean, and weights in int8 and int4.

int8 and int4 are weight-only: the projections of the decoders' layers (12 of 13 bytes of a 7B target in
float16) are kept as whole numbers and multiplied in the compute dtype, bfloat16 on a GPU (the int4 kernel
takes no other) and float32 on a CPU. The rest stays in the compute dtype: embeddings are looked up, norms
are a few thousand values, the output head decides between nearly equal logits (and every draft head looks
through it), CLIP and the projectors run once per description, where time goes into arithmetic and not into
reading weights. A draft head stays, too: one layer is small, and a draft that it gets wrong costs a pass of
the target.

int8: symmetric, one scale per output row. int4: asymmetric, one scale and zero point per `GROUP` inputs; a
projection whose input is no multiple of `GROUP` (the tiny target's 688) is kept in int8.

torchao does the work. Its int4 on a GPU is packed, two weights a byte, and multiplied by torch's own kernel.
On a CPU its stable interface keeps the same range of numbers in one byte each, so that int4 there measures
what is lost and saves nothing over int8; torch's packed CPU kernel is made for bfloat16 and slow in float32.
Its int8 product casts the weights first, so that without torch.compile it saves memory and no time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from evspec_ros.choices import KV_PRECISIONS, PRECISIONS
from evspec_ros.errors import CheckpointError
from evspec_ros.networks.weights import Device, Packing

_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_KV = dict(zip(KV_PRECISIONS, (None, torch.float16, torch.int8), strict=True))
GROUP = 64  # inputs that share a scale in int4

Model = TypeVar("Model", bound=nn.Module)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What a network of one of PRECISIONS computes in; raises CheckpointError for another name."""
    if precision not in PRECISIONS:
        raise CheckpointError(f"There is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}.")
    return _FLOATS.get(precision, torch.bfloat16 if device.type == "cuda" else torch.float32)


def kv_dtype(precision: str) -> torch.dtype | None:
    """What a KV cache of one of KV_PRECISIONS is kept in, None for the decoder's own dtype (`auto`).

    Raises CheckpointError for another name.
    """
    if precision not in _KV:
        raise CheckpointError(
            f"There is no precision {precision!r} of the key/value cache; choose one of {', '.join(_KV)}."
        )
    return _KV[precision]


Load: TypeAlias = Callable[[Path, torch.dtype, Device, Packing | None], Model]  # one of `checkpoints`


def load_in(precision: str, load: Load[Model], path: Path, device: torch.device) -> Model:
    """What `load` (of `checkpoints`) reads from `path`, in one of PRECISIONS and ready to evaluate.

    For int8 and int4 each projection is quantised on the device as soon as it was read, so that neither the
    host nor the device ever holds more than the model in its final size and one layer. Raises
    CheckpointError as `load` does, for an unknown precision, and where torchao is missing.
    """
    dtype = compute_dtype(precision, device)
    packing = None if precision in _FLOATS else WholeNumbers(precision, device, _torchao(precision))
    return load(path, dtype, device, packing)


@dataclass(frozen=True)
class WholeNumbers:
    """Projections in int8 or int4 by torchao, see `weights.Packing`."""

    precision: str
    device: torch.device
    torchao: Any

    def bytes(self, linear: nn.Linear) -> int:
        """Scales and zero points included."""
        return weight_bytes(linear.out_features, linear.in_features, self.precision, self.device)

    def pack(self, linear: nn.Linear) -> None:
        """In the place of its weights; what that took in between is given back to the system."""
        width = bits(self.precision, linear.in_features)
        self.torchao.quantize_(linear, _config(self.torchao, width, self.device))
        with suppress(AttributeError, OSError):  # glibc keeps freed memory between what lives, others do not
            ctypes.CDLL(None).malloc_trim(0)


def bits(precision: str, inputs: int) -> int:
    """Bits of one weight of a projection with so many inputs, in int8 or int4."""
    return 4 if precision == "int4" and inputs % GROUP == 0 else 8


def weight_bytes(outputs: int, inputs: int, precision: str, device: torch.device) -> int:
    """Bytes that one projection of a decoder's layer takes, its scales (and zero points) included."""
    dtype = compute_dtype(precision, device)
    if precision in _FLOATS:
        return outputs * inputs * dtype.itemsize
    if bits(precision, inputs) == 8:
        return outputs * (inputs + dtype.itemsize + 1)  # torchao keeps a zero point of one byte per row
    if device.type == "cuda":  # the kernel's tiles are 1024 inputs and 8 outputs
        outputs, inputs = -(-outputs // 8) * 8, -(-inputs // 1024) * 1024
        return outputs * (inputs // 2 + inputs // GROUP * 2 * dtype.itemsize)
    return outputs * (inputs + inputs // GROUP * (dtype.itemsize + 1))


def _config(torchao: Any, width: int, device: torch.device) -> Any:
    """torchao's recipe for weights of so many bits."""
    if width == 8:
        return torchao.Int8WeightOnlyConfig()
    if device.type == "cuda":
        return torchao.Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d")
    from torchao.quantization.quant_primitives import MappingType

    four_bits = getattr(torch, "int4")  # noqa: B009 - torch's type stubs lack it
    return torchao.IntxWeightOnlyConfig(
        four_bits, torchao.PerGroup(GROUP), mapping_type=MappingType.ASYMMETRIC
    )


def _torchao(precision: str) -> Any:
    try:
        from torchao import quantization
    except ImportError as error:
        raise CheckpointError(
            f"The precision {precision} needs the package torchao, which cannot be imported ({error}); "
            "install it with `pip install 'torchao>=0.17'` or choose another precision."
        ) from error
    return quantization
