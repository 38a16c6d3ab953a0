"""What one would use instead: each file here is a peer of `evspec bench peers`.

A file has a function `peers(models) -> list[Peer]`; being here is all that it takes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evspec_ros.windows import Window


@dataclass(frozen=True)
class PeerModels:
    """Checkpoint directories; heads: those of draft heads, by their kind. max_new_tokens: of every text."""

    target: Path
    event_model: Path
    heads: dict[str, Path]
    max_new_tokens: int


@dataclass(frozen=True)
class PeerText:
    """What a peer wrote about a window: ids, the end token included, the text, and milliseconds from the
    window's frames and events to the first token and to the text.
    """

    tokens: tuple[int, ...]
    text: str
    first_token_ms: float
    total_ms: float


class Peer(Protocol):
    """A way of describing windows. name: in reports, begins with whose it is; about: in a few words."""

    name: str
    about: str

    def load(self) -> None:
        """Read the checkpoints; may raise anything, which is reported as the peer's failure."""

    def begin_stream(self) -> None:
        """The next window does not follow the last one."""

    def describe(self, window: Window) -> PeerText:
        """Write about one window; may raise anything, as `load`."""


def all_peers(models: PeerModels) -> list[Peer]:
    """Those of every file of this package, by their names."""
    found: Sequence[Peer] = [
        peer
        for module in pkgutil.iter_modules(__path__)
        for peer in importlib.import_module(f"{__name__}.{module.name}").peers(models)
    ]
    return sorted(found, key=lambda peer: peer.name)
