"""This project's own ways: plain decoding, EAGLE-3's and DFlash's as published, and all of it together."""

from __future__ import annotations

import time

from evspec_ros.describer import SceneDescriber
from evspec_ros.description import Limits
from evspec_ros.evaluation.peers import Peer, PeerModels, PeerText
from evspec_ros.loading import load_describer
from evspec_ros.speculative.registry import drafter_kind
from evspec_ros.windows import Window

ABOUT = {
    "none": "plain decoding on this project's own decoder",
    "eagle3": "EAGLE-3's head and tree",
    "block": "DFlash's way, a block drafted in one pass",
    "combined": "the default: a head, and the stream's past",
}


class OwnPeer:
    """A describer with one drafter."""

    def __init__(self, drafter: str, models: PeerModels) -> None:
        self.name, self.about = f"evspec {drafter}", ABOUT[drafter]
        self._drafter, self._models = drafter, models
        self._limits = Limits(max_new_tokens=models.max_new_tokens)
        self._describer: SceneDescriber | None = None

    def load(self) -> None:
        """See Peer."""
        kinds = drafter_kind(self._drafter).head_kinds
        head = next((self._models.heads[kind] for kind in kinds if kind in self._models.heads), None)
        models = self._models
        self._describer = load_describer(models.target, models.event_model, head, drafter=self._drafter)
        self._describer.warm_up()

    def begin_stream(self) -> None:
        """See Peer."""
        assert self._describer
        self._describer.forget_stream()

    def describe(self, window: Window) -> PeerText:
        """See Peer."""
        assert self._describer
        heard: list[float] = []
        began = time.perf_counter()
        described = self._describer.describe(
            window.events,
            window.frames,
            stamp_ns=window.stamp_ns,
            limits=self._limits,
            on_text=lambda _: heard.append(time.perf_counter()),
        )
        ended = time.perf_counter()
        return PeerText(described.tokens, described.text, 1e3 * (heard[0] - began), 1e3 * (ended - began))


def peers(models: PeerModels) -> list[Peer]:
    """One for each of ABOUT."""
    return [OwnPeer(drafter, models) for drafter in ABOUT]
