"""Whether a draft head belongs to a target and an event model, told from their sizes alone."""

from __future__ import annotations

from collections.abc import Iterator

from evspec_ros.errors import CheckpointError
from evspec_ros.networks.adapters import AdapterConfig, FeatureConfig
from evspec_ros.networks.block_head import BlockConfig
from evspec_ros.networks.draft_head import Eagle3Config, EagleConfig
from evspec_ros.networks.llama import LlamaConfig

HeadConfig = BlockConfig | EagleConfig | Eagle3Config | AdapterConfig | FeatureConfig


def require_head_fits(
    head: HeadConfig, target: LlamaConfig, event_size: int | None, name: str = "The draft head"
) -> None:
    """Raise CheckpointError, with all that is wrong, where a head cannot draft for a target from an event
    model's features of `event_size` values (None: there is no event model).

    Positions are no matter: where a head has fewer than a text needs, its drafts end there.
    """
    problems = [*_misfits(head, target), *_event_misfits(head, event_size)]
    if problems:
        raise CheckpointError(
            f"{name} does not fit: {'; '.join(problems)}; use the head that was trained for this target and "
            "event model."
        )


def _misfits(head: HeadConfig, target: LlamaConfig) -> Iterator[str]:
    """What of a head contradicts the target, or itself."""
    width = head.target_size if isinstance(head, BlockConfig | Eagle3Config) else head.hidden_size
    if width != target.hidden_size:
        yield f"it was made for features of {width} values and the target has {target.hidden_size}"
    if isinstance(head, BlockConfig | Eagle3Config):
        beyond = [layer for layer in head.layers if not 0 <= layer <= target.num_layers]
        if beyond or not head.layers:
            read = f"layer {beyond[0]}" if beyond else "no layer"
            yield f"it reads {read} of the target, which has 0 (its embeddings) to {target.num_layers}"
        if head.vocab_size != target.vocab_size:
            yield f"it says {head.vocab_size} tokens and the target {target.vocab_size}"
    if isinstance(head, BlockConfig | EagleConfig | Eagle3Config):
        layer = head.layer
        if layer.head_dim % 2 or layer.num_kv_heads < 1 or layer.num_heads % layer.num_kv_heads:
            yield (
                f"its {layer.num_heads} heads of {layer.head_dim} values cannot share {layer.num_kv_heads} "
                "keys that are rotated in pairs"
            )


def _event_misfits(head: HeadConfig, event_size: int | None) -> Iterator[str]:
    if event_size is not None and head.event_size != event_size:
        yield (
            f"it was made for event features of {head.event_size} values and the event model gives "
            f"{event_size}"
        )
