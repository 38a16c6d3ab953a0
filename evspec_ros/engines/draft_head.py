"""What computes a draft head's passes: the modules, or ONNX Runtime from token ids to likely tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evspec_ros.engines.decoder_graph import draft_graph
from evspec_ros.engines.onnx_runtime import BoundTensors, OnnxEngine
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.llama import KVCache, LlamaDecoder

AHEAD = 4  # steps of a chain that one run computes
CANDIDATES = 4  # tokens told of each row


class HeadPass(NamedTuple):
    """What n rows say: output [n, d], logits [n, V], and of each row the CANDIDATES most probable tokens
    int64 [n, k] with their probabilities float32 [n, k]. The next pass may overwrite it.
    """

    output: Tensor
    logits: Tensor
    tokens: NDArray[np.int64]
    chances: NDArray[np.float32]


class HeadEngine(Protocol):
    """Computes a draft head's rows, which are appended to its cache."""

    def run(
        self,
        ids: Sequence[int],
        carried: Tensor,
        cache: KVCache,
        depths: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> HeadPass:
        """T tokens at t + 1 and carried [T, d] from t, one after another: what the last of them says. Or
        nodes of a tree, with depths int64 [T] and visible bool [T, W] over the last W rows, T new ones among
        them: what each of them says.
        """

    def run_on(self, token: int, carried: Tensor, cache: KVCache) -> Sequence[HeadPass]:
        """A token at t + 1 and carried [1, d] from t, then perhaps the likeliest token behind it, and so on:
        what each of these rows says. All of them are in the cache; the next pass may overwrite the outputs.
        """


class TorchDraftHead:
    """The modules themselves."""

    def __init__(self, head: DraftHead, target: LlamaDecoder, lm_head: nn.Module) -> None:
        self._head = head
        self._target = target
        self._norm, self._lm_head = head.readout(target.norm, lm_head)

    def run(
        self,
        ids: Sequence[int],
        carried: Tensor,
        cache: KVCache,
        depths: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> HeadPass:
        """See HeadEngine."""
        device = carried.device
        embeddings = self._target.embed(torch.tensor([ids], device=device))
        depths = None if depths is None else depths.to(device)
        visible = None if visible is None else visible.to(device)
        output = self._head(embeddings, carried[None], None, cache, depths, visible)[0]
        output = output[-1:] if visible is None else output
        logits = self._lm_head(self._norm(output))
        spread = torch.softmax(logits, -1, dtype=torch.float32)
        chances, tokens = spread.topk(min(CANDIDATES, spread.shape[-1]), dim=-1)
        return HeadPass(output, logits, tokens.cpu().numpy(), chances.cpu().numpy())

    def run_on(self, token: int, carried: Tensor, cache: KVCache) -> Sequence[HeadPass]:
        """See HeadEngine; one row."""
        return (self.run([token], carried, cache),)


@dataclass(frozen=True, eq=False)
class _Pass:
    """Tensors of passes over one number of rows, and views of them that are quick to fill; places of every
    step.
    """

    bound: BoundTensors
    ids: NDArray[np.int64]
    carried: Tensor
    positions: list[NDArray[np.int64]]
    last: list[NDArray[np.int32]]
    total: list[NDArray[np.int32]]
    outputs: list[HeadPass]

    def place(self, step: int, first: int, rows: int) -> None:
        """A step's rows come one after another, the first of them at position `first`."""
        self.positions[step][0] = _consecutive(first, rows)
        self.last[step][0] = self.total[step][()] = first + rows
        self.last[step][0] -= 1


class OnnxDraftHead:
    """One graph from token ids to likely tokens, on one thread: its products are too small to share."""

    def __init__(self, head: DraftHead, target: LlamaDecoder, lm_head: nn.Linear) -> None:
        self._sizes = head.config
        self._parts = (head, target.embed_tokens.weight.detach(), target.norm, lm_head)
        self._vocabulary = cast("nn.Linear", head.readout(target.norm, lm_head)[1]).out_features
        self._engines: dict[tuple[bool, int], OnnxEngine] = {}
        self._cache: KVCache | None = None  # what the passes are bound to
        self._passes: dict[tuple[int, bool, int], _Pass] = {}

    def run(
        self,
        ids: Sequence[int],
        carried: Tensor,
        cache: KVCache,
        depths: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> HeadPass:
        """See HeadEngine."""
        rows, prefix = len(ids), cache.length
        cache.begin(rows)
        tensors = self._pass(rows, cache, masked=visible is not None)
        tensors.ids[0] = ids
        tensors.carried.copy_(carried)
        tensors.place(0, prefix, rows)
        if depths is not None:
            tensors.positions[0][0] = depths.numpy() + prefix
        if visible is not None:
            bias = torch.zeros(1, 1, rows, cache.length)
            bias[0, 0, :, cache.length - visible.shape[1] :].masked_fill_(~visible, float("-inf"))
            tensors.bound.put("bias", bias)
        tensors.bound.run()
        return tensors.outputs[0]

    def run_on(self, token: int, carried: Tensor, cache: KVCache) -> Sequence[HeadPass]:
        """See HeadEngine; AHEAD rows, or as many as there is room for."""
        prefix = cache.length
        steps = max(1, min(AHEAD, cache.capacity - prefix))
        cache.begin(steps)
        tensors = self._pass(1, cache, steps=steps)
        tensors.ids[0] = token
        tensors.carried.copy_(carried)
        for step in range(steps):
            tensors.place(step, prefix + step, 1)
        tensors.bound.run()
        return tensors.outputs

    def _pass(self, rows: int, cache: KVCache, *, masked: bool = False, steps: int = 1) -> _Pass:
        if cache is not self._cache:
            self._cache, self._passes = cache, {}
        if (rows, masked, steps) not in self._passes:
            self._passes[rows, masked, steps] = self._bound(rows, cache, masked, steps)
        return self._passes[rows, masked, steps]

    def _bound(self, rows: int, cache: KVCache, masked: bool, steps: int) -> _Pass:
        """New tensors, bound together with the cache's memory."""
        sizes, best, told = self._sizes, min(CANDIDATES, self._vocabulary), rows if masked else 1
        if (masked, steps) not in self._engines:
            graph = draft_graph(*self._parts, best, masked=masked, steps=steps)
            self._engines[masked, steps] = OnnxEngine(graph, 1)
        memory = {"k.0": cache.k[0], "v.0": cache.v[0]}
        inputs = {
            "ids": torch.empty(1, rows, dtype=torch.int64),
            "carried": torch.empty(1, rows, sizes.hidden_size),
        } | {f"past_{name}": tensor for name, tensor in memory.items()}
        outputs: dict[str, Tensor] = {}
        suffixes = [f".{step}" if step else "" for step in range(steps)]
        for suffix in suffixes:
            inputs[f"positions{suffix}"] = torch.empty(1, rows, dtype=torch.int64)
            inputs[f"last{suffix}"] = torch.empty(1, dtype=torch.int32)
            inputs[f"total{suffix}"] = torch.empty((), dtype=torch.int32)
            outputs[f"logits{suffix}"] = torch.empty(1, told, self._vocabulary)
            outputs[f"entering.1{suffix}"] = torch.empty(1, told, sizes.hidden_size)
            outputs[f"tokens{suffix}"] = torch.empty(1, told, best, dtype=torch.int64)
            outputs[f"chances{suffix}"] = torch.empty(1, told, best)
            outputs |= {f"present_{name}{suffix}": tensor for name, tensor in memory.items()}
        said = [
            HeadPass(
                outputs[f"entering.1{suffix}"][0],
                outputs[f"logits{suffix}"][0],
                outputs[f"tokens{suffix}"][0].numpy(),
                outputs[f"chances{suffix}"][0].numpy(),
            )
            for suffix in suffixes
        ]
        places: dict[str, Any] = {
            name: [inputs[f"{name}{suffix}"].numpy() for suffix in suffixes]
            for name in ("positions", "last", "total")
        }
        bound = self._engines[masked, steps].bind(inputs, outputs)
        return _Pass(bound, inputs["ids"].numpy(), inputs["carried"][0], outputs=said, **places)


@lru_cache(maxsize=1024)
def _consecutive(first: int, rows: int) -> NDArray[np.int64]:
    return np.arange(first, first + rows)
