"""Speculative decoding: drafters propose, the target verifies, nothing is lost. Tokens and tensors, no
cameras.
"""

from evspec_ros.speculative.drafter import DEFAULT_LIMITS, Drafter, DraftLimits, NoDrafter, Prompt
from evspec_ros.speculative.event_side import EventSide
from evspec_ros.speculative.generate import Generation, generate, generate_together
from evspec_ros.speculative.registry import (
    DEFAULT_DRAFTER,
    DRAFTERS,
    INGREDIENTS,
    DraftModels,
    drafter_kind,
    drafters_of_heads,
    make_combined,
    make_drafter,
)
from evspec_ros.speculative.shared_cache import Block
from evspec_ros.speculative.statistics import DecodingStatistics
from evspec_ros.speculative.target import DecoderTarget, Target, TargetPass
from evspec_ros.speculative.tree import DraftTree

__all__ = [
    "DEFAULT_DRAFTER",
    "DEFAULT_LIMITS",
    "DRAFTERS",
    "INGREDIENTS",
    "Block",
    "DecoderTarget",
    "DecodingStatistics",
    "DraftLimits",
    "DraftModels",
    "DraftTree",
    "Drafter",
    "EventSide",
    "Generation",
    "NoDrafter",
    "Prompt",
    "Target",
    "TargetPass",
    "drafter_kind",
    "drafters_of_heads",
    "generate",
    "generate_together",
    "make_combined",
    "make_drafter",
]
