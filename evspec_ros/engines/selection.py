"""Which engine computes a decoder's passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from evspec_ros.choices import BACKENDS
from evspec_ros.engines.capture import NoPool
from evspec_ros.engines.cuda_graphs import GraphedDecoder
from evspec_ros.engines.decoder import DecoderEngine, TorchDecoder
from evspec_ros.engines.onnx_decoder import OnnxDecoder
from evspec_ros.engines.onnx_runtime import missing_packages
from evspec_ros.errors import EngineError
from evspec_ros.networks.llama import LlamaDecoder

HEAD_STEP = 16  # values; ONNX Runtime's own attention takes heads of a multiple of so many
_LARGEST_GRAPH = 2**31  # bytes; protobuf holds no more


@dataclass(frozen=True, eq=False)
class ChosenEngine:
    """An engine and why it was chosen, in a few words."""

    engine: DecoderEngine
    reason: str

    def __str__(self) -> str:
        return f"{self.engine.describe()} ({self.reason})"


def choose_engine(
    decoder: LlamaDecoder,
    lm_head: nn.Module,
    backend: str = "auto",
    kv_dtype: torch.dtype | None = None,
    *,
    exact_half: bool = False,
) -> ChosenEngine:
    """The engine of that name, or with `auto` the fastest one known to work for this decoder and its cache.
    exact_half: of a decoder in half precision one whose passes all have the same shape.

    Raises EngineError for a name that is not in BACKENDS and for an engine that cannot run this decoder.
    """
    if backend not in BACKENDS:
        raise EngineError(f"There is no backend {backend!r}; choose one of {', '.join(BACKENDS)}.")
    on_gpu = decoder.embed_tokens.weight.is_cuda
    if exact_half and decoder.embed_tokens.weight.dtype != torch.float32:
        pool = None if on_gpu else NoPool()
        return ChosenEngine(
            GraphedDecoder(decoder, lm_head, pool, same_rows=True), "exact_half was asked for"
        )
    if backend == "cuda_graphs" or (backend == "auto" and on_gpu):
        asked = "asked for" if backend == "cuda_graphs" else "launched whole, the fastest on a GPU"
        return ChosenEngine(GraphedDecoder(decoder, lm_head), asked)
    if backend == "torch":
        return ChosenEngine(TorchDecoder(decoder, lm_head), "asked for")
    obstacle = next(_onnx_obstacles(decoder, lm_head, kv_dtype), None)
    if obstacle is None:
        assert isinstance(lm_head, nn.Linear)
        reason = "asked for" if backend == "onnxruntime" else "faster than torch for few rows on the CPU"
        return ChosenEngine(OnnxDecoder(decoder, lm_head), reason)
    if backend == "onnxruntime":
        raise EngineError(f"ONNX Runtime cannot run this decoder: {obstacle}; set backend to auto or torch.")
    return ChosenEngine(TorchDecoder(decoder, lm_head), obstacle)


def _onnx_obstacles(decoder: LlamaDecoder, lm_head: nn.Module, kv_dtype: torch.dtype | None) -> Iterator[str]:
    """Why ONNX Runtime is out of the question for a decoder."""
    weight = decoder.embed_tokens.weight
    parameters = [*decoder.parameters(), *lm_head.parameters()]
    projections = [module for name, module in decoder.named_modules() if name.endswith("_proj")]
    if weight.device.type != "cpu":
        yield f"the networks are on {weight.device}"
    if not all(isinstance(module, nn.Linear) for module in (*projections, lm_head)):
        yield "its weights are packed in another way already"
    if any(type(parameter.data) is not torch.Tensor for parameter in parameters):
        yield "its weights are quantised"
    if any(parameter.dtype != torch.float32 for parameter in parameters):
        yield f"its precision is {str(weight.dtype).removeprefix('torch.')}, not float32"
    if kv_dtype not in (None, torch.float32):
        yield f"its key/value cache is kept in {str(kv_dtype).removeprefix('torch.')}"
    if decoder.config.head_dim % HEAD_STEP:
        yield "its attention takes heads of 16, 32, ... values alone"
    if sum(parameter.nbytes for parameter in parameters) >= _LARGEST_GRAPH:
        yield "an ONNX graph holds at most 2 GiB of weights"
    if missing := missing_packages():
        yield missing
