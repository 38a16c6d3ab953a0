"""Which draft head there is, and which way of drafting it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from evspec_ros.choices import AUTO_DRAFTER, NEW_HEAD
from evspec_ros.errors import CheckpointError, EvspecError, GenerationError
from evspec_ros.networks.block_head import BlockConfig, BlockHead
from evspec_ros.networks.checkpoints import Head, load_draft_head, read_draft_head_config
from evspec_ros.networks.fit import HeadConfig, require_head_fits
from evspec_ros.networks.head_store import HeadStore, default_directory
from evspec_ros.networks.memory import Checkpoints
from evspec_ros.networks.weights import Device
from evspec_ros.speculative.learner import Beginner
from evspec_ros.speculative.registry import DEFAULT_DRAFTER, drafters_of_heads

SEED = 0  # of a new head's first weights


@dataclass(frozen=True)
class DraftPlan:
    """A way of drafting, told from the sizes of checkpoints alone.

    asked: the name that was given; drafter: the one of DRAFTERS that it became, and reason: why; path,
    config: of the head, None without one, of a new one NEW_HEAD and the sizes that it will have; left_out:
    what cannot be used, in sentences.
    """

    asked: str
    drafter: str
    reason: str
    path: Path | None = None
    config: HeadConfig | None = None
    left_out: tuple[str, ...] = ()

    @property
    def new(self) -> bool:
        """Whether the head begins from nothing."""
        return self.path == Path(NEW_HEAD)

    def without_head(self, problem: str = "") -> DraftPlan:
        """What is left where the head cannot be used, and why it cannot."""
        auto = self.asked == AUTO_DRAFTER
        return DraftPlan(
            self.asked,
            DEFAULT_DRAFTER if auto else self.asked,
            "there is no draft head to use, and the stream's last texts need none" if auto else self.reason,
            left_out=(*self.left_out, f"The draft head is not used: {problem}") if problem else self.left_out,
        )


def plan_drafting(asked: str, path: Path | None, sizes: Checkpoints) -> DraftPlan:
    """How the drafter of that name drafts with the head in a directory, with NEW_HEAD, or with none.

    AUTO_DRAFTER goes without a head that cannot be used. Otherwise raises CheckpointError for such a head,
    and GenerationError for a name that there is not and where a new head cannot learn.
    """
    drafters = drafters_of_heads(asked, event_model=sizes.event_model is not None)
    plan = DraftPlan(asked, asked, "it was asked for", path)
    if path is None or not drafters:
        return plan.without_head()
    if plan.new:
        return _beginning(plan, drafters, sizes)
    try:
        config = _fitting(plan, path, drafters, sizes)
    except CheckpointError as error:
        if asked != AUTO_DRAFTER:
            raise
        return plan.without_head(str(error))
    reason = f"the draft head {path} is of kind {config.kind}" if asked == AUTO_DRAFTER else plan.reason
    return replace(plan, drafter=drafters[config.kind], config=config, reason=reason)


def load_head(plan: DraftPlan, dtype: torch.dtype, device: Device) -> tuple[Head | None, DraftPlan]:
    """The weights of the plan's head, and what became of the plan; raises CheckpointError for damaged ones
    unless AUTO_DRAFTER can go without.
    """
    if plan.path is None:
        return None, plan
    try:
        return load_draft_head(plan.path, dtype, device), plan
    except CheckpointError as error:
        if plan.asked != AUTO_DRAFTER:
            raise
        return None, plan.without_head(str(error))


def begin_head(
    plan: DraftPlan,
    directory: Path | None,
    pair: Mapping[str, str],
    sizes: Checkpoints,
    pooling: int,
    dtype: torch.dtype,
    device: Device,
) -> tuple[Beginner, DraftPlan]:
    """A head that learns from nothing, or goes on from what an earlier start left in a directory (None: the
    user's own), and what became of the plan. A head there that cannot be used is moved aside; where nothing
    can be saved, the head learns all the same.
    """
    problems: list[str] = []
    found = store = None
    try:
        store = HeadStore(directory or default_directory(pair), pair)
        try:
            found = store.load(lambda config: _require_fit(config, sizes, "It"), dtype, device)
        except CheckpointError as error:
            aside = store.set_aside()
            problems.append(
                f"A new draft head begins, as the one in {store.directory}, now in {aside.name} there, "
                f"cannot be used: {error}"
            )
        store.require_writable()
    except EvspecError as error:
        problems.append(str(error))
        store = None
    head, drafts = found or (_random_head(plan, dtype, device), False)
    reason = plan.reason
    if plan.asked == AUTO_DRAFTER and drafts and store is not None:
        reason = f"the draft head that was learnt before lies in {store.directory}"
    plan = replace(plan, reason=reason, left_out=(*plan.left_out, *problems))
    return Beginner(head, pooling, drafts=drafts, new=True, store=store), plan


def _beginning(plan: DraftPlan, drafters: Mapping[str, str], sizes: Checkpoints) -> DraftPlan:
    if drafters.get(BlockConfig.kind) != DEFAULT_DRAFTER:
        raise GenerationError(
            f"A new draft head cannot draft as {plan.asked!r} while it learns; choose the drafter "
            f"{AUTO_DRAFTER} or {DEFAULT_DRAFTER}."
        )
    if sizes.event_model is None:
        raise GenerationError("A new draft head learns from an event model, too; name one, or a head.")
    config = BlockConfig.for_target(sizes.target.text, sizes.event_model.text.hidden_size, sizes.event_tokens)
    auto = plan.asked == AUTO_DRAFTER
    reason = "a new draft head learns, and drafts once it is accepted further" if auto else plan.reason
    return replace(plan, drafter=DEFAULT_DRAFTER, config=config, reason=reason)


def _fitting(plan: DraftPlan, path: Path, drafters: Mapping[str, str], sizes: Checkpoints) -> HeadConfig:
    """The sizes of the head in a directory; CheckpointError where the drafter cannot use it."""
    config = read_draft_head_config(path)
    if config.kind not in drafters:
        raise CheckpointError(
            f"{path} holds a draft head of kind {config.kind!r} and the drafter {plan.asked!r} needs one of "
            f"kind {' or '.join(map(repr, drafters))}; give such a one or choose another drafter."
        )
    _require_fit(config, sizes, f"The draft head {path}")
    return config


def _require_fit(config: HeadConfig, sizes: Checkpoints, name: str) -> None:
    event_size = None if sizes.event_model is None else sizes.event_model.text.hidden_size
    require_head_fits(config, sizes.target.text, event_size, name)


def _random_head(plan: DraftPlan, dtype: torch.dtype, device: Device) -> BlockHead:
    assert isinstance(plan.config, BlockConfig)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return BlockHead(plan.config).to(device, dtype).eval()
