"""What computes a draft head's passes: the modules, or ONNX Runtime from token ids to likely tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evspec_ros.engines.decoder_graph import draft_graph
from evspec_ros.engines.onnx_runtime import BoundTensors, OnnxEngine
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.llama import KVCache, LlamaDecoder

CANDIDATES = 8  # tokens told of each row; EAGLE-2 takes up to ten


class HeadPass(NamedTuple):
    """What a pass over T rows says: output [T, d], logits [T, V], and of each row the CANDIDATES most
    probable tokens int64 [T, k] with their probabilities float32 [T, k]. The next pass may overwrite it.
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
        """T tokens at t + 1 and carried [T, d] from t; depths int64 [T] and visible bool [T, W] over the
        last W rows, T new ones among them, or both None for rows one after another.
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
        logits = self._lm_head(self._norm(output))
        spread = torch.softmax(logits, -1, dtype=torch.float32)
        chances, tokens = spread.topk(min(CANDIDATES, spread.shape[-1]), dim=-1)
        return HeadPass(output, logits, tokens.cpu().numpy(), chances.cpu().numpy())


@dataclass(frozen=True, eq=False)
class _Pass:
    """Tensors of passes over one number of rows, and views of them that are quick to fill."""

    bound: BoundTensors
    ids: NDArray[np.int64]
    carried: Tensor
    positions: NDArray[np.int64]
    last: NDArray[np.int32]
    total: NDArray[np.int32]
    output: HeadPass


class OnnxDraftHead:
    """One graph from token ids to likely tokens, on one thread: its products are too small to share."""

    def __init__(self, head: DraftHead, target: LlamaDecoder, lm_head: nn.Linear) -> None:
        self._sizes = head.config
        self._parts = (head, target.embed_tokens.weight.detach(), target.norm, lm_head)
        self._vocabulary = cast("nn.Linear", head.readout(target.norm, lm_head)[1]).out_features
        self._engines: dict[bool, OnnxEngine] = {}
        self._cache: KVCache | None = None  # what the passes are bound to
        self._passes: dict[tuple[int, bool], _Pass] = {}

    def run(
        self,
        ids: Sequence[int],
        carried: Tensor,
        cache: KVCache,
        depths: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> HeadPass:
        """See HeadEngine."""
        rows = len(ids)
        prefix = cache.length
        cache.begin(rows)
        tensors = self._pass(rows, cache, visible is not None)
        tensors.ids[0] = ids
        tensors.carried.copy_(carried)
        tensors.positions[0] = range(prefix, prefix + rows) if depths is None else depths.numpy() + prefix
        tensors.last[0], tensors.total[()] = cache.length - 1, cache.length
        if visible is not None:
            bias = torch.zeros(1, 1, rows, cache.length)
            bias[0, 0, :, cache.length - visible.shape[1] :].masked_fill_(~visible, float("-inf"))
            tensors.bound.put("bias", bias)
        tensors.bound.run()
        return tensors.output

    def _pass(self, rows: int, cache: KVCache, masked: bool) -> _Pass:
        if cache is not self._cache:
            self._cache, self._passes = cache, {}
        if (rows, masked) not in self._passes:
            self._passes[rows, masked] = self._bound(rows, cache, masked)
        return self._passes[rows, masked]

    def _bound(self, rows: int, cache: KVCache, masked: bool) -> _Pass:
        """New tensors, bound together with the cache's memory."""
        if masked not in self._engines:
            best = min(CANDIDATES, self._vocabulary)
            self._engines[masked] = OnnxEngine(draft_graph(*self._parts, best, masked=masked), 1)
        sizes, best = self._sizes, min(CANDIDATES, self._vocabulary)
        inputs: dict[str, Tensor] = {
            "ids": torch.empty(1, rows, dtype=torch.int64),
            "carried": torch.empty(1, rows, sizes.hidden_size),
            "positions": torch.empty(1, rows, dtype=torch.int64),
            "last": torch.empty(1, dtype=torch.int32),
            "total": torch.empty((), dtype=torch.int32),
        }
        outputs = {
            "logits": torch.empty(1, rows, self._vocabulary),
            "entering.1": torch.empty(1, rows, sizes.hidden_size),
            "tokens": torch.empty(1, rows, best, dtype=torch.int64),
            "chances": torch.empty(1, rows, best),
        }
        memory = {"k.0": cache.k[0], "v.0": cache.v[0]}
        views: dict[str, Any] = {name: tensor.numpy() for name, tensor in (inputs | outputs).items()}
        said = HeadPass(
            outputs["entering.1"][0], outputs["logits"][0], views["tokens"][0], views["chances"][0]
        )
        bound = self._engines[masked].bind(
            inputs | {f"past_{name}": tensor for name, tensor in memory.items()},
            outputs | {f"present_{name}": tensor for name, tensor in memory.items()},
        )
        quick = {name: views[name] for name in ("ids", "positions", "last", "total")}
        return _Pass(bound=bound, carried=inputs["carried"][0], output=said, **quick)
