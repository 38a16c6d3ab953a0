"""Steps and verifications on a GPU as captured CUDA graphs, for a few numbers of rows and of keys.

A pass of a small decoder layer keeps a GPU busy for less time than Python needs to launch its kernels; a
captured pass is launched whole. Capturing wants fixed shapes and addresses and no look back at the host: so
the rows are padded to one of ROW_BUCKETS, as many of the cache's rows are read as the next multiple of
KEY_STEP holds, under a mask, and where the prefix ends stands in a tensor. Rows of padding repeat the last
row: they compute what it computes and write it to its place.

All graphs are captured behind the first prompt, and again behind the first one that needs a larger cache, so
that no text waits for one. `static_pass`, which is what gets captured, runs on any device, and all but the
capture itself (`capture`) is tested on the CPU.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evspec_ros.engines.capture import Captured, Capturing, graph_pool
from evspec_ros.engines.decoder import DecoderPass, Rows, TorchDecoder
from evspec_ros.networks.attention import hidden_score
from evspec_ros.networks.kernels import compiler_for, rotate_into
from evspec_ros.networks.llama import KVCache, LlamaDecoder, dequantise_rows, quantise_rows
from evspec_ros.sizes import KEY_STEP, ROW_BUCKETS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class StaticRows:
    """B rows at fixed addresses on the device: ids, depths and places (behind the prefix) int64 [B], visible
    bool [B, B], and start int64 [1], the prefix's length.
    """

    ids: Tensor
    depths: Tensor
    places: Tensor
    start: Tensor
    visible: Tensor
    _whole: Tensor  # what the four before it are views of

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> StaticRows:
        """Of so many rows, all of them one."""
        whole = torch.zeros(3 * rows + 1, dtype=torch.int64, device=device)
        visible = torch.ones(rows, rows, dtype=torch.bool, device=device)
        ids, depths, places = whole[:-1].view(3, rows)
        return cls(ids, depths, places, whole[-1:], visible, whole)

    def fill(self, rows: Rows, prefix: int) -> None:
        """Other rows, at most B, the last of them repeated, without waiting for the device."""
        count, where = rows.ids.numel(), rows.ids.device
        places = torch.arange(len(self.ids), device=where).clamp_(max=count - 1)
        depths = torch.arange(count, device=where) if rows.depths is None else rows.depths
        visible = rows.visible
        if visible is None:
            visible = torch.ones(count, count, dtype=torch.bool, device=where).tril_()
        start = rows.ids.new_full((1,), prefix)
        numbers = torch.cat((rows.ids[places], depths[places], places, start))
        for place, values in ((self._whole, numbers), (self.visible, visible[places][:, places])):
            pinned = values.pin_memory() if place.is_cuda and not values.is_cuda else values
            place.copy_(pinned, non_blocking=True)


class StaticCache(KVCache):
    """A cache's memory, written at rows that a tensor on the device names; its first `keys` rows are read."""

    divisible = True  # as `static_pass` makes the mask

    def __init__(self, cache: KVCache, rows: Tensor, keys: int) -> None:
        self._kv, self._scales = cache.memory
        self._rows, self._keys = rows, keys

    def _store(self, which: int, layer: int, new: Tensor) -> Tensor:
        """Store one layer's keys (0) or values (1) [B, K, T, d]; [B, K, keys, d], valid or not."""
        rows, scales = self._kv[which, layer], self._scales[which, layer]
        if rows.dtype == torch.int8:
            numbers, scale = quantise_rows(new)
            rows.index_copy_(2, self._rows, numbers)
            scales.index_copy_(2, self._rows, scale)
            return dequantise_rows(rows[:, :, : self._keys], scales[:, :, : self._keys], new.dtype)
        rows.index_copy_(2, self._rows, new.to(rows.dtype))
        return rows[:, :, : self._keys].to(new.dtype)

    def turn(
        self, layer: int, heads: Tensor, sizes: tuple[int, int], cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See KVCache; turned and stored at once where rows are kept as they are computed."""
        memory = self._kv[:, layer]
        if memory.dtype != heads.dtype or compiler_for(heads) is None:
            return super().turn(layer, heads, sizes, cos, sin)
        q = rotate_into(heads, cos, sin, memory, self._rows)
        k, v = memory[:, :, :, : self._keys]
        return q, k, v


def static_pass(
    decoder: LlamaDecoder,
    lm_head: nn.Module,
    cache: KVCache,
    rows: StaticRows,
    keys: int,
    layers: tuple[int, ...],
) -> DecoderPass:
    """What DecoderEngine.run computes, with no shape and no branch that depends on a value; of the cache its
    memory alone is written, and read as far as `keys` rows.
    """
    new_rows = rows.start + rows.places  # of the new rows in the cache
    rotary = decoder.rotary.at(rows.start + rows.depths)
    hidden = decoder.embed(rows.ids)[None]
    columns = torch.arange(keys, device=rows.ids.device)
    seen = (columns < rows.start).repeat(len(rows.ids), 1)  # [B, keys]: the prefix, then the rows of the tree
    seen.index_copy_(1, new_rows, rows.visible)
    mask = torch.zeros_like(seen, dtype=hidden.dtype).masked_fill_(~seen, hidden_score(hidden.dtype))

    memory = StaticCache(cache, new_rows, keys)
    output = decoder.through(hidden, rotary, mask, memory, layers)
    return DecoderPass(lm_head(output.hidden[0]), tuple(feature[0] for feature in output.features))


def key_bucket(visible: int, capacity: int) -> int:
    """How many of a cache's rows are read where so many are valid."""
    return min(-(-visible // KEY_STEP) * KEY_STEP, capacity)


@dataclass(frozen=True, eq=False)
class _CapturedRun:
    """A captured pass that gives the features of these layers."""

    layers: tuple[int, ...]
    captured: Captured[DecoderPass]

    def replay(self, count: int, layers: tuple[int, ...]) -> DecoderPass:
        """Its first `count` rows; `layers` are some of its own."""
        logits, features = self.captured.replay()
        return DecoderPass(logits[:count], tuple(features[self.layers.index(one)][:count] for one in layers))


class GraphedDecoder:
    """A decoder on a GPU; its passes over up to 64 rows are captured.

    The tensors that a pass gives are overwritten by the next passes. pool: captures the graphs, by default
    into the memory of those that run one after another with the target's; EngineError for a decoder that is
    not on a GPU where none is given. same_rows: every pass has the most rows and reads the whole cache, so
    that a row is computed by the same sums whether it stands alone or in a draft.
    """

    backend = "cuda_graphs"

    def __init__(
        self,
        decoder: LlamaDecoder,
        lm_head: nn.Module,
        pool: Capturing | None = None,
        *,
        same_rows: bool = False,
    ) -> None:
        self._device = decoder.embed_tokens.weight.device
        self._pool = pool or graph_pool(self._device)
        self._decoder = decoder
        self._lm_head = lm_head
        self._modules = TorchDecoder(decoder, lm_head)
        self.same_rows = same_rows
        self._buckets = ROW_BUCKETS[-1:] if same_rows else ROW_BUCKETS
        self._rows = {count: StaticRows.empty(count, self._device) for count in self._buckets}
        self._cache: KVCache | None = None  # what the graphs were captured on
        self._layers: tuple[int, ...] = ()  # all that were ever asked for
        self._graphs: dict[tuple[int, int], _CapturedRun] = {}  # by rows and keys

    def read(self, embeddings: Tensor, cache: KVCache, layers: tuple[int, ...]) -> DecoderPass:
        """See DecoderEngine; the modules do it, as a prompt keeps a GPU busy by itself."""
        return self._modules.read(embeddings, cache, layers)

    def prepare(self, cache: KVCache, layers: tuple[int, ...]) -> None:
        """See DecoderEngine; a graph for each number of rows and of keys that may follow is captured."""
        prefix = cache.length
        if prefix == cache.capacity:
            return
        keys = sorted({self._keys(rows, cache) for rows in range(prefix + 1, cache.capacity + 1)})
        every = [(rows, count) for rows in self._buckets for count in keys]
        self._follow(cache, layers)
        missing = [shape for shape in every if not self._has(shape, layers)]
        for done, shape in enumerate(missing, start=1):
            cache.begin(1)  # a row that the warm-ups may write
            self._rows[shape[0]].fill(Rows(torch.zeros(1, dtype=torch.int64)), prefix)
            self._capture(shape, cache)
            cache.truncate(prefix)
            logger.info("CUDA graph %d of %d: rows %d, keys %d", done, len(missing), *shape)

    def run(self, rows: Rows, cache: KVCache, layers: tuple[int, ...]) -> DecoderPass:
        """See DecoderEngine."""
        count, prefix = rows.ids.numel(), cache.length
        bucket = next((rows for rows in self._buckets if rows >= count), None)
        several = rows.visible is not None and rows.visible.shape[1] > count  # texts; a graph knows one
        if bucket is None or several:
            return self._modules.run(rows, cache, layers)
        cache.begin(count)
        self._follow(cache, layers)
        shape = bucket, self._keys(cache.length, cache)
        self._rows[bucket].fill(rows, prefix)  # before a capture, too, whose warm-ups write into the cache
        if not self._has(shape, layers):
            self._capture(shape, cache)
        return self._graphs[shape].replay(count, layers)

    def describe(self) -> str:
        """Torch and the GPU."""
        if self._device.type != "cuda":
            return f"torch {torch.__version__} on {self._device}"
        return f"torch {torch.__version__} with CUDA graphs on {torch.cuda.get_device_name(self._device)}"

    def _keys(self, visible: int, cache: KVCache) -> int:
        """How many of the cache's rows a pass reads that ends at so many."""
        return cache.capacity if self.same_rows else key_bucket(visible, cache.capacity)

    def _follow(self, cache: KVCache, layers: tuple[int, ...]) -> None:
        """Graphs of another cache are let go; what is captured from now on gives these layers as well."""
        if cache is not self._cache:
            self._cache, self._graphs = cache, {}
        self._layers = tuple(sorted({*self._layers, *layers}))

    def _has(self, shape: tuple[int, int], layers: tuple[int, ...]) -> bool:
        graph = self._graphs.get(shape)
        return graph is not None and {*layers} <= {*graph.layers}

    def _capture(self, shape: tuple[int, int], cache: KVCache) -> None:
        (count, keys), layers = shape, self._layers
        decoder, lm_head, rows = self._decoder, self._lm_head, self._rows[count]
        captured = self._pool.capture(lambda: static_pass(decoder, lm_head, cache, rows, keys, layers))
        self._graphs[shape] = _CapturedRun(layers, captured)
