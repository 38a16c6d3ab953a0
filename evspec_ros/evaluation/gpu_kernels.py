"""What compiled kernels and keys in parts bring, each by itself: part of `evspec bench gpu`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from evspec_ros.engines.capture import Capturing, NoPool, graph_pool
from evspec_ros.engines.cuda_graphs import GraphedDecoder, StaticCache
from evspec_ros.engines.decoder import Rows
from evspec_ros.evaluation.gpu_figures import Figure
from evspec_ros.networks.attention import attend, hidden_score
from evspec_ros.networks.kernels import (
    INDUCTOR,
    Kernels,
    add_norm,
    compiler_for,
    gated,
    using,
)
from evspec_ros.networks.llama import KVCache, LlamaDecoder
from evspec_ros.sizes import KEY_STEP

ROWS = (1, 24)
VERIFIED = (1, 25)
KEYS = 2304  # of a usual prompt, its text, and what is left of the last bucket
NORM, ROTARY, GATE = "norm + residual", "rotary + cache write", "silu x up"
PASS_ROWS = {"passes": 25, "attention": 10, NORM: 10, ROTARY: 10, GATE: 10}  # seconds that each may take
PLAIN, COMPILED = Kernels(None, split=False), Kernels(INDUCTOR, split=False)
PARTS = Kernels(INDUCTOR, split=True)


class PassBench:
    """A decoder's pass and what it consists of, captured where there is a GPU."""

    def __init__(
        self, decoder: LlamaDecoder, lm_head: nn.Module, ms: Callable[[Callable[[], object]], float]
    ) -> None:
        """ms: how long a call takes."""
        self._decoder, self._lm_head, self._ms = decoder, lm_head, ms
        self._sizes, self._weight = decoder.config, decoder.norm.weight
        self._keys = min(KEYS, self._sizes.max_positions // KEY_STEP * KEY_STEP)
        device = self._weight.device
        self._pool: Capturing = graph_pool(device) if device.type == "cuda" else NoPool()
        with torch.inference_mode():
            self._compiles = compiler_for(self._weight) is not None
            self._cache = KVCache(self._sizes, self._keys, dtype=self._weight.dtype, device=device)

    def measure(self, name: str) -> list[Figure]:
        """One of PASS_ROWS: passes (a step and a verification), attention (in one layer after the other, so
        that no cache of the GPU's holds the keys), or a function alone; plain and compiled, keys whole and in
        parts.
        """
        compiled = {"plain": PLAIN, "compiled": COMPILED}
        if name == "passes":
            ways, call, unit, numbers = {**compiled, "keys in parts": PARTS}, self._passed, "ms", VERIFIED
        elif name == "attention":
            ways = {"keys whole": PLAIN, "keys in parts": PARTS}
            call, unit, numbers = self._attended, "us", ROWS
        else:
            ways, call, unit, numbers = compiled, partial(self._called, name), "us", ROWS
        return [
            self._figure(f"{name} of {rows}, {way}", unit, kernels, partial(call, rows))
            for rows in numbers
            for way, kernels in ways.items()
        ]

    @torch.inference_mode()
    def _figure(self, name: str, unit: str, kernels: Kernels, measure: Callable[[], float]) -> Figure:
        if kernels.compiler is not None and not self._compiles:
            return Figure(name, None, unit, note="needs a GPU and Triton")
        with using(kernels):
            return Figure(name, measure(), unit)

    def _passed(self, rows: int) -> float:
        """Milliseconds of a captured pass behind as many rows as leave room for it."""
        engine, prefix = GraphedDecoder(self._decoder, self._lm_head, self._pool), self._keys - rows
        given = Rows(torch.zeros(rows, dtype=torch.int64))

        def run() -> None:
            self._cache.truncate(prefix)
            engine.run(given, self._cache, ())

        self._cache.truncate(0)
        self._cache.begin(prefix)
        found = self._ms(run)
        self._cache.truncate(0)
        return found

    def _attended(self, rows: int) -> float:
        sizes = self._sizes
        q = self._random(1, sizes.num_heads, rows, sizes.head_dim)
        mask = q.new_zeros(rows, self._keys)
        mask[:, -rows:].masked_fill_(torch.ones_like(mask[:, -rows:]).triu(1) > 0, hidden_score(mask.dtype))
        groups, scale = sizes.num_heads // sizes.num_kv_heads, sizes.head_dim**-0.5
        k, v = self._cache.k, self._cache.v
        return self._each_us(lambda layer: attend(q, k[layer], v[layer], mask, groups, scale, divisible=True))

    def _called(self, name: str, rows: int) -> float:
        sizes, places = self._sizes, torch.arange(rows, device=self._weight.device)
        if name == NORM:
            x = self._random(1, rows, sizes.hidden_size)
            return self._each_us(lambda _: add_norm(x, x, self._weight, sizes.rms_norm_eps))
        if name == GATE:
            x = self._random(1, rows, 2 * sizes.intermediate_size)
            return self._each_us(lambda _: gated(x))
        x = self._random(1, rows, sizes.num_heads + 2 * sizes.num_kv_heads, sizes.head_dim)
        cos, sin = (table.to(x.dtype) for table in self._decoder.rotary.at(places))
        heads, cache = x.transpose(1, 2), StaticCache(self._cache, places, self._keys)
        pair = sizes.num_heads, sizes.num_kv_heads
        return self._each_us(lambda layer: cache.turn(layer, heads, pair, cos, sin))

    def _each_us(self, call: Callable[[int], object]) -> float:
        """Microseconds of one of as many calls as there are layers, one behind the other."""

        def every() -> None:
            for layer in range(self._sizes.num_layers):
                call(layer)

        return self._ms(self._pool.capture(every).replay) * 1e3 / self._sizes.num_layers

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self._weight)
