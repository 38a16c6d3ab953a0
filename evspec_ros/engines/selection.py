"""Which engine computes a decoder's steps and verifications."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from evspec_ros.engines.cuda_graphs import GraphedDecoder
from evspec_ros.engines.decoder import DecoderEngine, TorchDecoder
from evspec_ros.engines.onnx_decoder import OnnxDecoder
from evspec_ros.errors import EngineError
from evspec_ros.networks.llama import LlamaDecoder

BACKENDS = ("auto", "torch", "onnxruntime", "cuda_graphs")
_LARGEST_GRAPH = 2**31  # bytes; protobuf holds no more


@dataclass(frozen=True, eq=False)
class ChosenEngine:
    """An engine and why it was chosen, in a few words."""

    engine: DecoderEngine
    reason: str

    def __str__(self) -> str:
        return f"{self.engine.describe()} ({self.reason})"


def choose_engine(decoder: LlamaDecoder, lm_head: nn.Module, backend: str = "auto") -> ChosenEngine:
    """The engine of that name, or with `auto` the fastest one known to work for this decoder.

    Raises EngineError for a name that is not in BACKENDS and for an engine that cannot run this decoder.
    """
    if backend not in BACKENDS:
        raise EngineError(f"There is no backend {backend!r}; choose one of {', '.join(BACKENDS)}.")
    if backend == "cuda_graphs":
        return ChosenEngine(GraphedDecoder(decoder, lm_head), "asked for")
    if backend == "torch":
        return ChosenEngine(TorchDecoder(decoder, lm_head), "asked for")
    obstacle = _onnx_obstacle(decoder, lm_head)
    if obstacle is None:
        assert isinstance(lm_head, nn.Linear)
        reason = "asked for" if backend == "onnxruntime" else "faster than torch for few rows on the CPU"
        return ChosenEngine(OnnxDecoder(decoder, lm_head), reason)
    if backend == "onnxruntime":
        raise EngineError(f"ONNX Runtime cannot run this decoder: {obstacle}; set backend to auto or torch.")
    return ChosenEngine(TorchDecoder(decoder, lm_head), obstacle)


def _onnx_obstacle(decoder: LlamaDecoder, lm_head: nn.Module) -> str | None:
    """Why ONNX Runtime is out of the question for a decoder; None where it is not."""
    weight = decoder.embed_tokens.weight
    if weight.device.type != "cpu":
        return f"the networks are on {weight.device}"
    projections = [module for name, module in decoder.named_modules() if name.endswith("_proj")]
    if not all(isinstance(module, nn.Linear) for module in (*projections, lm_head)):
        return "its weights are packed in another way already"
    parameters = [*decoder.parameters(), *lm_head.parameters()]
    if any(parameter.dtype != torch.float32 for parameter in parameters):
        return f"its precision is {str(weight.dtype).removeprefix('torch.')}, not float32"
    if decoder.config.head_dim % 16:
        return "its attention takes heads of 16, 32, ... values alone"
    if sum(parameter.nbytes for parameter in parameters) >= _LARGEST_GRAPH:
        return "an ONNX graph holds at most 2 GiB of weights"
    return None
