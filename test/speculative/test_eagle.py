"""Decoding with real networks: a small random LLaMA as target, a random event model, random draft heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from random_networks import (
    CONFIG,
    EVENT_SIZE,
    VOCABULARY,
    naive_text,
    random_drafter,
    random_event_model,
    random_head,
    random_prompts,
    random_target,
)
from speculative_fakes import ScriptedDrafter, following_script, random_trees

from evspec_ros.engines.onnx_decoder import OnnxDecoder
from evspec_ros.errors import CheckpointError, GenerationError
from evspec_ros.networks.checkpoints import DRAFT_HEADS
from evspec_ros.networks.draft_head import EagleConfig, EagleHead
from evspec_ros.networks.llama import LlamaConfig, LlamaDecoder
from evspec_ros.speculative import (
    DRAFTERS,
    Block,
    DecoderTarget,
    Drafter,
    DraftLimits,
    DraftModels,
    DraftTree,
    EventSide,
    NoDrafter,
    Prompt,
    drafter_kind,
    generate,
    make_drafter,
)
from evspec_ros.speculative.eagle import EagleDrafter
from evspec_ros.speculative.sampling import Sampling

LENGTH = 20


def _drafters(target: DecoderTarget, text: list[int]) -> dict[str, Drafter]:
    return {
        **{name: random_drafter(name, target) for name in DRAFTERS},
        "perfect": following_script(text, vocabulary=VOCABULARY),
        "wrong": following_script(text, wrong_by=1, vocabulary=VOCABULARY),
        "random": random_trees(VOCABULARY, seed=1),
        "perfect in a tree": ScriptedDrafter(_hidden_in_a_tree(text)),
    }


def _hidden_in_a_tree(text: list[int]):  # type: ignore[no-untyped-def]
    """The right tokens as the last child of each node, a wrong one with a wrong child before it."""

    def guess(history: list[int], limits: DraftLimits, *_: object) -> DraftTree:
        tokens: list[int] = []
        parents: list[int] = []
        right = -1
        for token in text[len(history) : len(history) + limits.n_max]:
            wrong = (token + 1) % VOCABULARY
            tokens += [wrong, wrong, token]
            parents += [right, len(tokens) - 3, right]
            right = len(tokens) - 1
        return DraftTree.from_parents(tokens, parents, [0.5] * len(tokens))

    return guess


@pytest.mark.parametrize("kind", [*DRAFTERS, "perfect", "wrong", "random", "perfect in a tree"])
def test_greedy_text_is_the_target_s_own_whatever_the_drafter(kind: str) -> None:
    """Against whole passes without a cache, 2 targets, 6 prompts each, several limits."""
    for seed in range(2):
        target = random_target(seed)
        for prompt in random_prompts(6):
            text = naive_text(target, prompt, LENGTH)
            drafter = _drafters(target, text)[kind]
            for limits in (DraftLimits(1, 1), DraftLimits(4, 12), DraftLimits(6, 18, p_min=0.05)):
                found = generate(target, drafter, prompt, max_new_tokens=LENGTH, limits=limits)
                assert list(found.tokens) == text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", DRAFTERS)
def test_nothing_is_drafted_behind_an_end_token(name: str, temperature: float) -> None:
    """With half of the vocabulary ending a text, no drafter gives such a token a child."""
    target = random_target()
    target.end_tokens = frozenset(range(0, VOCABULARY, 2))
    drafter = random_drafter(name, target)
    drafted: list[DraftTree] = []
    propose = drafter.propose
    drafter.propose = lambda *given: drafted.append(propose(*given)) or drafted[-1]  # type: ignore[method-assign]
    for prompt in random_prompts(12):
        generate(target, drafter, prompt, max_new_tokens=LENGTH, temperature=temperature)
    for tree in drafted:
        inner = {int(tree.tokens[parent]) for parent in tree.parents if parent >= 0}
        assert not inner & target.end_tokens


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("pooling", [1, 2, 4])
@pytest.mark.parametrize("name", [name for name, kind in DRAFTERS.items() if kind.reads_events])
def test_greedy_text_does_not_depend_on_how_events_are_read(name: str, pooling: int, overlap: bool) -> None:
    """Beside the prefill or before it, all event tokens or some averaged: the target's own text."""
    target = random_target()
    drafter = random_drafter(name, target, overlap=overlap, pooling=pooling)
    for prompt in random_prompts(4):
        found = generate(target, drafter, prompt, max_new_tokens=LENGTH, limits=DraftLimits(5, 9))
        assert list(found.tokens) == naive_text(target, prompt, LENGTH)


@pytest.mark.parametrize("kv_dtype", [torch.float16, torch.int8])
def test_a_smaller_cache_keeps_every_drafter_lossless(kv_dtype: torch.dtype) -> None:
    """Greedy text is that of plain decoding with the same cache, whatever drafts."""
    for seed in range(2):
        target = random_target(seed, kv_dtype)
        for prompt in random_prompts(4):
            plain = generate(target, NoDrafter(), prompt, max_new_tokens=LENGTH).tokens
            for drafter in _drafters(target, list(plain)).values():
                limits = DraftLimits(4, 12)
                found = generate(target, drafter, prompt, max_new_tokens=LENGTH, limits=limits)
                assert found.tokens == plain


def test_a_right_branch_after_wrong_ones_is_committed() -> None:
    """All tokens of the hidden branch are accepted, so the cache was gathered row by row."""
    target = random_target()
    prompt = random_prompts(1)[0]
    text = naive_text(target, prompt, LENGTH)
    found = generate(
        target,
        _drafters(target, text)["perfect in a tree"],
        prompt,
        max_new_tokens=LENGTH,
        limits=DraftLimits(4, 12),
    )
    assert list(found.tokens) == text
    assert found.statistics.mean_accepted_length > 4.5


def test_features_after_acceptance_are_those_of_one_whole_pass() -> None:
    """What a drafter receives over the steps is what one pass over prompt and text computes."""
    target = random_target()
    prompt = random_prompts(1)[0]
    text = naive_text(target, prompt, LENGTH)
    spy = ScriptedDrafter(_hidden_in_a_tree(text), layers=(0, 2, 3))
    received: list[tuple[torch.Tensor, ...]] = []
    start, accept = spy.start, spy.accept
    spy.start = lambda *given: (received.append(given[1]), start(*given))  # type: ignore[assignment, method-assign]
    spy.accept = lambda *given: (received.append(given[1]), accept(*given))  # type: ignore[assignment, method-assign]
    generate(target, spy, prompt, max_new_tokens=LENGTH, limits=DraftLimits(4, 12))
    with torch.inference_mode():
        embeddings = torch.cat((prompt.embeddings, target.embed(torch.tensor([text]))), 1)
        whole = target.decoder(embeddings, layers=(0, 2, 3)).features
    for index, expected in enumerate(whole):
        found = torch.cat([features[index] for features in received])
        torch.testing.assert_close(found, expected[0, : len(found)], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "temperature"), [("eagle", 0.0), ("eagle", 1.0), ("eagle3", 0.0)])
def test_each_draft_is_what_the_head_says_of_the_whole_text_so_far(kind: str, temperature: float) -> None:
    """At every step the cached drafter proposes what whole passes without any cache propose.

    This is where a stale feature, a norm applied twice, a cache out of step or a token off by one shows; the
    text itself would still be right.
    """
    target, head = random_target(), random_head(kind)
    for prompt in random_prompts(4):
        drafter = EagleDrafter(target, head, EventSide())
        proposals: list[DraftTree] = []
        history: list[list[int]] = []
        emitted: list[int] = []
        propose = drafter.propose

        def watched(*given) -> DraftTree:  # type: ignore[no-untyped-def]
            proposals.append(propose(*given))  # noqa: B023
            history.append(list(emitted))  # noqa: B023
            return proposals[-1]  # noqa: B023

        drafter.propose = watched  # type: ignore[method-assign]
        generate(
            target, drafter, prompt, max_new_tokens=LENGTH, temperature=temperature, limits=DraftLimits(3, 3),
            on_tokens=emitted.extend,
        )  # fmt: skip
        assert len(proposals) > 3
        for tree, tokens in zip(proposals, history, strict=True):
            expected = _chain_of_whole_passes(target, head, prompt, tokens, tree)
            found = torch.from_numpy(tree.probabilities)
            torch.testing.assert_close(found, expected[: len(tree)], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def _chain_of_whole_passes(
    target: DecoderTarget, head: Any, prompt: Prompt, tokens: list[int], tree: DraftTree
) -> torch.Tensor:
    """Probability of each token of a chain by the head; without chance, the likeliest."""
    ahead = torch.cat((prompt.embeddings[:, 1:], target.embed(torch.tensor([tokens]))), 1)
    read = torch.cat((prompt.embeddings, target.embed(torch.tensor([tokens[:-1]], dtype=torch.long))), 1)
    layers = head.feature_layers(CONFIG.num_layers)
    carried = head.fuse(torch.cat(target.decoder(read, layers=layers).features, -1))
    unread = prompt.embeddings.shape[1] - 1 - head.context(prompt.embeddings.shape[1] - 1)
    ahead, carried = ahead[:, unread:], carried[:, unread:]
    events = None if prompt.events is None else prompt.events()[None]
    norm, lm_head = head.readout(target.decoder.norm, target.lm_head)
    found = []
    for node, token in enumerate(tree.tokens.tolist()):
        if node > 0:
            ahead = torch.cat((ahead, target.embed(torch.tensor([[tree.tokens[node - 1]]]))), 1)
        carried = torch.cat((carried[:, : ahead.shape[1]], head(ahead, carried, events)[:, -1:]), 1)
        p = torch.softmax(lm_head(norm(carried[0, -1])), -1)
        if tree.distributions is None:
            assert int(p.argmax()) == token
        else:
            torch.testing.assert_close(tree.distributions[node], p, atol=1e-4, rtol=1e-4)
        found.append(p[token])
    return torch.stack(found)


@torch.inference_mode()
def _paths_of_whole_passes(
    head: Any, target: DecoderTarget, prompt: Prompt, first: int
) -> dict[tuple[int, ...], float]:
    """Of every path of at most two tokens behind the first one: its probability by passes without a cache."""
    layers = head.feature_layers(CONFIG.num_layers)
    carried = head.fuse(torch.cat(target.decoder(prompt.embeddings, layers=layers).features, -1))
    rows = head.context(prompt.embeddings.shape[1] - 1)
    ahead = torch.cat((prompt.embeddings[:, 1:], target.embed(torch.tensor([[first]]))), 1)[:, -rows - 1 :]
    carried = carried[:, -rows - 1 :]
    events = None if prompt.events is None else prompt.events()[None]
    norm, lm_head = head.readout(target.decoder.norm, target.lm_head)
    output = head(ahead, carried, events)[:, -1:]
    once = torch.softmax(lm_head(norm(output[0, 0])), -1)
    found = {(token,): float(p) for token, p in enumerate(once)}
    for token in range(VOCABULARY):
        further = torch.cat((ahead, target.embed(torch.tensor([[token]]))), 1)
        last = head(further, torch.cat((carried, output), 1), events)[0, -1]
        twice = torch.softmax(lm_head(norm(last)), -1) * once[token]
        found |= {(token, then): float(p) for then, p in enumerate(twice)}
    return found


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_tree_s_nodes_have_the_probabilities_that_whole_passes_give_them(kind: str) -> None:
    """Two levels, several branches, each seeing its own path alone; siblings in order of their chances."""
    target, head = random_target(), random_head(kind)
    for prompt in random_prompts(4):
        drafter = EagleDrafter(target, head, EventSide(), branches=3)
        with torch.inference_mode():
            (first,) = target.prefill([prompt.embeddings], 40, drafter.layers)
            drafter.prepare(prompt)
            drafter.start(prompt, first.features, 3, 40)
            tree = drafter.propose(DraftLimits(2, 12), Sampling(), torch.Generator())
        expected = _paths_of_whole_passes(head, target, prompt, 3)
        assert tree.depth == 2
        assert len(tree) == 12
        for path, chance in zip(tree.paths(), tree.path_probabilities(), strict=True):
            assert chance == pytest.approx(expected[path], abs=1e-4)
        assert (np.diff(tree.path_probabilities()) <= 1e-6).all()


def test_events_change_what_is_drafted_and_not_what_is_said() -> None:
    """The same prompt with and without events: other drafts, the same text."""
    target, head = random_target(), random_head()
    with_events = random_prompts(2)[1]
    without = Prompt(with_events.embeddings)
    drafts, texts = [], []
    for prompt in (with_events, without):
        drafter = EagleDrafter(target, head, EventSide())
        texts.append(generate(target, drafter, prompt, max_new_tokens=LENGTH).tokens)
        with torch.inference_mode():
            (first,) = target.prefill([prompt.embeddings], 20, drafter.layers)
            drafter.prepare(prompt)
            drafter.start(prompt, first.features, texts[0][0], 20)
            drafts.append(drafter.propose(DraftLimits(), Sampling(), torch.Generator()).probabilities)
    assert texts[0] == texts[1]
    assert not np.allclose(drafts[0], drafts[1])


def test_a_chain_stops_where_confidence_ends() -> None:
    """p_min bounds the product of the probabilities along the chain."""
    target, head = random_target(), random_head()
    prompt = random_prompts(1)[0]
    drafter = EagleDrafter(target, head, EventSide())
    with torch.inference_mode():
        (first,) = target.prefill([prompt.embeddings], 20, drafter.layers)
        drafter.prepare(prompt)
        drafter.start(prompt, first.features, 3, 20)
        whole = drafter.propose(DraftLimits(), Sampling(), torch.Generator())
        drafter.start(prompt, first.features, 3, 20)
        p_min = float(np.prod(whole.probabilities[:3])) * 0.999
        assert len(drafter.propose(DraftLimits(p_min=p_min), Sampling(), torch.Generator())) == 3
        drafter.start(prompt, first.features, 3, 20)
        assert len(drafter.propose(DraftLimits(p_min=1.0), Sampling(), torch.Generator())) == 0


def test_a_seeded_run_repeats() -> None:
    """Sampled text of eagle: the same seed the same text, another seed another."""
    target = random_target()
    drafter = make_drafter("eagle", target, DraftModels(random_head()))
    prompt = random_prompts(1)[0]
    texts = [
        generate(target, drafter, prompt, max_new_tokens=LENGTH, temperature=1.0, seed=seed).tokens
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_one_target_serves_prompts_of_any_length_in_turn() -> None:
    """Caches are reused and grown; nothing of an earlier prompt is seen by a later one."""
    target = random_target()
    drafter = make_drafter("eagle", target, DraftModels(random_head()))
    for rows in (5, 30, 1, 12):
        for prompt in random_prompts(2, rows):
            text = naive_text(target, prompt, LENGTH)
            assert list(generate(target, drafter, prompt, max_new_tokens=LENGTH).tokens) == text


def test_a_prompt_too_long_for_the_model_is_refused() -> None:
    """The message says how much there is and what to do."""
    prompt = Prompt(torch.zeros(1, 90, CONFIG.hidden_size))
    with pytest.raises(GenerationError, match=r"90 embedded tokens.*shorten"):
        generate(random_target(), NoDrafter(), prompt, max_new_tokens=LENGTH)


def test_drafters_go_by_name() -> None:
    """An unknown name, a missing head and a head for another target are refused in one sentence."""
    target = random_target()
    assert make_drafter("none", target).name == "none"
    with pytest.raises(GenerationError, match=r"none, prompt_lookup, .*combined"):
        make_drafter("eagel", target)
    with pytest.raises(GenerationError, match="needs a draft head"):
        make_drafter("eagle", target)
    other = EagleHead(EagleConfig.for_target(LlamaConfig(9, 16, 16, 1, 2, 2, 8), 4, 2))
    with pytest.raises(CheckpointError, match="trained for this target"):
        make_drafter("eagle", target, DraftModels(other))


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
@pytest.mark.parametrize("name", ["eagle", "eagle2", "eagle3", "combined"])
def test_a_head_with_too_few_positions_drafts_as_far_as_they_go(name: str, engine: str) -> None:
    """From none at all to enough: no error, the target's own text, and never fewer drafts with more."""
    target = random_target()
    if engine == "onnxruntime":
        config = replace(CONFIG, head_dim=16)
        torch.manual_seed(0)
        decoder, lm_head = LlamaDecoder(config).eval(), torch.nn.Linear(32, VOCABULARY, bias=False)
        for parameter in (*decoder.parameters(), lm_head.weight):
            torch.nn.init.normal_(parameter, std=0.4)
        target = DecoderTarget(decoder, lm_head, (), str, engine=OnnxDecoder(decoder, lm_head))
    (kind, *_) = drafter_kind(name).head_kinds
    sizes = DRAFT_HEADS[kind].config.for_target(target.decoder.config, EVENT_SIZE, 8)
    prompt = random_prompts(2)[1]  # 13 rows and nine event rows
    alone = generate(target, NoDrafter(), prompt, max_new_tokens=LENGTH).tokens
    drafted = []
    for positions in (1, 9, 16, 22, 23, 24, 26, 30, 36, 96):
        torch.manual_seed(0)
        head = DRAFT_HEADS[kind].head(replace(sizes, max_positions=positions)).eval()
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        drafter = make_drafter(name, target, DraftModels(head, random_event_model()))
        for temperature in (0.0, 1.0):
            limits = DraftLimits(6, 12)
            drafter.forget()
            found = generate(
                target, drafter, prompt, max_new_tokens=LENGTH, limits=limits, temperature=temperature
            )
            if temperature == 0.0:
                assert found.tokens == alone
                drafted.append(found.statistics.drafted)
    assert drafted[0] < drafted[-1]
    assert drafted[0] == 0 or name == "combined"  # which follows the text itself, too


def test_the_event_model_writes_only_what_the_target_can_read() -> None:
    """Where its tokens mean something else, `combined` is what is left without it."""
    target, events = random_target(), EventSide(overlap=True)
    models = DraftModels(random_head("eagle3"), random_event_model(), events)
    assert make_drafter("combined", target, models)._event_writer is not None  # type: ignore[attr-defined]
    others = replace(models, event_text=False)
    assert make_drafter("combined", target, others)._event_writer is None  # type: ignore[attr-defined]


def test_a_prompt_that_begins_as_the_last_one_is_read_from_where_they_part() -> None:
    """Same logits and features as of a target that reads it all, whatever was generated in between."""
    torch.manual_seed(3)
    first = torch.randn(1, 12, CONFIG.hidden_size)
    target, layers = random_target(), (1, CONFIG.num_layers)
    for rows in (12, 7, 1, 0):  # all of it, a part, one row, none
        other = torch.cat((first[:, :rows], torch.randn(1, 12 - min(rows, 11), CONFIG.hidden_size)), 1)
        with torch.inference_mode():
            target.prefill([first], 20, layers)
            target.extend([Block(0, 4, DraftTree.chain([1, 2, 3], [1.0] * 3))])
            target.keep([[0, 1]])
            (found,), (whole,) = (
                target.prefill([other], 20, layers),
                random_target().prefill([other], 20, layers),
            )
        assert found.reused == rows
        assert whole.reused == 0
        torch.testing.assert_close(found.logits, whole.logits, rtol=1e-4, atol=1e-4)
        for ours, theirs in zip(found.features, whole.features, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_last_row_of_a_prompt_is_always_read() -> None:
    """Its logits begin the text: the same prompt again costs one row, or all after `forget`."""
    target, prompt = random_target(), torch.randn(1, 12, CONFIG.hidden_size)
    with torch.inference_mode():
        once, again = (target.prefill([prompt], 20, ())[0] for _ in range(2))
        target.forget()
        (anew,) = target.prefill([prompt], 20, ())
    assert [once.reused, again.reused, anew.reused] == [0, 11, 0]
    torch.testing.assert_close(once.logits, again.logits, rtol=1e-4, atol=1e-4)


def test_a_larger_cache_or_other_layers_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the rows of a smaller cache nor features that were not asked for are there to be reused."""
    monkeypatch.setattr("evspec_ros.sizes.CACHE_STEP", 8)
    target, prompt = random_target(), torch.randn(1, 12, CONFIG.hidden_size)
    with torch.inference_mode():
        reused = [
            target.prefill([prompt], *ask)[0].reused for ask in ((4, ()), (40, ()), (4, (1,)), (4, (1,)))
        ]
    assert reused == [0, 0, 0, 11]
