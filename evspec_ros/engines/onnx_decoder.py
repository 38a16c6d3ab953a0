"""A decoder's passes on the CPU through ONNX Runtime, whose packed weights make few rows cheap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evspec_ros.engines.decoder import DecoderPass, Rows, TorchDecoder
from evspec_ros.engines.onnx_runtime import BoundPasses, CachePass, OnnxEngine
from evspec_ros.networks.llama import KVCache, LlamaDecoder


@dataclass(frozen=True, eq=False)
class _BoundDecoder:
    """Passes over one number of rows: embeddings [T, D] are read, output is overwritten."""

    bound: CachePass
    embeddings: Tensor
    output: DecoderPass


class OnnxDecoder:
    """A float32 decoder on the CPU; as many threads as torch has when it is made.

    The tensors that a pass gives are overwritten by the next pass over as many rows.
    """

    backend = "onnxruntime"
    same_rows = False

    def __init__(self, decoder: LlamaDecoder, lm_head: nn.Linear) -> None:
        from evspec_ros.engines.decoder_graph import decoder_graph  # which imports onnx

        self._embedding = decoder.embed_tokens.weight.detach()
        self._modules = TorchDecoder(decoder, lm_head)
        self._config = decoder.config
        self._vocabulary = lm_head.out_features
        graph = decoder_graph(decoder.config, decoder.layers, decoder.rotary, decoder.norm, lm_head)
        self._engine = OnnxEngine(graph, torch.get_num_threads())
        self._passes = BoundPasses(self._bind)

    def read(self, embeddings: Tensor, cache: KVCache, layers: tuple[int, ...]) -> DecoderPass:
        """See DecoderEngine. The weights are the steps' own: the first of these finds them in the caches."""
        count, prefix = len(embeddings), cache.length
        if prefix + count > self._config.max_positions:
            return self._modules.read(embeddings, cache, layers)
        cache.begin(count)
        one = self._bind((count, layers), cache)  # for this prompt alone: there are many lengths
        one.embeddings.copy_(embeddings)
        one.bound.run(prefix)
        return DecoderPass(one.output.logits[-1:], one.output.features)

    def prepare(self, cache: KVCache, layers: tuple[int, ...]) -> None:
        """There is nothing to prepare."""

    def run(self, rows: Rows, cache: KVCache, layers: tuple[int, ...]) -> DecoderPass:
        """See DecoderEngine."""
        count, prefix = rows.ids.numel(), cache.length
        if prefix + count > self._config.max_positions:  # several texts in one cache: its attention takes
            return self._modules.run(rows, cache, layers)  # no more rows than there are positions
        cache.begin(count)
        one = self._passes.get((count, layers), cache)
        torch.index_select(self._embedding, 0, rows.ids, out=one.embeddings)
        one.bound.run(prefix, rows.depths, rows.visible)
        return one.output

    def describe(self) -> str:
        """ONNX Runtime's version and threads."""
        return self._engine.describe()

    def _bind(self, shape: tuple[int, tuple[int, ...]], cache: KVCache) -> _BoundDecoder:
        """Passes over so many rows that give the features of these layers."""
        (rows, layers), size = shape, self._config.hidden_size
        embeddings = torch.empty(1, rows, size)
        entering = {index: torch.empty(1, rows, size) for index in set(layers) - {0}}
        outputs = {"logits": torch.empty(1, rows, self._vocabulary)}
        outputs |= {f"entering.{index}": tensor for index, tensor in entering.items()}
        bound = CachePass(self._engine, cache, rows, {"embeddings": embeddings}, outputs, masked=True)
        features = tuple(embeddings[0] if index == 0 else entering[index][0] for index in layers)
        return _BoundDecoder(bound, embeddings[0], DecoderPass(outputs["logits"][0], features))
