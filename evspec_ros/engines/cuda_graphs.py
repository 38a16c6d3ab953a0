"""Steps and verifications on a GPU as captured CUDA graphs, one per number of rows.

A pass of a small decoder layer keeps a GPU busy for less time than Python needs to launch its kernels; a
captured pass is launched whole. Capturing wants fixed shapes and addresses and no look back at the host: the
whole capacity of the cache is attended under a mask, and where the prefix ends stands in a tensor.
`static_pass`, which is what gets captured, runs on any device and is tested on the CPU. The capture itself
and its replay were never run: no GPU was at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from evspec_ros.engines.decoder import DecoderPass, Rows, TorchDecoder
from evspec_ros.errors import EngineError
from evspec_ros.networks.llama import KVCache, LlamaDecoder

Output = TypeVar("Output")

_WARM_UPS = 3  # passes before a capture, so that libraries have chosen kernels and allocated workspaces


@dataclass(frozen=True, eq=False)
class StaticRows:
    """T rows at fixed addresses on the device: ids, depths int64 [T], visible bool [T, T], and start int64
    [1], the prefix's length.
    """

    ids: Tensor
    depths: Tensor
    visible: Tensor
    start: Tensor

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> StaticRows:
        """Of `rows` rows, causal."""
        whole = torch.zeros(2 * rows + 1, dtype=torch.int64, device=device)
        visible = torch.ones(rows, rows, dtype=torch.bool, device=device).tril_()
        return cls(whole[:rows], whole[rows : 2 * rows], visible, whole[2 * rows :])

    def fill(self, rows: Rows, prefix: int) -> None:
        """Other rows of the same number, without waiting for the device."""
        count = rows.ids.numel()
        depths = torch.arange(count) if rows.depths is None else rows.depths
        visible = torch.ones(count, count, dtype=torch.bool).tril_() if rows.visible is None else rows.visible
        for place, values in (
            (self.ids, rows.ids),
            (self.depths, depths),
            (self.visible, visible),
            (self.start, torch.tensor([prefix])),
        ):
            pinned = values.pin_memory() if place.is_cuda else values
            place.copy_(pinned, non_blocking=True)


class _StaticCache(KVCache):
    """A cache's memory, written at rows that a tensor on the device names and read as a whole."""

    def __init__(self, cache: KVCache, rows: Tensor) -> None:
        self.k, self.v, self._rows = cache.k, cache.v, rows

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the rows of one layer [B, K, T, d]; all rows [B, K, capacity, d], valid or not."""
        self.k[layer].index_copy_(2, self._rows, k)
        self.v[layer].index_copy_(2, self._rows, v)
        return self.k[layer], self.v[layer]


def static_pass(
    decoder: LlamaDecoder, lm_head: nn.Module, cache: KVCache, rows: StaticRows, layers: tuple[int, ...]
) -> DecoderPass:
    """What DecoderEngine.run computes, with no shape and no branch that depends on a value; of the cache
    `k` and `v` alone are read and written.
    """
    count, device = rows.ids.numel(), rows.ids.device
    new_rows = rows.start + torch.arange(count, device=device)  # of the new rows in the cache
    rotary = decoder.rotary.at(rows.start + rows.depths)
    hidden = decoder.embed(rows.ids)[None]
    columns = torch.arange(cache.capacity, device=device)
    seen = (columns < rows.start).repeat(count, 1)  # [T, capacity]: the prefix, then the rows of the tree
    seen.index_copy_(1, new_rows, rows.visible)
    mask = torch.zeros_like(seen, dtype=hidden.dtype).masked_fill_(~seen, float("-inf"))

    memory = _StaticCache(cache, new_rows)
    output = decoder.through(hidden, rotary, mask, memory, layers)
    return DecoderPass(lm_head(output.hidden[0]), tuple(feature[0] for feature in output.features))


def captured(device: torch.device, compute: Callable[[], Output]) -> tuple[torch.cuda.CUDAGraph, Output]:
    """What `compute` does on a GPU as a graph, and what it gives, which every replay overwrites. Other
    threads may use the GPU meanwhile.
    """
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside):
        for _ in range(_WARM_UPS):
            compute()
    torch.cuda.current_stream(device).wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = compute()
    return graph, output


class _Captured:
    """`static_pass` over one number of rows as a CUDA graph; its output stays at one place."""

    def __init__(
        self,
        decoder: LlamaDecoder,
        lm_head: nn.Module,
        cache: KVCache,
        rows: StaticRows,
        layers: tuple[int, ...],
    ) -> None:
        self.rows = rows
        self._graph, self._output = captured(
            rows.ids.device, lambda: static_pass(decoder, lm_head, cache, rows, layers)
        )

    def replay(self) -> DecoderPass:
        """The pass over what `rows` holds now."""
        self._graph.replay()
        return self._output


class GraphedDecoder:
    """A decoder on a GPU; a number of rows is captured when it is first met.

    The tensors that a pass gives are overwritten by the next pass over as many rows. Raises EngineError for a
    decoder that is not on a GPU.
    """

    backend = "cuda_graphs"

    def __init__(self, decoder: LlamaDecoder, lm_head: nn.Module) -> None:
        self._device = decoder.embed_tokens.weight.device
        if self._device.type != "cuda":
            raise EngineError("CUDA graphs need a GPU; set device to cuda, or backend to auto.")
        self._decoder = decoder
        self._lm_head = lm_head
        self._modules = TorchDecoder(decoder, lm_head)
        self._cache: KVCache | None = None  # what the graphs were captured on
        self._graphs: dict[tuple[int, tuple[int, ...]], _Captured] = {}

    def read(self, embeddings: Tensor, cache: KVCache, layers: tuple[int, ...]) -> DecoderPass:
        """See DecoderEngine; the modules do it, as a prompt keeps a GPU busy by itself."""
        return self._modules.read(embeddings, cache, layers)

    def run(self, rows: Rows, cache: KVCache, layers: tuple[int, ...]) -> DecoderPass:
        """See DecoderEngine."""
        count, prefix = rows.ids.numel(), cache.length
        if rows.visible is not None and rows.visible.shape[1] > count:  # several texts; a graph knows one
            return self._modules.run(rows, cache, layers)
        cache.begin(count)
        if cache is not self._cache:
            self._cache, self._graphs = cache, {}
        graph = self._graphs.get((count, layers))
        static = StaticRows.empty(count, self._device) if graph is None else graph.rows
        static.fill(rows, prefix)  # before a capture, too, whose warm-ups write into the cache
        if graph is None:
            graph = _Captured(self._decoder, self._lm_head, cache, static, layers)
            self._graphs[count, layers] = graph
        return graph.replay()

    def describe(self) -> str:
        """Torch and the GPU."""
        return f"torch {torch.__version__} with CUDA graphs on {torch.cuda.get_device_name(self._device)}"
