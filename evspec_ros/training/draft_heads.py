"""Training draft heads of every kind for one target and one event model.

The head learns from what the target itself writes: for each scene its own greedy answer, and the features
that it had while writing it (see `features`); only the head is trained. Heads that predict features learn a
weighted sum of `objectives`, by default EAGLE's (Li et al. 2024, arXiv 2401.15077): smooth L1 between
predicted and true feature, and cross entropy between the token distributions that the target's frozen head
makes of the two. Uniform noise on the features that they read stands for the errors of their own predictions,
which they have to read when they draft. EAGLE-3's objective is in `eagle3`, a block head's in `block`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from evspec_ros.choices import PLAIN
from evspec_ros.errors import TrainingError
from evspec_ros.networks.adapters import AdapterConfig, FeatureConfig
from evspec_ros.networks.block_head import BLOCK, BlockConfig, BlockHead
from evspec_ros.networks.checkpoints import DRAFT_HEADS, Head
from evspec_ros.networks.draft_head import DraftHead, Eagle3Config, Eagle3Head, ReducedHead
from evspec_ros.networks.fit import HeadConfig
from evspec_ros.sizes import MAX_NEW_TOKENS
from evspec_ros.training.acceptance import acceptance
from evspec_ros.training.block import block_loss, random_places
from evspec_ros.training.eagle3 import unrolled, unrolled_loss
from evspec_ros.training.features import (
    SHARD,
    Answers,
    Batches,
    FeaturePlan,
    FeatureShards,
    ModelPair,
    Selected,
)
from evspec_ros.training.files import claim
from evspec_ros.training.loop import Examination, Report, Schedule, fit
from evspec_ros.training.objectives import parse_objective, weighted
from evspec_ros.training.prediction import (
    answer_rows,
    head_inputs,
    predicted,
    target_logits,
    true_features,
)
from evspec_ros.training.processes import process

SCHEDULE = Schedule(steps=1000, learning_rate=1e-3)
EXAMINATIONS = 10  # of a training
COUNTED = 64  # batches, to know the most frequent tokens
EAGLE = "smooth_l1=1,cross_entropy=1"
MASKS = ("causal", "full")  # of a block head: whether a row of a block sees those up to itself, or all

Loss = Callable[[ModelPair, Head, Answers, int, "HeadPlan"], Tensor]


@dataclass(frozen=True)
class HeadPlan:
    """kind: of the head; scenes, held_out: how many to learn from and to test with, in batches of `batch`;
    condition: what makes them hard to see.

    Of those that predict features: objective, as `parse_objective` reads it, EAGLE's where it is None, and
    noise, half the width of the uniform noise, in standard deviations of the features; EAGLE-3's: unroll, how
    many steps of drafting are trained; of EAGLE-3's and the block head: vocabulary, how many tokens it can
    say, the most frequent ones of what it learns from, 0 for all; the block head's: mask, one of MASKS,
    and block, its rows; the adapters': bottleneck, and the feature head's fusion. patience: training ends
    when so many of its EXAMINATIONS in a row found no longer acceptance, 0 for never.
    """

    kind: str = "eagle"
    condition: str = PLAIN
    scenes: int = 2048
    held_out: int = 128
    batch: int = SHARD
    schedule: Schedule = SCHEDULE
    noise: float = 0.2
    objective: str | None = None
    unroll: int = 8
    vocabulary: int = 0
    mask: str = MASKS[0]
    block: int = BLOCK
    bottleneck: int = AdapterConfig.bottleneck
    fusion: str = FeatureConfig.fusion
    max_new_tokens: int = MAX_NEW_TOKENS
    patience: int = 0
    seed: int = 0


TINY_PLANS = {
    "block": HeadPlan(
        "block", scenes=6144, held_out=64, batch=16, schedule=Schedule(steps=4000, learning_rate=2e-3)
    ),
    "eagle": HeadPlan(),
    "eagle3": HeadPlan("eagle3", scenes=6144, schedule=Schedule(steps=4000, learning_rate=2e-3)),
    "eventgpt_adapter": HeadPlan("eventgpt_adapter", noise=0.0),
    "feature": HeadPlan("feature"),
}


def train_head(
    pair: ModelPair,
    batches: Batches,
    tests: Batches,
    run: Path,
    plan: HeadPlan = TINY_PLANS["eagle"],
    report: Report = lambda *_: None,
) -> Head:
    """Train a head, going on from where an earlier call in the same run directory was interrupted; of the
    weights that were examined, those with the longest acceptance on `tests`.

    report is called with the stage, how much of it is done, how much there is, and its figure: the loss for
    the plan's kind, and `acceptance`'s figures. Raises TrainingError for an objective that the kind cannot
    have and where the run directory belongs to another plan or another target.
    """
    objective = loss_of(plan.kind)
    terms = parse_objective(plan.objective or EAGLE)
    if objective is not feature_loss and plan.objective and set(terms) != {"cross_entropy"}:
        raise TrainingError(
            f"A head of kind {plan.kind} says tokens and predicts no features; its objective is "
            "cross_entropy alone."
        )
    for model in (pair.target, pair.event_model):
        model.requires_grad_(requires_grad=False)
    with process(pair.device).main_process_first():
        claim(run / "plan.json", {**asdict(plan), **pair.fingerprints})
    head = new_head(pair, plan, frequent_tokens(batches, plan.vocabulary))

    def loss(number: int) -> Tensor:
        return objective(pair, head, batches[_drawn(len(batches), number, plan.seed)], number, plan)

    examination = Examination(
        lambda: acceptance(pair, head, tests), max(1, plan.schedule.steps // EXAMINATIONS), plan.patience
    )
    fit(plan.kind, nn.ModuleDict({"head": head}), loss, plan.schedule, run, report, examination)
    return head


def new_head(pair: ModelPair, plan: HeadPlan, tokens: tuple[int, ...] = ()) -> Head:
    """An untrained head of the plan's kind for this pair, drawn from its seed; tokens: as `Eagle3Config`."""
    torch.manual_seed(plan.seed)
    sizes: HeadConfig = DRAFT_HEADS[plan.kind].config.for_target(
        pair.target.config.text, pair.event_model.config.text.hidden_size, pair.event_rows
    )
    if isinstance(sizes, AdapterConfig):
        sizes = replace(sizes, bottleneck=plan.bottleneck)
    elif isinstance(sizes, FeatureConfig):
        sizes = replace(sizes, bottleneck=plan.bottleneck, fusion=plan.fusion)
    elif isinstance(sizes, BlockConfig):
        sizes = replace(sizes.of_rows(plan.block), tokens=tokens, causal=plan.mask == MASKS[0])
    elif isinstance(sizes, Eagle3Config):
        sizes = replace(sizes, tokens=tokens)
    head: Head = DRAFT_HEADS[plan.kind].head(sizes)
    return head.to(pair.device)


def frequent_tokens(batches: Batches, count: int) -> tuple[int, ...]:
    """The tokens that answers hold most often, in order of their ids; of the first COUNTED batches."""
    if count == 0:
        return ()
    seen: Counter[int] = Counter()
    for index in range(min(len(batches), COUNTED)):
        answers = batches[index]
        for tokens, length in zip(answers.tokens.tolist(), answers.lengths.tolist(), strict=True):
            seen.update(tokens[:length])
    return tuple(sorted(token for token, _ in seen.most_common(count)))


def needed_features(pair: ModelPair, plan: HeadPlan) -> FeaturePlan:
    """What a head of the plan's kind reads."""
    head = new_head(pair, plan)
    layers, context = (
        (head.feature_layers(pair.target.config.text.num_layers), head.context(pair.prompt_rows - 1))
        if isinstance(head, BlockHead | DraftHead)
        else ((), 0)
    )
    return FeaturePlan.for_pair(
        pair,
        layers,
        context=context,
        max_new_tokens=plan.max_new_tokens,
        shard=plan.batch,
    )


def split(features: FeatureShards, wanted: FeaturePlan) -> tuple[Batches, Batches]:
    """What to learn from and, the last tenth of the shards, what to test with. Raises TrainingError where
    there is one shard alone and where features are missing that are wanted.
    """
    kept = features.plan
    missing = [layer for layer in wanted.layers if layer not in kept.layers]
    if missing or kept.context < wanted.context:
        raise TrainingError(
            f"The features in {features.directory} are of the target's layers {list(kept.layers)} and of "
            f"{kept.context} rows before the answer, and this head reads layers {list(wanted.layers)} and "
            f"{wanted.context} rows; extract them for it."
        )
    count = len(features)
    if count < 2:
        raise TrainingError(
            f"{features.directory} holds one shard, and one is to learn from and another to test with; "
            "extract more scenes or smaller shards."
        )
    learnt = count - -(-count // 10)
    return (
        Selected(features, range(learnt), kept, wanted),
        Selected(features, range(learnt, count), kept, wanted),
    )


# --- learning -----------------------------------------------------------------------------------------------


def loss_of(kind: str) -> Loss:
    """What a head of this kind is trained to make small, on one batch of a number."""
    head = DRAFT_HEADS[kind].head
    return {Eagle3Head: eagle3_loss, BlockHead: foretold_loss}.get(head, feature_loss)


def feature_loss(pair: ModelPair, head: Head, answers: Answers, number: int, plan: HeadPlan) -> Tensor:
    """The plan's objective on one batch; its noise follows from seed and number."""
    assert not isinstance(head, BlockHead)
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + number)
    features = answers.features[:, :-1]
    width = plan.noise * float(features.std())
    noise = (torch.rand(features.shape, generator=generator) * 2 - 1).to(features.device) * width
    used = answer_rows(answers)
    found = predicted(pair, head, answers, features + noise)[used].float()
    true = true_features(pair, answers)[used]
    return weighted(plan.objective or EAGLE, found, true, lambda rows: target_logits(pair, rows))


def eagle3_loss(pair: ModelPair, head: Head, answers: Answers, _: int, plan: HeadPlan) -> Tensor:
    """EAGLE-3's objective on one batch; of a reduced vocabulary where the target says one of its tokens."""
    assert isinstance(head, Eagle3Head)
    used = answer_rows(answers)
    inputs = head_inputs(pair, head, answers, answers.features[:, :-1])
    with torch.no_grad():
        wanted = target_logits(pair, true_features(pair, answers)).float()
    say: Callable[[Tensor], Tensor] = head.lm_head
    if isinstance(head.lm_head, ReducedHead):
        say, tokens = head.lm_head.of_tokens, head.lm_head.tokens
        used = used & torch.isin(wanted.argmax(-1), tokens)
        wanted = wanted[..., tokens]
    outputs = islice(unrolled(head, *inputs, used.shape[1]), plan.unroll)
    return unrolled_loss([say(head.norm(output)) for output in outputs], torch.softmax(wanted, -1), used)


def foretold_loss(pair: ModelPair, head: Head, answers: Answers, number: int, plan: HeadPlan) -> Tensor:
    """A block head's objective on one batch; the places of its blocks follow from seed and number."""
    assert isinstance(head, BlockHead)
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + number)
    return block_loss(pair, head, answers, random_places(answers.lengths, generator))


def _drawn(count: int, number: int, seed: int) -> int:
    """Batches in another order in every epoch."""
    epoch, place = divmod(number, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return int(order[place])
