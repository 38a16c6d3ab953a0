"""What is done once when the node is configured: the networks are loaded and everything is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from evspec_ros.describer import SceneDescriber
from evspec_ros.loading import load_describer
from evspec_ros.ros.ingest import warm_up
from evspec_ros.ros.log import forwarded
from evspec_ros.ros.parameters import Settings
from evspec_ros.training.online import OnlineDistiller


def load(settings: Settings, log: Any) -> SceneDescriber:
    """A describer as the settings ask for, warmed up; log: the node's logger. Raises EvspecError."""
    with forwarded(log):
        describer = _load(settings, log)
        describer.require_room(settings.prompts, settings.limits)
        describer.warm_up()
        warm_up()
    return describer


def _load(settings: Settings, log: Any) -> SceneDescriber:
    """What the settings ask for; which of the choices that were left open were made goes to the log."""
    if settings.threads:
        torch.set_num_threads(settings.threads)  # the worker, a thread to come, takes it over
    target, event_model, draft_head = settings.checkpoints
    describer = load_describer(
        target, event_model, draft_head,
        drafter=settings.drafter, device=settings.device, dtype=settings.dtype,
        kv_dtype=settings.kv_dtype, exact_half=settings.exact_half,
        backend=settings.backend, drafter_backend=settings.drafter_backend,
        overlap=settings.overlap, event_pooling=settings.event_pooling,
        draft_head_dir=Path(settings.draft_head_dir) if settings.draft_head_dir else None,
        learner=OnlineDistiller.between_windows if settings.learns else None,
    )  # fmt: skip
    log.info(f"The target runs on {describer.execution}. {describer.chosen}")
    log.info(f"The drafter runs on {describer.drafting}.")
    if describer.left_out:
        log.warning(describer.left_out)
    return describer
