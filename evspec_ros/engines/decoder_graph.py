"""A LLaMA decoder with its output head as an ONNX graph for ONNX Runtime's CPU kernels.

Built node by node, as no exporter makes these: one product for q, k and v, residual sum and norm in one, and
attention straight on the cache's memory (`com.microsoft.GroupQueryAttention`, whose present keys and values
are its past ones with the new rows written in place). Weights are initialisers, which ONNX Runtime packs for
its matrix kernels when it loads the graph.

Tensors by name; T rows, S visible rows, C the cache's capacity, as in `networks.llama`:

    embeddings float32 [1, T, D]       what the rows' tokens are embedded as
    positions  int64 [1, T]            their positions
    bias       float32 [1, 1, T, S]    added to the scores; attention is causal besides
    last       int32 [1]               S - 1
    total      int32 []                S
    past_k.l, past_v.l, present_k.l, present_v.l  float32 [1, K, C, d] of layer l; bind both to one memory
    logits     float32 [1, T, V]
    entering.l float32 [1, T, D]       what enters layer l = 1 .. L, L: the last layer's output before norm
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from evspec_ros.errors import EngineError
from evspec_ros.networks.draft_head import DraftHead, Eagle3Head, EagleHead, ReducedHead
from evspec_ros.networks.llama import DecoderLayer, LlamaConfig, RMSNorm, Rotary

_OPSET, _IR = 20, 10  # what ONNX Runtime 1.22, the oldest with `attention_bias` on the CPU, understands
_MICROSOFT = "com.microsoft"


def decoder_graph(
    config: LlamaConfig, blocks: nn.ModuleList, rotary: Rotary, norm: RMSNorm, lm_head: nn.Linear
) -> onnx.ModelProto:
    """The graph of float32 decoder layers; weights are copied into it (protobuf holds at most 2 GiB)."""
    graph = _Graph(config, lm_head.out_features, masked=True)
    graph.linear(graph.layers("embeddings", blocks, rotary, norm), lm_head.weight, "logits")
    rows: list[int | str] = [1, "T", config.hidden_size]
    entering = [(f"entering.{index + 1}", rows, TensorProto.FLOAT) for index in range(len(blocks))]
    logits: list[int | str] = [1, "T", lm_head.out_features]
    return graph.model([_tensor("embeddings", rows)], [("logits", logits, TensorProto.FLOAT), *entering])


def draft_graph(
    head: DraftHead,
    embedding: Tensor,
    norm: RMSNorm,
    lm_head: nn.Linear,
    candidates: int,
    *,
    masked: bool = False,
    steps: int = 1,
) -> onnx.ModelProto:
    """A draft head from token ids to the likeliest next tokens; embedding [V, D], norm and lm_head are the
    target's. Tensors as in `decoder_graph`, without bias where it is not masked, and besides:

        ids      int64 [1, T]                         the tokens at t + 1, in the place of embeddings
        carried  float32 [1, T, d]
        probabilities, tokens  float32, int64 [1, T, candidates], the most probable first

    Where it is not masked its rows are a text, and of its outputs (`entering.1`, `logits`, `probabilities`,
    `tokens`) only the last row is computed, [1, 1, ...]. Each further step reads the likeliest token of the
    one before, T = 1: its tensors carry its number (`tokens.1`), its rows go to the same memory.
    """
    norm, readout = cast("tuple[RMSNorm, nn.Linear]", head.readout(norm, lm_head))
    graph = _Graph(head.config.layer, readout.out_features, masked)
    ids, carried = "ids", "carried"
    for step in range(steps):
        graph.suffix = f".{step}" if step else ""
        x = graph.head_rows(head, embedding, ids, carried)
        normed = graph.layers(x, head.layers, head.rotary, norm, last_row=steps == 1 and not masked)
        reduced = isinstance(readout, ReducedHead)
        logits = graph.linear(normed, readout.weight, "reduced_logits" if reduced else "logits")
        spread = graph.node("Softmax", [logits], [graph.name("spread")], axis=-1)
        best = graph.whole("candidates", [candidates])
        indices = graph.name("indices" if reduced else "tokens")
        graph.node("TopK", [spread, best], [graph.name("probabilities"), indices], axis=-1)
        if isinstance(readout, ReducedHead):
            vocabulary = graph.whole("vocabulary", readout.tokens.tolist())
            graph.node("Gather", [vocabulary, indices], [graph.name("tokens")])
            pads = [graph.whole("pads", [0, 1]), graph.constant("never", lambda: torch.tensor(-torch.inf))]
            padded = graph.node("Pad", [logits, *pads, graph.whole("last_axis", [2])], [graph.name("padded")])
            every = graph.whole("every", readout.indices.tolist())
            graph.node("Gather", [padded, every], [graph.name("logits")], axis=2)
        if step + 1 < steps:
            first = [graph.whole("0", [0]), graph.whole("1", [1]), graph.whole("axis", [2])]
            ids = graph.node("Slice", [graph.name("tokens"), *first], [graph.name("likeliest")])
            ids = graph.node("Squeeze", [ids, graph.whole("axis", [2])], [graph.name("next")])
            carried = graph.name("entering.1")
    given: int | str = "T" if masked else 1
    sizes = {
        "entering.1": head.config.hidden_size,
        "logits": readout.out_features,
        "probabilities": candidates,
    }
    return graph.model(
        [
            _tensor("ids", [1, "T"], TensorProto.INT64),
            _tensor("carried", [1, "T", head.config.hidden_size]),
        ],
        [
            *((name, [1, given, size], TensorProto.FLOAT) for name, size in sizes.items()),
            ("tokens", [1, given, candidates], TensorProto.INT64),
        ],
        steps,
    )


class _Graph:
    """Nodes, weights, inputs and outputs as they come; every method returns the names of what it computes."""

    def __init__(self, config: LlamaConfig, vocabulary: int, masked: bool) -> None:
        self._config = config
        self._vocabulary = vocabulary
        self._masked = masked
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self.suffix = ""  # of what is computed, where a graph computes it several times

    def name(self, tensor: str) -> str:
        """A tensor of the step that is being built."""
        return tensor + self.suffix

    def head_rows(self, head: DraftHead, embedding: Tensor, ids: str, carried: str) -> str:
        """What a draft head's layer reads; the target's embeddings pass through the head's own product once
        and for all.
        """
        if isinstance(head, Eagle3Head):
            table = self.constant("table", lambda: embedding @ head.embed.weight.T)
            carry = self.rms_norm(carried, head.carry_norm.weight, "carry")
        elif isinstance(head, EagleHead):
            of_embedding, of_carried = torch.split(head.fc.weight, head.config.hidden_size, 1)
            table = self.constant("table", lambda: embedding @ of_embedding.T + head.fc.bias)
            carry = self.linear(carried, of_carried, "carry")
        else:
            raise EngineError(f"There is no graph for a draft head of kind {head.config.kind!r}; use torch.")
        embedded = self.node("Gather", [table, ids], [self.name("embedded")])
        return self.node("Add", [embedded, carry], [self.name("embeddings")])

    def layers(
        self, x: str, blocks: nn.ModuleList, rotary: Rotary, norm: RMSNorm, *, last_row: bool = False
    ) -> str:
        """Decoder layers and the norm behind them; last_row: of one layer, what only its last row gives."""
        self.constant("cos", lambda: rotary.cos[:, : self._config.head_dim // 2])
        self.constant("sin", lambda: rotary.sin[:, self._config.head_dim // 2 :])
        layers = [cast("DecoderLayer", layer) for layer in blocks]
        entering_norms = [layer.input_layernorm.weight for layer in layers[1:]] + [norm.weight]
        residual = x
        normed = self.rms_norm(residual, layers[0].input_layernorm.weight, "normed")
        for index, (layer, following) in enumerate(zip(layers, entering_norms, strict=True)):
            mixed = self.attention(normed, layer, index)
            if last_row:
                mixed, residual = self.last_row(mixed, "mixed"), self.last_row(residual, "residual")
            attended = self.linear(mixed, layer.self_attn.o_proj.weight, f"attended.{index}")
            residual, normed = self.add_norm(
                attended, residual, layer.post_attention_layernorm.weight, f"middle.{index}"
            )
            changed = self.mlp(normed, layer, index)
            residual, normed = self.add_norm(changed, residual, following, f"entering.{index + 1}")
        return normed

    def whole(self, name: str, values: list[int]) -> str:
        """Whole numbers."""
        self._weights[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def constant(self, name: str, value: Callable[[], Tensor]) -> str:
        """A weight, which several steps may share."""
        if name not in self._weights:
            array = value().detach().numpy().astype(np.float32)
            self._weights[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def node(self, operator: str, inputs: list[str], outputs: list[str], **attributes: object) -> str:
        """One operator, ONNX's own where no domain is given; its first output."""
        self._nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs[0]

    def linear(self, x: str, weight: Tensor, name: str) -> str:
        """X [1, T, in] times a torch weight [out, in] -> [1, T, out]."""
        return self.node("MatMul", [x, self.constant(f"weight.{name}", lambda: weight.T)], [self.name(name)])

    def rms_norm(self, x: str, weight: Tensor, name: str) -> str:
        """An RMS norm alone."""
        return self.node(
            "SimplifiedLayerNormalization",
            [x, self.constant(f"norm.{name}", lambda: weight)],
            [self.name(name)],
            axis=-1,
            epsilon=self._config.rms_norm_eps,
        )

    def add_norm(self, x: str, residual: str, weight: Tensor, total: str) -> tuple[str, str]:
        """Their sum, called `total`, and its RMS norm."""
        normed = self.name(f"normed.{total}")
        self.node(
            "SkipSimplifiedLayerNormalization",
            [x, residual, self.constant(f"norm.{total}", lambda: weight)],
            [normed, "", "", self.name(total)],
            domain=_MICROSOFT,
            epsilon=self._config.rms_norm_eps,
        )
        return self.name(total), normed

    def attention(self, x: str, layer: DecoderLayer, index: int) -> str:
        """A product, then rotation, cache and attention in one operator."""
        heads = layer.self_attn
        weight = torch.cat((heads.q_proj.weight, heads.k_proj.weight, heads.v_proj.weight))
        packed = self.linear(x, weight, f"qkv.{index}")
        past = [f"past_{part}.{index}" for part in "kv"]
        places = [self.name(name) for name in ("last", "total")]
        bias = ["bias"] if self._masked else []
        return self.node(
            "GroupQueryAttention",
            [packed, "", "", *past, *places, "cos", "sin", self.name("positions"), *bias],
            [self.name(f"mixed.{index}"), *(self.name(f"present_{part}.{index}") for part in "kv")],
            domain=_MICROSOFT,
            num_heads=self._config.num_heads,
            kv_num_heads=self._config.num_kv_heads,
            do_rotary=1,
        )

    def last_row(self, x: str, name: str) -> str:
        """The last row of x [1, T, n], [1, 1, n]."""
        return self.node("Gather", [x, self.whole("last_row", [-1])], [self.name(f"last.{name}")], axis=1)

    def mlp(self, x: str, layer: DecoderLayer, index: int) -> str:
        """SwiGLU; QuickGelu with alpha 1 is SiLU."""
        gate = self.linear(x, layer.mlp.gate_proj.weight, f"gate.{index}")
        up = self.linear(x, layer.mlp.up_proj.weight, f"up.{index}")
        active = self.node("QuickGelu", [gate], [self.name(f"active.{index}")], domain=_MICROSOFT, alpha=1.0)
        inner = self.node("Mul", [active, up], [self.name(f"inner.{index}")])
        return self.linear(inner, layer.mlp.down_proj.weight, f"changed.{index}")

    def model(
        self, read: list[onnx.ValueInfoProto], written: list[tuple[str, list[int | str], int]], steps: int = 1
    ) -> onnx.ModelProto:
        """All of it, with what is read and, of each step, written with places and cache."""
        sizes = self._config
        cache: list[int | str] = [1, sizes.num_kv_heads, "C", sizes.head_dim]
        memory = [f"{part}.{index}" for index in range(sizes.num_layers) for part in "kv"]
        inputs = [*read, *([_tensor("bias", [1, 1, "T", "S"])] if self._masked else [])]
        outputs = []
        for step in range(steps):
            self.suffix = f".{step}" if step else ""
            inputs += [
                _tensor(self.name("positions"), [1, "T"], TensorProto.INT64),
                _tensor(self.name("last"), [1], TensorProto.INT32),
                _tensor(self.name("total"), [], TensorProto.INT32),
            ]
            outputs += [
                *(_tensor(self.name(name), shape, kind) for name, shape, kind in written),
                *(_tensor(self.name(f"present_{name}"), cache) for name in memory),
            ]
        inputs += [_tensor(f"past_{name}", cache) for name in memory]
        graph = helper.make_graph(self._nodes, "decoder", inputs, outputs, list(self._weights.values()))
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR)


def _tensor(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
