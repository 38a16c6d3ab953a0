"""Decoders and draft heads by engines that know tensors alone: rows beside the whole memory of a cache.

What of the memory is valid, and which rows see which, stands in a mask; so shapes and addresses stay what
they are while a text grows. The new rows' keys and values come out of a run and are put into the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evspec_ros.engines.decoder import DecoderPass, Rows
from evspec_ros.engines.draft_head import LevelEngine, UnseenPass
from evspec_ros.engines.networks import Network, decoder_rows, head_level, memory_names
from evspec_ros.engines.onnx_runtime import BoundPasses
from evspec_ros.engines.protocol import Bound, Engine
from evspec_ros.networks.devices import uploaded
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.llama import KVCache, LlamaDecoder
from evspec_ros.sizes import ROW_BUCKETS

MakeEngine = Callable[[Network], Engine]


@dataclass(frozen=True, eq=False)
class _BoundRows:
    bound: Bound
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class RowsNetwork:
    """A network of rows (`decoder_rows`, `head_level`) on an engine; its tensors are checked when it is made.

    Raises EngineError for an engine of another network.
    """

    def __init__(self, network: Network, make: MakeEngine) -> None:
        self._network = network
        self._engine = make(network)
        self._given = network.run(network.inputs)
        self._engine.bind(network.inputs, {name: one.contiguous() for name, one in self._given.items()})
        self._bound = BoundPasses(self._bind)

    def run(
        self,
        rows: Mapping[str, Tensor],
        cache: KVCache,
        depths: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Mapping[str, Tensor]:
        """What T new rows give, which the next run over as many overwrites; they are appended to the cache.

        rows: those of the inputs that they are made of; depths, visible: as in `decoder.Rows`.
        """
        count, prefix = next(iter(rows.values())).shape[1], cache.length
        cache.begin(count)
        # A prompt sees no memory; there are many lengths of it, so it is bound for this once.
        alone = prefix == 0 and count > 1
        padded = count if alone else self._padded(count)
        one = self._bind((count, True), cache) if alone else self._bound.get((padded, False), cache)
        for name, tensor in rows.items():
            one.inputs[name][:, :count].copy_(tensor)
            one.inputs[name][:, count:] = tensor[:, -1:]  # padding repeats the last row
        where = torch.device("cpu") if depths is None else depths.device
        mask, places = one.inputs["mask"], torch.arange(count) if depths is None else depths
        repeated = torch.arange(padded, device=where).clamp_(max=count - 1)
        seen = self._mask(prefix, count, mask.shape[1] - padded, visible)[repeated]
        seen = F.pad(seen, (0, padded - count), value=-torch.inf)
        one.inputs["positions"].copy_(uploaded(prefix + places[repeated], mask.device))
        mask.copy_(uploaded(seen, mask.device))
        one.bound.run()
        given = {name: self._first(name, tensor, count) for name, tensor in one.outputs.items()}
        for memory, new in ((cache.k, given["k"]), (cache.v, given["v"])):
            memory[:, :, :, prefix : prefix + count] = new
        return given

    @property
    def _captures(self) -> bool:
        return self._given["k"].is_cuda

    def _padded(self, count: int) -> int:
        """Rows of the pass that runs so many: on a GPU one is captured for a few numbers alone."""
        if not self._captures:
            return count
        return next((rows for rows in ROW_BUCKETS if rows >= count), count)

    def _first(self, name: str, tensor: Tensor, count: int) -> Tensor:
        """Of an output the first `count` rows."""
        (axis,) = self._network.dynamic[name]
        return tensor.narrow(axis, 0, count)

    def describe(self) -> str:
        """What computes."""
        return self._engine.describe()

    @staticmethod
    def _mask(prefix: int, count: int, held: int, visible: Tensor | None) -> Tensor:
        """[T, held + T] where `visible` is: 0 where a row sees one, the cached ones first, else -inf."""
        if visible is None:
            visible = torch.ones(count, count, dtype=torch.bool).tril_()
        seen = torch.zeros(count, held + count, dtype=torch.bool, device=visible.device)
        seen[:, :prefix] = True
        earlier = visible.shape[1] - count  # rows of the cache that not every new row sees
        seen[:, prefix - earlier : prefix] = visible[:, :earlier]
        seen[:, held:] = visible[:, earlier:]
        return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)

    def _bind(self, shape: tuple[int, bool], cache: KVCache) -> _BoundRows:
        """shape: rows, and whether they stand alone, beside a memory of one row that nobody sees."""
        count, alone = shape
        network, held = self._network, 1 if alone else cache.capacity
        sizes = {"T": count, "C": held, "S": held + count}
        memory = [*cache.k, *cache.v]
        past = [one[:, :, :1].contiguous() for one in memory] if alone else memory
        of_memory = dict(zip(memory_names(len(cache.k)), past, strict=True))

        def empty(name: str, example: Tensor) -> Tensor:
            axes = network.dynamic.get(name, {})
            shape = [sizes[axes[axis]] if axis in axes else size for axis, size in enumerate(example.shape)]
            return torch.empty(shape, dtype=example.dtype, device=example.device)

        inputs = {name: of_memory.get(name, one) for name, one in network.inputs.items()}
        inputs |= {name: empty(name, one) for name, one in network.inputs.items() if name not in of_memory}
        outputs = {name: empty(name, one) for name, one in self._given.items()}
        return _BoundRows(self._engine.bind(inputs, outputs), inputs, outputs)


class RowsDecoder:
    """A decoder on an engine. The tensors that a pass gives are overwritten by the next one."""

    same_rows = False

    def __init__(self, backend: str, decoder: LlamaDecoder, lm_head: nn.Module, make: MakeEngine) -> None:
        self.backend = backend
        self._decoder, self._lm_head, self._make = decoder, lm_head, make
        self._networks: dict[tuple[int, ...], RowsNetwork] = {}

    def read(self, embeddings: Tensor, cache: KVCache, layers: tuple[int, ...]) -> DecoderPass:
        """See DecoderEngine."""
        found = self._of(layers).run({"embeddings": embeddings[None]}, cache)
        return DecoderPass(found["logits"][-1:], tuple(found[f"feature.{layer}"] for layer in layers))

    def prepare(self, cache: KVCache, layers: tuple[int, ...]) -> None:
        """There is nothing to prepare."""

    def run(self, rows: Rows, cache: KVCache, layers: tuple[int, ...]) -> DecoderPass:
        """See DecoderEngine."""
        ids = uploaded(rows.ids, self._decoder.embed_tokens.weight.device)
        embedded = {"embeddings": self._decoder.embed(ids)[None]}
        found = self._of(layers).run(embedded, cache, rows.depths, rows.visible)
        return DecoderPass(found["logits"], tuple(found[f"feature.{layer}"] for layer in layers))

    def describe(self) -> str:
        """What computes."""
        return self._of(()).describe()

    def _of(self, layers: tuple[int, ...]) -> RowsNetwork:
        if layers not in self._networks:
            network = decoder_rows(self._decoder, self._lm_head, layers)
            self._networks[layers] = RowsNetwork(network, self._make)
        return self._networks[layers]


class LevelHead(LevelEngine):
    """A draft head on an engine."""

    def __init__(self, head: DraftHead, target: LlamaDecoder, lm_head: nn.Module, make: MakeEngine) -> None:
        super().__init__(head)
        self._target = target
        self._network = RowsNetwork(head_level(head, target.norm, lm_head), make)

    def level(
        self,
        ids: Tensor,
        carried: Tensor,
        cache: KVCache,
        depths: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> UnseenPass:
        """See LevelEngine."""
        given = {"embeddings": self._target.embed(ids)[None], "carried": carried[None]}
        found = self._network.run(given, cache, depths, visible)
        names = UnseenPass._fields
        return UnseenPass(*(found[name] if visible is not None else found[name][-1:] for name in names))
