"""Steps and verifications on the CPU through ONNX Runtime, whose packed weights make few rows cheap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evspec_ros.engines.decoder import DecoderPass, Rows
from evspec_ros.engines.decoder_graph import decoder_graph
from evspec_ros.engines.onnx_runtime import BoundTensors, OnnxEngine
from evspec_ros.networks.llama import KVCache, LlamaDecoder


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
        self._config = decoder.config
        self._embedding = decoder.embed_tokens.weight.detach()
        self._engine = OnnxEngine(decoder_graph(decoder, lm_head), torch.get_num_threads())
        self._cache: KVCache | None = None  # what the passes are bound to
        self._passes: dict[tuple[int, tuple[int, ...]], _Pass] = {}

    def run(self, rows: Rows, cache: KVCache, layers: tuple[int, ...]) -> DecoderPass:
        """See DecoderEngine."""
        count, prefix = rows.ids.numel(), cache.length
        cache.begin(count)
        tensors = self._pass(count, cache, layers)
        torch.index_select(self._embedding, 0, rows.ids, out=tensors.embeddings[0])
        if rows.depths is None:
            torch.arange(prefix, cache.length, out=tensors.positions[0])
        else:
            torch.add(rows.depths, prefix, out=tensors.positions[0])
        tensors.last.fill_(cache.length - 1)
        tensors.total.fill_(cache.length)
        bias = tensors.bias[: count * cache.length].view(1, 1, count, cache.length).zero_()
        if rows.visible is not None:
            bias[0, 0, :, prefix:].masked_fill_(~rows.visible, float("-inf"))
        tensors.bound.put("bias", bias)
        tensors.bound.run()
        return tensors.output

    def describe(self) -> str:
        """ONNX Runtime's version and threads."""
        return self._engine.describe()

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
        outputs = {"logits": torch.empty(1, rows, sizes.vocab_size)}
        outputs |= {f"entering.{index}": tensor for index, tensor in entering.items()}
        for index in range(sizes.num_layers):
            for part, memory in (("k", cache.k[index]), ("v", cache.v[index])):
                inputs[f"past_{part}.{index}"] = outputs[f"present_{part}.{index}"] = memory
        features = tuple(embeddings[0] if index == 0 else entering[index][0] for index in layers)
        return _Pass(
            bound=self._engine.bind(inputs, outputs),
            output=DecoderPass(outputs["logits"][0], features),
            **{name: inputs[name] for name in ("embeddings", "positions", "last", "total", "bias")},
        )
