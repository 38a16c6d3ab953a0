"""A block head's turns through torch and ONNX Runtime, and its exported graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from evspec_ros.engines.block import OnnxBlock, TorchBlock, choose_block_engine
from evspec_ros.engines.export import graph
from evspec_ros.engines.networks import block
from evspec_ros.networks.block_head import BlockConfig, BlockHead
from evspec_ros.networks.llama import LlamaConfig, LlamaDecoder

TARGET = LlamaConfig(60, 32, 48, 3, 2, 2, 16, max_positions=64)
TOLERANCE = 1e-4


def _engines(kind: str) -> tuple[BlockHead, TorchBlock, OnnxBlock]:
    """kind: causal, full, or reduced: a causal one that can say some tokens alone."""
    torch.manual_seed(0)
    decoder = LlamaDecoder(TARGET)
    sizes = replace(BlockConfig.for_target(TARGET, 12, 5), block=4, causal=kind != "full")
    head = BlockHead(replace(sizes, tokens=tuple(range(3, 60, 4)) if kind == "reduced" else ())).eval()
    with torch.no_grad():
        for parameter in (*head.parameters(), *decoder.parameters()):
            parameter.normal_(std=0.3)
    return head, TorchBlock(head, decoder), OnnxBlock(head, decoder)


@pytest.mark.parametrize("kind", ["causal", "full", "reduced"])
@torch.inference_mode()
def test_the_graph_computes_what_the_module_computes(kind: str) -> None:
    """Over several turns behind the same prompt: five rows, one, three; caches and all that is said."""
    _, module, exported = _engines(kind)
    caches = module.new_cache(40), exported.new_cache(40)
    prompt, events = torch.randn(6, 3 * 32), torch.randn(5, 12)
    for engine, cache in zip((module, exported), caches, strict=True):
        engine.read(prompt, events, cache)
    for token, count in ((3, 5), (6, 1), (7, 3)):
        features = torch.randn(count, 3 * 32)
        theirs, ours = (
            engine.run(features, token, cache)
            for engine, cache in zip((module, exported), caches, strict=True)
        )
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=TOLERANCE)
    assert [cache.length for cache in caches] == [5 + 6 + 9] * 2
    held = caches[0].length
    for ours, theirs in zip((caches[1].k, caches[1].v), (caches[0].k, caches[0].v), strict=True):
        torch.testing.assert_close(ours[..., :held, :], theirs[..., :held, :], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("which", [0, 1])
@torch.inference_mode()
def test_a_turn_is_reading_the_rows_and_drafting_behind_them(which: int) -> None:
    """Rows read by turns and rows read at once, by an engine whose buffers still hold a longer turn's: the
    last block is the same.
    """
    _, *engines = _engines("causal")
    engine = engines[which]
    features, events = torch.randn(11, 3 * 32), torch.randn(5, 12)
    by_turns, at_once = engine.new_cache(40), engine.new_cache(52)
    engine.read(features[:2], events, by_turns)
    for first, last in ((2, 7), (7, 9), (9, 11)):
        said = engine.run(features[first:last], 9, by_turns)
    found = said.logits.clone()
    engine.read(features[:-1], events, at_once)
    torch.testing.assert_close(engine.run(features[-1:], 9, at_once).logits, found, rtol=0, atol=TOLERANCE)


def test_the_graph_is_of_standard_operators_alone() -> None:
    """So that any engine can parse it; what it gives are the fields of a pass."""
    head, *_ = _engines("reduced")
    model = graph(block(head))
    assert {entry.domain for entry in model.opset_import} == {""}
    assert all(node.domain == "" for node in model.graph.node)
    assert not {"Loop", "If", "Scan"} & {node.op_type for node in model.graph.node}
    assert [output.name for output in model.graph.output] == ["k", "v", "tokens", "probabilities", "logits"]


def test_the_target_s_backend_decides() -> None:
    """ONNX Runtime where the target's steps run there, else torch."""
    head, *_ = _engines("causal")
    decoder = LlamaDecoder(TARGET)
    assert isinstance(choose_block_engine(head, decoder, "onnxruntime"), OnnxBlock)
    assert type(choose_block_engine(head, decoder, "torch")) is TorchBlock
