"""Where a draft head that learns while it drafts is kept: a directory as every head's, with a third file that
says which models it learns from.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path

import torch

from evspec_ros.errors import CheckpointError
from evspec_ros.files import state_directory
from evspec_ros.networks.block_head import BlockConfig, BlockHead
from evspec_ros.networks.checkpoints import Head, load_draft_head, read_draft_head_config
from evspec_ros.networks.tokenizer import Tokenizer
from evspec_ros.networks.weights import (
    CONFIG,
    WEIGHTS,
    Device,
    read_json,
    saved_state,
    weight_files,
    write_directory,
)

LEARNT_FROM = "learnt_from.json"
SAMPLES, SAMPLE = 64, 4096  # of each file of weights, and bytes of each
_SHOWN = {"target": "target", "event_model": "event model", "vocabulary": "vocabulary"}


def fingerprints(target: Path, event_model: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """Of a target, an event model and the target's vocabulary a text that differs where they differ: of
    weights by samples of their files, as reading all of them takes minutes. Raises CheckpointError where they
    cannot be read.
    """
    tokens = json.dumps(sorted(tokenizer.base_tokens().items()))
    return {
        "target": _fingerprint(target),
        "event_model": _fingerprint(event_model),
        "vocabulary": sha256(tokens.encode()).hexdigest(),
    }


def default_directory(pair: Mapping[str, str]) -> Path:
    """The user's own for a head of these `fingerprints`."""
    key = sha256(json.dumps(pair, sort_keys=True).encode()).hexdigest()[:16]
    return state_directory() / "draft_heads" / key


@dataclass(frozen=True)
class HeadStore:
    """directory: of the head; pair: `fingerprints` of what it learns from."""

    directory: Path
    pair: Mapping[str, str]

    def require_writable(self) -> None:
        """Raise CheckpointError where nothing can be saved."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.directory).close()
        except OSError as error:
            raise CheckpointError(
                f"The draft head cannot be saved in {self.directory} ({error}), and what it learns is lost "
                "when it ends; choose another draft_head_dir."
            ) from error

    def load(
        self, require_fit: Callable[[BlockConfig], None], dtype: torch.dtype, device: Device
    ) -> tuple[BlockHead, bool] | None:
        """The head that was saved, and whether it drafted already; None where none was.

        Raises CheckpointError for one that is damaged, learnt from other models, or does not fit as
        `require_fit` tells.
        """
        if not any((self.directory / name).exists() for name in (CONFIG, WEIGHTS)):
            return None
        config = read_draft_head_config(self.directory)
        if not isinstance(config, BlockConfig):
            raise CheckpointError(
                f"it is of kind {config.kind!r}, and one that begins from nothing is a block head."
            )
        about = self._learnt_from()
        others = [
            shown for name, shown in _SHOWN.items() if about.get(name, self.pair[name]) != self.pair[name]
        ]
        if others:
            raise CheckpointError(f"it was learnt from another {' and another '.join(others)}.")
        require_fit(config)
        head = load_draft_head(self.directory, dtype, device)
        assert isinstance(head, BlockHead)
        return head, bool(about.get("drafts", True))

    def set_aside(self) -> Path:
        """Move a head that is of no use here out of the way of the one that will be saved, and say where to;
        raises CheckpointError where that cannot be done.
        """
        numbers = (self.directory / f"set_aside_{number}" for number in count(1))
        aside = next(path for path in numbers if not path.exists())
        try:
            aside.mkdir()
            for name in (CONFIG, WEIGHTS, LEARNT_FROM):
                if (self.directory / name).exists():
                    (self.directory / name).rename(aside / name)
        except OSError as error:
            raise CheckpointError(
                f"The draft head in {self.directory} cannot be moved ({error}); choose another one."
            ) from error
        return aside

    def save(self, head: Head, *, drafts: bool) -> None:
        """Write the head, each file whole or not at all; raises CheckpointError where it cannot be."""
        about = {**self.pair, "drafts": drafts}
        write_directory(
            self.directory,
            saved_state(head, torch.float16),
            {LEARNT_FROM: about, CONFIG: head.config.to_dict()},
        )

    def _learnt_from(self) -> Mapping[str, object]:
        """As `save` wrote it; nothing of a head that was trained elsewhere and put there."""
        file = self.directory / LEARNT_FROM
        return read_json(file) if file.exists() else {}


def _fingerprint(checkpoint: Path) -> str:
    digest = sha256((checkpoint / CONFIG).read_bytes())
    for file in weight_files(checkpoint):
        length = file.stat().st_size
        digest.update(f"{file.name} {length}".encode())
        with file.open("rb") as opened:
            for number in range(SAMPLES):
                opened.seek(max(0, length - SAMPLE) * number // (SAMPLES - 1))
                digest.update(opened.read(SAMPLE))
    return digest.hexdigest()
