"""How large a study is; read without torch, so that the command line can say it."""

from __future__ import annotations

from dataclasses import dataclass

from evspec_ros.choices import CONDITIONS, MIXED


@dataclass(frozen=True)
class StudyPlan:
    """How much is trained and tested.

    kinds: of heads that are compared with and without events, and nothing else is asked; none for all kinds
    and all questions. seeds: how many trainings of each kind; scenes: to learn from, of `condition`;
    held_out: to test with, of each of `conditions`; steps: of each training; sizes: adapters' parameters, in
    millions; amounts: of scenes, beside `scenes`, to see how acceptance grows with them; raced: windows of
    the race.
    """

    kinds: tuple[str, ...] = ()
    seeds: int = 3
    scenes: int = 2048
    held_out: int = 128
    steps: int = 400
    batch: int = 32
    sizes: tuple[float, ...] = (0.5, 2, 10)
    amounts: tuple[int, ...] = (128, 512)
    raced: int = 40
    condition: str = MIXED
    conditions: tuple[str, ...] = CONDITIONS

    @property
    def whole(self) -> bool:
        """Whether all kinds are studied, and with them sizes, amounts of data and the race."""
        return not self.kinds
