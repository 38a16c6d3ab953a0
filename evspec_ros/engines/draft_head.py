"""What computes a draft head's passes: the modules, or ONNX Runtime from token ids to likely tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evspec_ros.engines.networks import CANDIDATES
from evspec_ros.engines.onnx_runtime import BoundPasses, CachePass, OnnxEngine, step_suffixes
from evspec_ros.networks.devices import fetched, uploaded
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.llama import KVCache, LlamaDecoder

CHAIN_STEPS = 4  # steps of a chain that one run computes


class HeadPass(NamedTuple):
    """What n rows give: output [n, d], logits [n, V], and of each row the CANDIDATES most probable tokens
    int64 [n, k] with their probabilities float32 [n, k]. The next pass may overwrite it.
    """

    output: Tensor
    logits: Tensor
    tokens: NDArray[np.int64]
    probabilities: NDArray[np.float32]


class HeadEngine(ABC):
    """Computes a draft head's rows, which are appended to its cache."""

    def __init__(self, head: DraftHead) -> None:
        self._head = head

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache of at most `capacity` rows, event rows included."""
        return self._head.new_cache(capacity)

    def read_prompt(
        self, embeddings: Tensor, features: Tensor, events: Tensor | None, cache: KVCache
    ) -> None:
        """Keys and values of the event rows [E, event_size] and of n prompt rows: embeddings [1, n, D] at
        t + 1, the target's features [n, layers * D] at t.
        """
        if len(features) > 0 or events is not None:
            carried = self._head.fuse(features)[None]
            self._head.fill(embeddings, carried, None if events is None else events[None], cache)

    def read(self, ids: Sequence[int], features: Tensor, cache: KVCache) -> HeadPass:
        """T tokens at t + 1 and the target's features [T, layers * D] at t, one after another: what the last
        row gives, n = 1.
        """
        return self.run(ids, self._head.fuse(features), cache)

    @abstractmethod
    def run(
        self,
        ids: Sequence[int],
        carried: Tensor,
        cache: KVCache,
        depths: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> HeadPass:
        """T tokens at t + 1 and carried [T, d] from t, one after another: what the last row gives, n = 1. Or
        nodes of a tree, with depths int64 [T] and visible bool [T, W] over the last W rows, T new ones among
        them: what each of them gives, n = T.
        """

    @abstractmethod
    def run_chain(self, token: int, carried: Tensor, cache: KVCache) -> Sequence[HeadPass]:
        """A token at t + 1 and carried [1, d] from t, then perhaps the likeliest token behind it, and so on:
        what each of these rows gives, n = 1. All of them are in the cache; the next pass may overwrite the
        outputs.
        """


class UnseenPass(NamedTuple):
    """A HeadPass where the head computes: tokens int64 [n, k] and their probabilities float32 [n, k] lie
    there, too.
    """

    output: Tensor
    logits: Tensor
    tokens: Tensor
    probabilities: Tensor


class LevelEngine(HeadEngine):
    """One that gives its passes without a look at them."""

    @abstractmethod
    def level(
        self,
        ids: Tensor,
        carried: Tensor,
        cache: KVCache,
        depths: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> UnseenPass:
        """What `run` computes, of ids int64 [T] where the head is; depths and visible may be there as well,
        both of them.
        """

    def run(
        self,
        ids: Sequence[int],
        carried: Tensor,
        cache: KVCache,
        depths: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> HeadPass:
        """See HeadEngine."""
        level = self.level(uploaded(torch.tensor(ids), carried.device), carried, cache, depths, visible)
        return HeadPass(level.output, level.logits, *fetched(level.tokens, level.probabilities))

    def run_chain(self, token: int, carried: Tensor, cache: KVCache) -> Sequence[HeadPass]:
        """See HeadEngine; one row."""
        return (self.run([token], carried, cache),)


class TorchDraftHead(LevelEngine):
    """The modules themselves."""

    def __init__(self, head: DraftHead, target: LlamaDecoder, lm_head: nn.Module) -> None:
        super().__init__(head)
        self._target = target
        self._norm, self._lm_head = head.readout(target.norm, lm_head)

    def level(
        self,
        ids: Tensor,
        carried: Tensor,
        cache: KVCache,
        depths: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> UnseenPass:
        """See LevelEngine."""
        device = carried.device
        depths = None if depths is None else uploaded(depths, device)
        visible = None if visible is None else uploaded(visible, device)
        embeddings = self._target.embed(ids)[None]
        output = self._head(embeddings, carried[None], None, cache, depths, visible)[0]
        output = output[-1:] if visible is None else output
        logits = self._lm_head(self._norm(output))
        spread = torch.softmax(logits, -1, dtype=torch.float32)
        probabilities, tokens = spread.topk(min(CANDIDATES, spread.shape[-1]), dim=-1)
        return UnseenPass(output, logits, tokens, probabilities)


@dataclass(frozen=True)
class _Shape:
    """Of passes: rows, whether they are a tree's, and steps."""

    rows: int
    masked: bool = False
    steps: int = 1


@dataclass(frozen=True, eq=False)
class _HeadPasses:
    """Passes of one shape: ids [T] and carried [T, d] are read, the steps' outputs are overwritten."""

    bound: CachePass
    ids: NDArray[np.int64]
    carried: Tensor
    outputs: tuple[HeadPass, ...]


class OnnxDraftHead(HeadEngine):
    """One graph from token ids to likely tokens, on one thread: its products are too small to share."""

    def __init__(self, head: DraftHead, target: LlamaDecoder, lm_head: nn.Linear) -> None:
        super().__init__(head)
        self._parts = (head, target.embed_tokens.weight.detach(), target.norm, lm_head)
        self._vocabulary = cast("nn.Linear", head.readout(target.norm, lm_head)[1]).out_features
        self._engines: dict[tuple[bool, int], OnnxEngine] = {}
        self._passes = BoundPasses(self._bind)

    def run(
        self,
        ids: Sequence[int],
        carried: Tensor,
        cache: KVCache,
        depths: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> HeadPass:
        """See HeadEngine."""
        prefix = cache.length
        cache.begin(len(ids))
        passes = self._passes.get(_Shape(len(ids), masked=visible is not None), cache)
        passes.ids[:] = ids
        passes.carried.copy_(carried)
        passes.bound.run(prefix, depths, visible)
        return passes.outputs[0]

    def run_chain(self, token: int, carried: Tensor, cache: KVCache) -> Sequence[HeadPass]:
        """See HeadEngine; CHAIN_STEPS rows, or as many as there is room for."""
        prefix = cache.length
        steps = max(1, min(CHAIN_STEPS, cache.capacity - prefix))
        cache.begin(steps)
        passes = self._passes.get(_Shape(1, steps=steps), cache)
        passes.ids[0] = token
        passes.carried.copy_(carried)
        passes.bound.run(prefix)
        return passes.outputs

    def _bind(self, shape: _Shape, cache: KVCache) -> _HeadPasses:
        from evspec_ros.engines.decoder_graph import draft_graph  # which imports onnx

        size, best = self._head.config.hidden_size, min(CANDIDATES, self._vocabulary)
        if (shape.masked, shape.steps) not in self._engines:
            graph = draft_graph(*self._parts, best, masked=shape.masked, steps=shape.steps)
            self._engines[shape.masked, shape.steps] = OnnxEngine(graph, 1)
        inputs = {
            "ids": torch.empty(1, shape.rows, dtype=torch.int64),
            "carried": torch.empty(1, shape.rows, size),
        }
        given = shape.rows if shape.masked else 1  # rows whose outputs are computed
        passes: list[HeadPass] = []
        outputs: dict[str, Tensor] = {}
        for suffix in step_suffixes(shape.steps):
            of_step = {
                "entering.1": torch.empty(1, given, size),
                "logits": torch.empty(1, given, self._vocabulary),
                "tokens": torch.empty(1, given, best, dtype=torch.int64),
                "probabilities": torch.empty(1, given, best),
            }
            outputs |= {f"{name}{suffix}": tensor for name, tensor in of_step.items()}
            output, logits, tokens, probabilities = (tensor[0] for tensor in of_step.values())
            passes.append(HeadPass(output, logits, tokens.numpy(), probabilities.numpy()))
        engine = self._engines[shape.masked, shape.steps]
        bound = CachePass(engine, cache, shape.rows, inputs, outputs, masked=shape.masked, steps=shape.steps)
        return _HeadPasses(bound, inputs["ids"][0].numpy(), inputs["carried"][0], tuple(passes))
