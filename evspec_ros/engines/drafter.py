"""What runs the drafter: the event encoder, the event model's rows and the draft head, and why that.

TensorRT where its library and a GPU that it supports are; else, on a GPU, torch's captured graphs; else, on
the CPU, ONNX Runtime, which beats torch there at the few rows that drafting has. Event model and heads run
there by ONNX Runtime's own operators (`decoder_graph`), elsewhere by the standard graphs of `networks`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from threading import Lock

import torch
from torch import Tensor, nn

from evspec_ros.choices import DRAFTER_BACKENDS
from evspec_ros.engines.block import BlockEngine, EngineBlock, TorchBlock, choose_block_engine
from evspec_ros.engines.capture import graph_pool
from evspec_ros.engines.cuda_graphs import GraphedDecoder
from evspec_ros.engines.decoder import DecoderEngine, TorchDecoder
from evspec_ros.engines.draft_head import HeadEngine, OnnxDraftHead, TorchDraftHead
from evspec_ros.engines.networks import Network, block, encode_events
from evspec_ros.engines.onnx_decoder import OnnxDecoder
from evspec_ros.engines.onnx_runtime import OnnxEngine, missing_packages
from evspec_ros.engines.plans import tensorrt_engine
from evspec_ros.engines.protocol import Engine
from evspec_ros.engines.rows import LevelHead, RowsDecoder
from evspec_ros.engines.selection import HEAD_STEP, choose_engine
from evspec_ros.engines.tensorrt_library import obstacle as tensorrt_obstacle
from evspec_ros.engines.torch_engine import TorchEngine
from evspec_ros.errors import EngineError
from evspec_ros.networks.block_head import BlockHead
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.llama import LlamaDecoder

logger = logging.getLogger(__name__)

_ASKED = "asked for"
_LARGEST_GRAPH = 2_000_000_000  # bytes of a graph in memory


class EventEncoder:
    """Events' images to tokens on an engine; one window at a time."""

    def __init__(self, network: Network, engine: Engine) -> None:
        self._images = torch.zeros_like(network.inputs["images"])
        self._tokens = torch.zeros_like(network.run({"images": self._images})["tokens"])
        self._bound = engine.bind({"images": self._images}, {"tokens": self._tokens})
        self._lock = Lock()

    def encode(self, images: Tensor) -> Tensor:
        """See `EventGpt.encode_events`."""
        with self._lock:
            self._images.copy_(images)
            self._bound.run()
            return self._tokens.clone()


class DrafterEngines:
    """Makes the engines of a drafter's networks.

    backend: one of DRAFTER_BACKENDS, never auto; reason: why this one. What a backend that was not asked for
    by name cannot run, torch does.
    """

    def __init__(self, backend: str, reason: str) -> None:
        self.backend, self.reason = backend, reason

    @classmethod
    def like(cls, engine: DecoderEngine) -> DrafterEngines:
        """Those of the kind that runs a target."""
        onnx = engine.backend == OnnxDecoder.backend
        return cls(OnnxDecoder.backend if onnx else TorchDecoder.backend, "as the target")

    def __str__(self) -> str:
        return f"{self.backend} ({self.reason})"

    def encoder(self, model: EventGpt) -> EventEncoder:
        """Of events."""
        network = encode_events(model)
        return EventEncoder(network, self._engine(network, events=True))

    def rows(self, decoder: LlamaDecoder, lm_head: nn.Module) -> DecoderEngine:
        """Of the event model's text."""
        if self.backend == "tensorrt":
            return RowsDecoder(self.backend, decoder, lm_head, partial(self._engine, events=True))
        if self.backend == "onnxruntime":
            return choose_engine(decoder, lm_head).engine
        device = decoder.embed_tokens.weight.device
        if device.type == "cuda":
            return GraphedDecoder(decoder, lm_head, graph_pool(device, events=True))
        return TorchDecoder(decoder, lm_head)

    def head(self, head: DraftHead, target: LlamaDecoder, lm_head: nn.Module) -> HeadEngine:
        """Of a draft head of EAGLE's kind."""
        whole = head.config.head_dim % HEAD_STEP == 0
        if self.backend == "onnxruntime" and isinstance(lm_head, nn.Linear) and whole:
            return OnnxDraftHead(head, target, lm_head)
        if self.backend != "torch" or target.embed_tokens.weight.is_cuda:
            return LevelHead(head, target, lm_head, self._engine)
        return TorchDraftHead(head, target, lm_head)

    def block(self, head: BlockHead, target: LlamaDecoder) -> BlockEngine:
        """Of a block head; of one with too few positions for two turns no graph can be made."""
        if head.config.max_positions < 2 * head.config.read_rows:
            return TorchBlock(head, target)
        if self.backend == "tensorrt":
            engine = self._engine(block(head))
            return EngineBlock(head, target, lambda _: engine)
        on_gpu = self.backend == "torch" and head.fc.weight.is_cuda
        return choose_block_engine(head, target, GraphedDecoder.backend if on_gpu else self.backend)

    def _engine(self, network: Network, *, events: bool = False) -> Engine:
        """events: the network may run beside the target."""
        if self.backend == "onnxruntime":
            from evspec_ros.engines.export import graph  # which imports onnx

            return OnnxEngine(graph(network), torch.get_num_threads())
        if self.backend != "tensorrt":
            return TorchEngine(network, events=events)
        try:
            return tensorrt_engine(network)
        except EngineError as error:
            if self.reason == _ASKED:
                raise
            logger.warning("torch runs %s instead: %s", network.name, error)
            return TorchEngine(network, events=events)


def drafter_engines(backend: str, networks: Iterable[nn.Module | None]) -> DrafterEngines:
    """The engines of that name for a drafter's networks (event model, head), or with `auto` the best ones
    that can run them.

    Raises EngineError for a name that is not in DRAFTER_BACKENDS and for engines that cannot run them here.
    """
    if backend not in DRAFTER_BACKENDS:
        raise EngineError(
            f"There is no drafter_backend {backend!r}; choose one of {', '.join(DRAFTER_BACKENDS)}."
        )
    weights = [weight for network in networks if network is not None for weight in network.parameters()]
    if backend == "torch" or not weights:
        return DrafterEngines("torch", _ASKED if weights else "nothing has to be run")
    obstacles = {"tensorrt": _tensorrt_obstacle(weights), "onnxruntime": _onnx_obstacle(weights)}
    if backend != "auto":
        if obstacle := obstacles[backend]:
            raise EngineError(
                f"drafter_backend {backend} cannot run here: {obstacle}; set it to auto or torch."
            )
        return DrafterEngines(backend, _ASKED)
    if obstacles["tensorrt"] is None:
        return DrafterEngines("tensorrt", "the fastest on this GPU")
    if weights[0].is_cuda:
        return DrafterEngines("torch", f"captured graphs; no TensorRT: {obstacles['tensorrt']}")
    if obstacles["onnxruntime"] is None:
        return DrafterEngines("onnxruntime", "faster than torch on the CPU")
    return DrafterEngines("torch", str(obstacles["onnxruntime"]))


def _onnx_obstacle(weights: list[nn.Parameter]) -> str | None:
    """Why ONNX Runtime is out of the question for these weights."""
    if weights[0].device.type != "cpu":
        return f"the networks are on {weights[0].device}"
    if any(type(weight.data) is not Tensor for weight in weights):
        return "weights are quantised"
    if any(weight.dtype != torch.float32 for weight in weights):
        return f"the precision is {str(weights[0].dtype).removeprefix('torch.')}, not float32"
    if sum(weight.nbytes for weight in weights) >= _LARGEST_GRAPH:
        return "an ONNX graph in memory holds at most 2 GB of weights"
    return missing_packages() or None


def _tensorrt_obstacle(weights: list[nn.Parameter]) -> str | None:
    """Why TensorRT is out of the question for these weights."""
    if not weights[0].is_cuda:
        return "the networks are not on a GPU"
    if any(type(weight.data) is not Tensor for weight in weights):
        return "weights are quantised"
    return tensorrt_obstacle()
