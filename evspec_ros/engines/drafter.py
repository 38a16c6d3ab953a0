"""What runs the drafter: the event encoder, the event model's rows and the draft head, and why that.

TensorRT where its library and a GPU that it supports are; else, on a GPU, torch's captured graphs; else, on
the CPU, ONNX Runtime, which beats torch there at the few rows that drafting has. Event model and heads run
there by ONNX Runtime's own operators (`decoder_graph`), elsewhere by the standard graphs of `networks`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

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
from evspec_ros.engines.plans import digest, precision_of, refit, tensorrt_engine
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

if TYPE_CHECKING:
    from evspec_ros.engines.tensorrt import TensorRtEngine

logger = logging.getLogger(__name__)

_ASKED = "asked for"
TENSORRT_INT8 = "tensorrt_int8"
TOLD_EVERY_S = 5.0  # between two lines about a compilation
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

    backend: one of DRAFTER_BACKENDS, never auto; reason: why this one; learns: whether the weights of heads
    change. What a backend that was not asked for by name cannot run, torch does.
    """

    def __init__(self, backend: str, reason: str, *, learns: bool = False) -> None:
        self._int8 = backend == TENSORRT_INT8
        self.backend, self.reason = "tensorrt" if self._int8 else backend, reason
        self._learns = learns
        # Of heads, by their networks' names, with the digests of the weights that they hold.
        self._refittable: dict[str, tuple[TensorRtEngine, str]] = {}

    @classmethod
    def like(cls, engine: DecoderEngine) -> DrafterEngines:
        """Those of the kind that runs a target."""
        onnx = engine.backend == OnnxDecoder.backend
        return cls(OnnxDecoder.backend if onnx else TorchDecoder.backend, "as the target")

    def __str__(self) -> str:
        return f"{TENSORRT_INT8 if self._int8 else self.backend} ({self.reason})"

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
            return LevelHead(head, target, lm_head, self._head_engine)
        return TorchDraftHead(head, target, lm_head)

    def block(self, head: BlockHead, target: LlamaDecoder) -> BlockEngine:
        """Of a block head; of one with too few positions for two turns no graph can be made."""
        if head.config.max_positions < 2 * head.config.read_rows:
            return TorchBlock(head, target)
        if self.backend == "tensorrt":
            engine = self._head_engine(block(head))
            return EngineBlock(head, target, lambda _: engine)
        on_gpu = self.backend == "torch" and head.fc.weight.is_cuda
        return choose_block_engine(head, target, GraphedDecoder.backend if on_gpu else self.backend)

    def _head_engine(self, network: Network) -> Engine:
        """Of a head's network. A plan of one that learns is compiled once; a better head's weights are put
        into it, since compiling takes longer than a window. It is not in int8, whose scales are old weights'.
        """
        return self._engine(network, self._refitted if self._learns else None)

    def _refitted(self, network: Network) -> Engine:
        weights = digest(network, precision_of(network))
        held, of_weights = self._refittable.get(network.name, (None, ""))
        if held is None:
            held = tensorrt_engine(network, report=told(network.name), refittable=True)
        elif weights != of_weights:
            refit(held, network)
        self._refittable[network.name] = held, weights
        return held

    def _compiled(self, network: Network) -> Engine:
        return tensorrt_engine(network, report=told(network.name), int8=self._int8)

    def _engine(
        self,
        network: Network,
        compiled: Callable[[Network], Engine] | None = None,
        *,
        events: bool = False,
    ) -> Engine:
        """compiled: how TensorRT's engine is had, by default once and for all; events: the network may run
        beside the target.
        """
        if self.backend == "onnxruntime":
            from evspec_ros.engines.export import graph  # which imports onnx

            return OnnxEngine(graph(network), torch.get_num_threads())
        if self.backend != "tensorrt":
            return TorchEngine(network, events=events)
        try:
            return (compiled or self._compiled)(network)
        except EngineError as error:
            if self.reason == _ASKED:
                raise
            logger.warning("torch runs %s instead: %s", network.name, error)
            return TorchEngine(network, events=events)


def told(network: str) -> Callable[[float], None]:
    """What logs the progress of compiling a network, from the beginning on every few seconds."""
    begun = next_at = time.monotonic()

    def report(share: float) -> None:
        nonlocal next_at
        now = time.monotonic()
        if now < next_at:
            return
        next_at = now + TOLD_EVERY_S
        left = f", about {(now - begun) * (1 - share) / share:.0f} s left" if share > 0 else ""
        logger.info("Compiling %s with TensorRT, which is done once: %.0f %%%s.", network, 100 * share, left)

    return report


def drafter_engines(
    backend: str, networks: Iterable[nn.Module | None], *, learns: bool = False
) -> DrafterEngines:
    """The engines of that name for a drafter's networks (event model, head), or with `auto` the best ones
    that can run them; learns: whether the head's weights will change.

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
    obstacles[TENSORRT_INT8] = obstacles["tensorrt"]
    if backend != "auto":
        if obstacle := obstacles[backend]:
            raise EngineError(
                f"drafter_backend {backend} cannot run here: {obstacle}; set it to auto or torch."
            )
        return DrafterEngines(backend, _ASKED, learns=learns)
    if obstacles["tensorrt"] is None:
        return DrafterEngines("tensorrt", "the fastest on this GPU", learns=learns)
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
