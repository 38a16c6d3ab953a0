"""How large a study is; read without torch, so that the command line can say it."""

from __future__ import annotations

from dataclasses import dataclass

from evspec_ros.choices import CONDITIONS


@dataclass(frozen=True)
class StudyPlan:
    """How much is trained and tested.

    seeds: how many trainings of each kind; scenes: to learn from, of the condition MIXED; held_out: to test
    with, of each condition; steps: of each training; sizes: adapters' parameters, in millions; amounts: of
    scenes, beside `scenes`, to see how acceptance grows with them; raced: windows of the race; conditions:
    of the scenes to test with.
    """

    seeds: int = 3
    scenes: int = 2048
    held_out: int = 128
    steps: int = 400
    batch: int = 32
    sizes: tuple[float, ...] = (0.5, 2, 10)
    amounts: tuple[int, ...] = (128, 512)
    raced: int = 40
    conditions: tuple[str, ...] = CONDITIONS
