"""The block head's objective and its acceptance on stored answers, against passes one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from random_pair import noise_scenes, random_pair
from torch import Tensor

from evspec_ros.networks.block_head import BlockConfig, BlockHead
from evspec_ros.training.acceptance import acceptance
from evspec_ros.training.block import BLOCKS, DECAY, block_logits, block_loss, followed_drafts, random_places
from evspec_ros.training.features import Answers, FeaturePlan, ModelPair, answer

TOKENS = tuple(range(1, 40, 2))


def _answers(pair: ModelPair, head: BlockHead, scenes: int = 3) -> Answers:
    plan = FeaturePlan.for_pair(pair, head.config.layers, max_new_tokens=14)
    found = answer(pair, noise_scenes(0, scenes), plan)
    return Answers(**{name: value.clone() for name, value in vars(found).items()})


def _head(pair: ModelPair, **changes: Any) -> BlockHead:
    torch.manual_seed(0)
    sizes = BlockConfig.for_target(pair.target.config.text, 24, pair.event_rows)
    head = BlockHead(replace(sizes, block=4, context=7, **changes)).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.4)
    return head


@torch.inference_mode()
def _drafted(pair: ModelPair, head: BlockHead, answers: Answers, scene: int, place: int) -> Tensor:
    """Logits of the block behind one token of one answer, as drafting computes them."""
    first = answers.prompt.shape[1] - 1 - head.context(answers.prompt.shape[1] - 1)
    cache = head.new_cache(80)
    read = answers.features[scene, first : answers.prompt.shape[1] + place]
    head.fill(read, answers.events[scene], cache)
    last = pair.target.decoder.embed(answers.tokens[scene, place : place + 1])
    nothing = read.new_zeros(head.config.read_rows, read.shape[1])
    none, length = torch.tensor([0]), torch.tensor([cache.length])
    return head.draft(nothing, none, last, length, cache.k, cache.v).logits


@pytest.mark.parametrize("changes", [{}, {"causal": False}, {"tokens": TOKENS, "num_layers": 1}])
def test_what_is_trained_is_what_drafts(changes: dict[str, Any]) -> None:
    """Many blocks of many texts at once say what each of them says in a pass of its own."""
    pair = random_pair()
    head = _head(pair, **changes)
    answers = _answers(pair, head)
    places = torch.tensor([[0, 3, 9], [2, 2, 0], [5, 0, 11]])
    with torch.inference_mode():
        found = block_logits(pair, head, answers, places)
    for scene, of_scene in enumerate(places.tolist()):
        for block, place in enumerate(of_scene):
            expected = _drafted(pair, head, answers, scene, place)
            torch.testing.assert_close(found[scene, block], expected, rtol=0, atol=1e-4)


def test_the_loss_is_the_weighted_cross_entropy_of_what_lies_inside_the_answers() -> None:
    """Against a loop over blocks and rows; of a reduced vocabulary where the target says one of its own."""
    pair = random_pair()
    for tokens in ((), TOKENS):
        head = _head(pair, tokens=tokens)
        answers = replace(_answers(pair, head), lengths=torch.tensor([14, 6, 9]))
        places = torch.tensor([[0, 10], [3, 4], [7, 0]])
        total = weights = 0.0
        for scene, of_scene in enumerate(places.tolist()):
            for place in of_scene:
                said = torch.log_softmax(_drafted(pair, head, answers, scene, place), -1)
                for row in range(min(4, int(answers.lengths[scene]) - 1 - place)):
                    feature = answers.features[scene, answers.prompt.shape[1] + place + row, -32:]
                    logits = pair.target.lm_head(pair.target.decoder.norm(feature))
                    if tokens and int(logits.argmax()) not in tokens:
                        continue
                    wanted = torch.softmax(logits[list(tokens)] if tokens else logits, -1)
                    total += DECAY**row * -float((wanted * said[row]).sum().detach())
                    weights += DECAY**row
        assert float(block_loss(pair, head, answers, places).detach()) == pytest.approx(
            total / weights, rel=1e-4
        )


def test_blocks_lie_behind_the_first_token_and_others_but_never_behind_the_last() -> None:
    """Of answers of three and of eleven tokens; every place is drawn at some time."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([random_places(torch.tensor([3, 11]), generator) for _ in range(40)], 1)
    assert (drawn[:, ::BLOCKS] == 0).all()
    assert drawn[0].unique().tolist() == [0, 1]
    assert drawn[1].unique().tolist() == list(range(10))


def test_acceptance_is_what_verification_would_follow() -> None:
    """Draft by draft as long as they are the answer's tokens, with a head that is right at times."""
    pair = random_pair()
    head = _head(pair)
    answers = _answers(pair, head)
    with torch.no_grad():  # the head says what came most often, so that some drafts are right
        common = answers.tokens.flatten().mode().values
        head.lm_head.weight.zero_()
        head.lm_head.weight[common] = 1.0
        head.norm.weight.fill_(1.0)
    found = followed_drafts(pair, head, answers)
    assert int(found.sum()) > 0
    for scene, tokens in enumerate(answers.tokens.tolist()):
        for place in range(len(tokens) - 1):
            drafts = _drafted(pair, head, answers, scene, place).argmax(-1).tolist()
            right = 0
            while (
                right < 4 and place + 1 + right < len(tokens) and drafts[right] == tokens[place + 1 + right]
            ):
                right += 1
            assert int(found[scene, place]) == right
    figures = acceptance(pair, head, [answers], 2)  # type: ignore[arg-type]
    assert figures["acceptance length"] <= 3.0
    assert figures["held-out agreement"] == pytest.approx(
        float((found > 0)[torch.arange(13) < answers.lengths[:, None] - 1].float().mean())
    )
