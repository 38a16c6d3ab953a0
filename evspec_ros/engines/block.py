"""What computes a block head's one pass a turn: torch, a captured CUDA graph, or ONNX Runtime.

All of them compute `BlockHead.draft` on tensors of fixed shapes and addresses, with the rows that were
accepted padded to N and their number among the inputs. The N rows' keys and values go to the cache behind its
length; those of the padding are overwritten by the next turn and never seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from evspec_ros.engines.capture import Captured, Capturing, graph_pool
from evspec_ros.engines.cuda_graphs import GraphedDecoder
from evspec_ros.engines.networks import block, memory_names
from evspec_ros.engines.onnx_decoder import OnnxDecoder
from evspec_ros.engines.onnx_runtime import OnnxEngine
from evspec_ros.engines.protocol import Bound, Engine
from evspec_ros.networks.block_head import BlockHead, BlockPass
from evspec_ros.networks.llama import KVCache, LlamaDecoder


class BlockOutput(NamedTuple):
    """Of each row of a block its most probable tokens int64 [B, k], with their probabilities float32, and the
    logits [B, n]. The next turn may overwrite them.
    """

    tokens: Tensor
    probabilities: Tensor
    logits: Tensor


class BlockEngine(ABC):
    """Computes a block head's turns; the cache belongs to the caller and one engine serves one at a time."""

    def __init__(self, head: BlockHead) -> None:
        self._head = head

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache of at most `capacity` rows, event rows included, with room for a turn's padding."""
        return self._head.new_cache(capacity + self._head.config.read_rows)

    def read(self, features: Tensor, events: Tensor | None, cache: KVCache) -> None:
        """Read the events [E, event_size] and any number of rows, features [W, layers * D], and draft
        nothing.
        """
        if len(features) > 0 or events is not None:
            self._head.fill(features, events, cache)

    @abstractmethod
    def run(self, features: Tensor, token: int, cache: KVCache) -> BlockOutput:
        """Read n <= N accepted rows, features [n, layers * D], and draft a block behind the token that
        follows them, which the target has not read.
        """


class TorchBlock(BlockEngine):
    """The module itself, on any device."""

    def __init__(self, head: BlockHead, target: LlamaDecoder) -> None:
        super().__init__(head)
        config, weight = head.config, head.fc.weight
        self._target = target
        self._features = weight.new_zeros(config.read_rows, len(config.layers) * config.target_size)
        self._numbers = torch.zeros(3, dtype=torch.int64, device=weight.device)  # count, token, length
        self._staged = torch.zeros(3, dtype=torch.int64, pin_memory=weight.is_cuda)

    def run(self, features: Tensor, token: int, cache: KVCache) -> BlockOutput:
        """See BlockEngine; on a GPU the host waits for nothing."""
        count = len(features)
        self._features[:count] = features
        self._staged[:] = torch.tensor((count, token, cache.length))
        self._numbers.copy_(self._staged, non_blocking=True)
        cache.begin(count)
        output = self._compute(cache)
        return BlockOutput(output.tokens, output.probabilities, output.logits)

    def _compute(self, cache: KVCache) -> BlockPass:
        return self._turn(cache)

    def _turn(self, cache: KVCache) -> BlockPass:
        """One turn on the buffers, with no look at a value; of the cache `k` and `v` alone are used."""
        count, token, length = self._numbers.chunk(3)
        output = self._head.draft(self._features, count, self._target.embed(token), length, cache.k, cache.v)
        rows = length + torch.arange(len(self._features), device=length.device)
        cache.k.index_copy_(3, rows, output.k)
        cache.v.index_copy_(3, rows, output.v)
        return output


class GraphedBlock(TorchBlock):
    """The same turn as a CUDA graph, captured once for each cache into the pool that the target's graphs take
    their memory from.
    """

    def __init__(self, head: BlockHead, target: LlamaDecoder, pool: Capturing | None = None) -> None:
        super().__init__(head, target)
        self._pool = pool or graph_pool(head.fc.weight.device)
        self._cache: KVCache | None = None
        self._captured: Captured[BlockPass] | None = None

    def _compute(self, cache: KVCache) -> BlockPass:
        if cache is not self._cache or self._captured is None:
            self._captured, self._cache = self._pool.capture(lambda: self._turn(cache)), cache
        return self._captured.replay()


class EngineBlock(BlockEngine):
    """A network's turns on an engine; make: the engine for a cache of so many rows."""

    def __init__(self, head: BlockHead, target: LlamaDecoder, make: Callable[[int], Engine]) -> None:
        super().__init__(head)
        self._embedding = target.embed_tokens.weight.detach()
        self._make = make
        network = block(head)
        memory = memory_names(len(head.layers))
        given = {name: torch.zeros_like(one) for name, one in network.inputs.items()}
        output = network.run(given)
        self._inputs = {name: one for name, one in given.items() if name not in memory}
        self._token = torch.zeros_like(given["count"])
        self._output = BlockPass(**{name: torch.zeros_like(one).contiguous() for name, one in output.items()})
        make(given[memory[0]].shape[2]).bind(given, self._output._asdict())  # whether it is of this head
        self._cache: KVCache | None = None
        self._bound: Bound | None = None

    def run(self, features: Tensor, token: int, cache: KVCache) -> BlockOutput:
        """See BlockEngine."""
        count, length, output = len(features), cache.length, self._output
        if cache is not self._cache or self._bound is None:
            memory = dict(zip(memory_names(len(self._head.layers)), (*cache.k, *cache.v), strict=True))
            self._bound = self._make(cache.capacity).bind({**self._inputs, **memory}, output._asdict())
            self._cache = cache
        self._inputs["features"][:count] = features
        self._inputs["count"].fill_(count)
        self._inputs["length"].fill_(length)
        self._token.fill_(token)
        torch.index_select(self._embedding, 0, self._token, out=self._inputs["last"])
        self._bound.run()
        cache.begin(count)
        cache.k[:, :, :, length : length + output.k.shape[3]] = output.k
        cache.v[:, :, :, length : length + output.v.shape[3]] = output.v
        return BlockOutput(output.tokens, output.probabilities, output.logits)


class OnnxBlock(EngineBlock):
    """ONNX Runtime on the CPU, on one thread: the products of one block are too small to share."""

    def __init__(self, head: BlockHead, target: LlamaDecoder) -> None:
        from evspec_ros.engines.export import graph  # which imports onnx

        model = graph(block(head))
        super().__init__(head, target, lambda rows: OnnxEngine(model, 1, {"C": rows}))


def choose_block_engine(head: BlockHead, target: LlamaDecoder, backend: str) -> BlockEngine:
    """How a block head drafts for a target whose steps run on `backend`."""
    if backend == OnnxDecoder.backend:
        return OnnxBlock(head, target)
    if backend == GraphedDecoder.backend:
        return GraphedBlock(head, target)
    return TorchBlock(head, target)
