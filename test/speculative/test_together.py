"""Several prompts over one window: read, drafted and verified together, each as if it were alone."""

from __future__ import annotations

import pytest
import torch
from speculative_fakes import (
    FakeTarget,
    ScriptedDrafter,
    fake_prompt,
    following_script,
    markov,
    random_trees,
    sampled_chain,
)
from torch import nn

from evspec_ros.engines.onnx_decoder import OnnxDecoder
from evspec_ros.errors import GenerationError
from evspec_ros.networks.llama import LlamaConfig, LlamaDecoder
from evspec_ros.speculative import (
    DecoderTarget,
    Drafter,
    DraftLimits,
    NoDrafter,
    Prompt,
    generate,
    generate_together,
)
from evspec_ros.speculative.sampling import Sampling

VOCABULARY, LENGTH = 50, 16
CONFIG = LlamaConfig(VOCABULARY, 32, 48, 3, 2, 2, 16, max_positions=64)


def _target(engine: str = "torch", end_tokens: tuple[int, ...] = ()) -> DecoderTarget:
    torch.manual_seed(0)
    decoder = LlamaDecoder(CONFIG).eval()
    lm_head = nn.Linear(CONFIG.hidden_size, VOCABULARY, bias=False)
    with torch.no_grad():
        for parameter in (*decoder.parameters(), lm_head.weight):
            parameter.normal_(std=0.4) if parameter.dim() == 2 else parameter.uniform_(0.5, 1.5)
    chosen = OnnxDecoder(decoder, lm_head) if engine == "onnxruntime" else None
    return DecoderTarget(decoder, lm_head, end_tokens, str, engine=chosen)


def _prompts() -> list[Prompt]:
    """Nine rows in common, then two, five and three of their own."""
    torch.manual_seed(1)
    video = torch.randn(1, 9, CONFIG.hidden_size)
    return [Prompt(torch.cat((video, torch.randn(1, own, CONFIG.hidden_size)), 1)) for own in (2, 5, 3)]


def _drafter(kind: str, text: list[int]) -> Drafter:
    return {
        "none": NoDrafter(),
        "perfect": following_script(text, vocabulary=VOCABULARY),
        "wrong": following_script(text, wrong_by=1, vocabulary=VOCABULARY),
        "random": random_trees(VOCABULARY, seed=1),
    }[kind]  # type: ignore[return-value]


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
@pytest.mark.parametrize("kind", ["none", "perfect", "wrong", "random"])
def test_each_text_is_what_it_is_alone(kind: str, engine: str) -> None:
    """Greedy, three prompts of different lengths, whatever drafts, twice in a row."""
    target, prompts = _target(engine), _prompts()
    alone = [generate(target, NoDrafter(), prompt, max_new_tokens=LENGTH).tokens for prompt in prompts]
    for limits in (DraftLimits(1, 1), DraftLimits(4, 9)):
        drafters = [_drafter(kind, list(text)) for text in alone]
        found = generate_together(target, drafters, prompts, max_new_tokens=LENGTH, limits=limits)
        assert [generation.tokens for generation in found] == alone


def test_different_drafters_may_draft_side_by_side() -> None:
    """One perfect, one always wrong, one that reads features of other layers than nobody else."""
    target, prompts = _target(), _prompts()
    alone = [generate(target, NoDrafter(), prompt, max_new_tokens=LENGTH).tokens for prompt in prompts]
    reader = following_script(list(alone[2]), vocabulary=VOCABULARY)
    reader.layers = (1, 3)
    received: list[tuple[int, ...]] = []
    accept = reader.accept
    reader.accept = lambda tokens, features: (  # type: ignore[assignment, method-assign]
        received.append(tuple(feature.shape[0] for feature in features)), accept(tokens, features)
    )  # fmt: skip
    drafters = [_drafter("perfect", list(alone[0])), _drafter("wrong", list(alone[1])), reader]
    found = generate_together(target, drafters, prompts, max_new_tokens=LENGTH, limits=DraftLimits(4, 4))
    assert [generation.tokens for generation in found] == alone
    assert received
    assert set(received) <= {(rows, rows) for rows in range(1, 6)}
    passes = [generation.statistics.target_passes for generation in found]
    assert passes[0] < 5 < passes[1] == LENGTH - 1


def test_an_end_token_ends_its_own_text_alone() -> None:
    """Inside a block of the first text; the others go on to their length."""
    prompts = _prompts()
    texts = [generate(_target(), NoDrafter(), prompt, max_new_tokens=LENGTH).tokens for prompt in prompts]
    end = next(token for token in texts[0][2:6] if all(token not in text for text in texts[1:]))
    target = _target(end_tokens=(end,))
    drafters = [_drafter("perfect", list(text)) for text in texts]
    found = generate_together(target, drafters, prompts, max_new_tokens=LENGTH, limits=DraftLimits(8, 8))
    assert found[0].tokens == texts[0][: texts[0].index(end) + 1]
    assert [generation.tokens for generation in found[1:]] == texts[1:]


@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_gives_each_text_that_it_gives_alone(seed: int) -> None:
    """Sampled, with drafts from another model's distributions."""
    following, other = markov(10, seed=1), markov(10, seed=2)
    prompts = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6, 7]]

    def drafters() -> list[ScriptedDrafter]:
        return [sampled_chain(other, prompt) for prompt in prompts]

    sampling, limits = Sampling(1.0), DraftLimits(3, 3)
    alone = [
        generate(
            FakeTarget(following), drafter, fake_prompt(prompt),
            max_new_tokens=LENGTH, temperature=1.0, seed=seed, limits=limits,
        ).tokens
        for drafter, prompt in zip(drafters(), prompts, strict=True)
    ]  # fmt: skip
    together = generate_together(
        FakeTarget(following), drafters(), [fake_prompt(prompt) for prompt in prompts],
        max_new_tokens=LENGTH, sampling=sampling, seed=seed, limits=limits,
    )  # fmt: skip
    assert [generation.tokens for generation in together] == alone


def test_what_prompts_have_in_common_is_read_once() -> None:
    """Nine of the rows of the second and of the third prompt were not computed again."""
    target, prompts = _target(), _prompts()
    drafters = [NoDrafter() for _ in prompts]
    found = generate_together(target, drafters, prompts, max_new_tokens=2)
    assert [generation.statistics.reused_rows for generation in found] == [0, 9, 9]
    again = generate_together(target, drafters, prompts, max_new_tokens=2)
    assert [generation.statistics.reused_rows for generation in again] == [10, 9, 9]
    assert [one.tokens for one in again] == [one.tokens for one in found]


def test_pieces_come_with_their_prompt_s_number() -> None:
    """Together they are the texts."""
    target, prompts = _target(), _prompts()
    pieces: list[list[int]] = [[], [], []]
    found = generate_together(
        target, [NoDrafter() for _ in prompts], prompts, max_new_tokens=5,
        on_tokens=lambda number, tokens: pieces[number].extend(tokens),
    )  # fmt: skip
    assert [tuple(piece) for piece in pieces] == [generation.tokens for generation in found]


def test_a_prompt_that_is_too_long_is_refused() -> None:
    """Also where only one of them is."""
    prompts = [*_prompts(), Prompt(torch.zeros(1, 60, CONFIG.hidden_size))]
    with pytest.raises(GenerationError, match="60 embedded tokens"):
        generate_together(_target(), [NoDrafter() for _ in prompts], prompts, max_new_tokens=9)
