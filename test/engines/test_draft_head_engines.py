"""Draft heads through ONNX Runtime, against their modules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from evspec_ros.engines.draft_head import CANDIDATES, CHAIN_STEPS, HeadPass, OnnxDraftHead, TorchDraftHead
from evspec_ros.networks.draft_head import DraftHead, Eagle3Config, Eagle3Head, EagleConfig, EagleHead
from evspec_ros.networks.llama import LlamaConfig, LlamaDecoder

TARGET = LlamaConfig(60, 32, 48, 3, 2, 2, 16, max_positions=64)
TOLERANCE = 1e-4


def _engines(kind: str) -> tuple[DraftHead, TorchDraftHead, OnnxDraftHead]:
    torch.manual_seed(0)
    decoder, lm_head = LlamaDecoder(TARGET), nn.Linear(32, 60, bias=False)
    sizes = Eagle3Config.for_target(TARGET, 12, 5)
    head: DraftHead = (
        EagleHead(EagleConfig.for_target(TARGET, 12, 5))
        if kind == "eagle"
        else Eagle3Head(replace(sizes, tokens=tuple(range(3, 60, 4)) if kind == "reduced" else ()))
    )
    with torch.no_grad():
        for parameter in (*head.parameters(), decoder.norm.weight, lm_head.weight):
            parameter.normal_(std=0.3)
    return head, TorchDraftHead(head, decoder, lm_head), OnnxDraftHead(head, decoder, lm_head)


@pytest.mark.parametrize("kind", ["eagle", "eagle3", "reduced"])
@torch.inference_mode()
def test_the_graph_computes_what_the_modules_compute(kind: str) -> None:
    """Behind the same prompt: three rows, one, another one, then two rows of a tree beside each other."""
    head, modules, graph = _engines(kind)
    size = head.config.hidden_size
    caches = head.new_cache(40), head.new_cache(40)
    prompt, carried, events = torch.randn(1, 6, 32), torch.randn(1, 6, size), torch.randn(1, 5, 12)
    for cache in caches:
        head.fill(prompt, carried, events, cache)
    beside = torch.tensor([[True, False, True, False], [False, True, False, True]])
    for ids, tree in (([3, 4, 5], ()), ([6], ()), ([7], ()), ([8, 9], (torch.tensor([-1, -1]), beside))):
        known = torch.randn(len(ids), size)
        theirs = modules.run(ids, known, caches[0], *tree)
        ours = graph.run(ids, known, caches[1], *tree)
        for found, expected in zip(ours[:2], theirs[:2], strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(caches[0].k, caches[1].k, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["eagle", "eagle3", "reduced"])
@torch.inference_mode()
def test_the_candidates_are_the_most_probable_tokens(kind: str) -> None:
    """In order, with their softmax probabilities; of a text's rows the last one's alone."""
    head, _, graph = _engines(kind)
    said = graph.run([3, 4], torch.randn(2, head.config.hidden_size), head.new_cache(20))
    expected = torch.softmax(said.logits, -1).sort(-1, descending=True)
    assert said.tokens.shape == (1, CANDIDATES)
    np.testing.assert_array_equal(said.tokens, expected.indices[:, :CANDIDATES])
    np.testing.assert_allclose(said.probabilities, expected.values[:, :CANDIDATES], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["eagle", "eagle3", "reduced"])
@torch.inference_mode()
def test_reading_on_is_reading_the_likeliest_tokens_one_by_one(kind: str) -> None:
    """Every step of a chain says what a pass of its own says, and fills the cache alike."""
    head, _, graph = _engines(kind)
    size = head.config.hidden_size
    cache = head.new_cache(40)
    head.fill(torch.randn(1, 6, 32), torch.randn(1, 6, size), torch.randn(1, 5, 12), cache)
    start, known = cache.length, torch.randn(1, size)
    steps = [HeadPass(*(value.copy() if isinstance(value, np.ndarray) else value.clone() for value in said))
             for said in graph.run_chain(7, known, cache)]  # fmt: skip
    assert len(steps) == CHAIN_STEPS == cache.length - start
    keys = cache.k.clone()
    cache.truncate(start)
    token = 7
    for said in steps:
        alone = graph.run([token], known, cache)
        torch.testing.assert_close(said.output, alone.output, rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(said.tokens, alone.tokens)
        token, known = int(said.tokens[0, 0]), said.output
    torch.testing.assert_close(cache.k, keys, rtol=0, atol=TOLERANCE)


@torch.inference_mode()
def test_reading_on_ends_where_the_cache_does() -> None:
    """Two rows left are two steps."""
    head, _, graph = _engines("eagle3")
    cache = head.new_cache(5)
    graph.run([1, 2, 3], torch.randn(3, head.config.hidden_size), cache)
    assert len(graph.run_chain(7, torch.randn(1, head.config.hidden_size), cache)) == 2
