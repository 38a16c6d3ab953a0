"""Steps and verifications on the CPU through ONNX Runtime, whose packed weights make few rows cheap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evspec_ros.engines.decoder import DecoderPass, Rows, TorchDecoder
from evspec_ros.engines.decoder_graph import decoder_graph
from evspec_ros.engines.onnx_runtime import BoundTensors, OnnxEngine
from evspec_ros.networks.llama import KVCache, LlamaConfig, LlamaDecoder, RMSNorm, Rotary


@dataclass(frozen=True, eq=False)
class _Pass:
    """Tensors of passes over one number of rows with one choice of layers, named as in `decoder_graph`."""

    bound: BoundTensors
    embeddings: Tensor
    positions: Tensor
    last: Tensor
    total: Tensor
    bias: Tensor  # [T * capacity], of which a pass takes the first T * S
    output: DecoderPass


class OnnxDecoder:
    """A float32 decoder on the CPU; as many threads as torch has when it is made.

    The tensors that a pass gives are overwritten by the next pass over as many rows.
    """

    def __init__(self, decoder: LlamaDecoder, lm_head: nn.Linear) -> None:
        self._embedding = decoder.embed_tokens.weight.detach()
        self._modules = TorchDecoder(decoder, lm_head)
        self._positions = decoder.config.max_positions
        self._layers = _OnnxLayers(decoder.config, decoder.layers, decoder.rotary, decoder.norm, lm_head)

    def run(self, rows: Rows, cache: KVCache, layers: tuple[int, ...]) -> DecoderPass:
        """See DecoderEngine."""
        if cache.length + rows.ids.numel() > self._positions:  # several texts in one cache: its attention
            return self._modules.run(rows, cache, layers)  # takes no more rows than there are positions
        tensors = self._layers.begin(rows.ids.numel(), cache, layers)
        torch.index_select(self._embedding, 0, rows.ids, out=tensors.embeddings[0])
        return self._layers.run(tensors, cache, rows.depths, rows.visible)

    def describe(self) -> str:
        """ONNX Runtime's version and threads."""
        return self._layers.engine.describe()


class _OnnxLayers:
    """Decoder layers, a norm and an output head as a graph, bound to one cache's memory at a time."""

    def __init__(
        self, config: LlamaConfig, blocks: nn.ModuleList, rotary: Rotary, norm: RMSNorm, lm_head: nn.Linear
    ) -> None:
        self._config = config
        self._vocabulary = lm_head.out_features
        self.engine = OnnxEngine(
            decoder_graph(config, blocks, rotary, norm, lm_head), torch.get_num_threads()
        )
        self._cache: KVCache | None = None  # what the passes are bound to
        self._passes: dict[tuple[int, tuple[int, ...]], _Pass] = {}

    def begin(self, rows: int, cache: KVCache, layers: tuple[int, ...]) -> _Pass:
        """Announce a pass of so many rows to the cache; the tensors whose `embeddings` are to be filled."""
        cache.begin(rows)
        return self._pass(rows, cache, layers)

    def run(
        self, tensors: _Pass, cache: KVCache, depths: Tensor | None, visible: Tensor | None
    ) -> DecoderPass:
        """The pass; depths and visible as in `Rows`."""
        count = tensors.embeddings.shape[1]
        prefix = cache.length - count
        if depths is None:
            torch.arange(prefix, cache.length, out=tensors.positions[0])
        else:
            torch.add(depths, prefix, out=tensors.positions[0])
        tensors.last.fill_(cache.length - 1)
        tensors.total.fill_(cache.length)
        bias = tensors.bias[: count * cache.length].view(1, 1, count, cache.length).zero_()
        if visible is not None:
            bias[0, 0, :, -visible.shape[1] :].masked_fill_(~visible, float("-inf"))
        tensors.bound.put("bias", bias)
        tensors.bound.run()
        return tensors.output

    def _pass(self, rows: int, cache: KVCache, layers: tuple[int, ...]) -> _Pass:
        if cache is not self._cache:
            self._cache, self._passes = cache, {}
        if (rows, layers) not in self._passes:
            self._passes[rows, layers] = self._bound(rows, cache, layers)
        return self._passes[rows, layers]

    def _bound(self, rows: int, cache: KVCache, layers: tuple[int, ...]) -> _Pass:
        """New tensors, bound together with the cache's memory."""
        assert cache.k.dtype == torch.float32, "ONNX Runtime's attention reads a float32 cache"
        sizes = self._config
        embeddings = torch.empty(1, rows, sizes.hidden_size)
        entering = {index: torch.empty(1, rows, sizes.hidden_size) for index in set(layers) - {0}}
        inputs = {
            "embeddings": embeddings,
            "positions": torch.empty(1, rows, dtype=torch.int64),
            "bias": torch.zeros(rows * cache.capacity),
            "last": torch.empty(1, dtype=torch.int32),
            "total": torch.empty((), dtype=torch.int32),
        }
        outputs = {"logits": torch.empty(1, rows, self._vocabulary)}
        outputs |= {f"entering.{index}": tensor for index, tensor in entering.items()}
        for index in range(sizes.num_layers):
            for part, memory in (("k", cache.k[index]), ("v", cache.v[index])):
                inputs[f"past_{part}.{index}"] = outputs[f"present_{part}.{index}"] = memory
        features = tuple(embeddings[0] if index == 0 else entering[index][0] for index in layers)
        return _Pass(
            bound=self.engine.bind(inputs, outputs),
            output=DecoderPass(outputs["logits"][0], features),
            **{name: inputs[name] for name in ("embeddings", "positions", "last", "total", "bias")},
        )
