"""Online distillation: a draft head learns from the texts that the target writes while it describes.

As in Online Speculative Decoding (Liu et al. 2024, arXiv 2310.07177) verified tokens and the target's
features, which decoding computes anyway, teach a copy of the head. The copy takes the head's place between
two descriptions, and only if its acceptance is longer on the newest windows, which it did not learn from. A
head that begins from nothing drafts once it would have taken the passes of these windows further than what
drafted them.

What is kept is bounded in bytes, what is computed in steps for each window and in its share of time; all of
it happens in one thread of the lowest priority, which begins no step while a description is being written.
The text stays the target's, whoever drafts. What was learnt is saved every few minutes and at the end.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evspec_ros.cancellation import Cancellation
from evspec_ros.errors import CancelledError, CheckpointError, Failure
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.head_store import HeadStore
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.speculative.drafter import Drafter
from evspec_ros.speculative.learner import Beginner
from evspec_ros.training.acceptance import CHAIN, acceptance, accepted_drafts
from evspec_ros.training.draft_heads import HeadPlan, loss_of
from evspec_ros.training.features import ModelPair
from evspec_ros.training.loop import MAX_GRADIENT_NORM
from evspec_ros.training.observed import ObservedDrafter, Pupil, Written, alike, size, together

LOWEST_PRIORITY = 19
SAVE_EVERY_S = 180.0
# A new head drafts where it makes passes a quarter longer: a pass of its own costs part of a pass of theirs.
WORTHWHILE = 1.25
WAITING = 8  # windows at most whose events nobody has read yet


@dataclass(frozen=True)
class OnlineSettings:
    """max_bytes: of the windows kept (one of a 7B pair takes about twelve million); held_out: the newest of
    them, to compare heads on; steps: of learning for each new window, on `batch` others each, after every
    `trial` of which the heads are compared; setback: a copy that is accepted less far than this share of the
    head begins anew; share: of the time that may be spent.
    """

    max_bytes: int = 512 * 2**20
    held_out: int = 8
    steps: int = 16
    batch: int = 1
    trial: int = 64
    learning_rate: float = 1e-4
    setback: float = 1.0
    share: float = 0.25


REFINING = OnlineSettings()
# Random weights are far from all that is right: long steps, of gradients that several windows agree on, few
# for each window, as there are few yet; and steps back are allowed, or a lucky copy would end all progress.
FROM_NOTHING = OnlineSettings(steps=4, batch=8, trial=32, learning_rate=1e-3, setback=0.7, share=0.5)


class OnlineDistiller:
    """Teaches copies of the head that drafts.

    One thread describes: it calls `observed`, `writing` and `take`. Another one learns, from `start` to
    `close`. version counts the heads that have drafted, 0 being the one that was loaded.
    """

    def __init__(
        self,
        pair: ModelPair,
        pupil: Pupil,
        settings: OnlineSettings,
        *,
        drafts: bool = True,
        store: HeadStore | None = None,
    ) -> None:
        """drafts: whether the pupil drafts already; store: where it is saved, None for nowhere."""
        for model in (pair.target, pair.event_model):
            model.requires_grad_(requires_grad=False)
        self.version = 0
        self.drafts = drafts
        self.steps = 0  # of learning, in all
        # Of the copy alone on the newest windows, when it was last compared; nobody follows a new one.
        self.accepted: float | None = None if drafts else 1.0
        self._pair = pair
        self._pupil = pupil
        self._head = pupil.head
        self._settings = settings
        self._store = store
        self._saved_steps = 0
        self._saved_at = time.monotonic()
        self._plan = HeadPlan(pupil.head.config.kind)
        self._waiting: deque[Callable[[], Written]] = deque(maxlen=WAITING)
        self._windows: deque[Written] = deque()
        self._bytes = 0
        self._owed = 0  # steps for the windows that came
        self._changed = threading.Condition()  # guards the windows, what is owed and what is offered
        self._learning = threading.RLock()  # held while weights change
        self._step = Cancellation()  # of what is learnt now
        self._writing = self._closed = False
        self._failure: Failure | None = None
        self._offered: dict[str, Tensor] | None = None
        self._champion = deepcopy(pupil.head).float()  # as the head that drafts, for the other thread
        self._student = deepcopy(self._champion)
        self._random = torch.Generator().manual_seed(0)
        self._optimizer = self._new_optimizer()
        self._thread = threading.Thread(target=self._work, name="distil", daemon=True)

    @classmethod
    def between_windows(
        cls,
        target: VideoLlava,
        event_model: EventGpt,
        beginner: Beginner,
        settings: OnlineSettings | None = None,
    ) -> OnlineDistiller:
        """What teaches the head of a describer: what it reads of the windows comes from the describer's own
        passes, and never from prompts of its own. settings: by default those that suit the head.
        """
        nothing = torch.empty(0, dtype=torch.int64, device=target.lm_head.weight.device)
        head = beginner.head
        layers = head.feature_layers(target.config.text.num_layers)
        return cls(
            ModelPair(target, event_model, nothing, (nothing, nothing)),
            Pupil(head, layers, beginner.pooling),
            settings or (FROM_NOTHING if beginner.new else REFINING),
            drafts=beginner.drafts,
            store=beginner.store,
        )

    def start(self) -> bool:
        """Begin to learn; False where it has begun already."""
        first = self._thread.ident is None
        if first:
            self._thread.start()
        return first

    def close(self) -> None:
        """End the thread, and save what was learnt."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.save()

    def save(self) -> None:
        """Write the head to its place, if it has learnt since the last time: the one that drafts, and where
        none does, the one that learns; a step under way is given up. A failure is told by `take_failure`.
        """
        self._step.cancel("What was learnt until now is saved.")
        with self._learning:
            self._saved_at = time.monotonic()
            if self._store is None or self.steps == self._saved_steps:
                return
            self._saved_steps = self.steps
            try:
                self._store.save(self._champion if self.drafts else self._student, drafts=self.drafts)
            except CheckpointError as error:
                with self._changed:
                    self._failure = Failure.of(error)

    # --- the describing thread ----------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing is to be learnt until the next window."""
        with self._learning, self._changed:
            return not self._due

    def observed(self, drafter: Drafter) -> Drafter:
        """The drafter, with what the target says to it kept to learn from."""
        return ObservedDrafter(drafter, self._pupil, self._keep)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """No step begins meanwhile."""
        with self._changed:
            self._writing = True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def take(self) -> bool:
        """Put a better copy into the head's place, if there is one; whoever holds its weights must read them
        anew.
        """
        with self._changed:
            offered, self._offered = self._offered, None
        if offered is None:
            return False
        self._head.load_state_dict(offered)
        self.version += 1
        self.drafts = True
        return True

    def take_failure(self) -> Failure | None:
        """Why a step of learning failed, told once; None where none did."""
        with self._changed:
            failure, self._failure = self._failure, None
        return failure

    def add(self, window: Written) -> None:
        """Keep one window, float16 and on the CPU, and forget the oldest ones beyond max_bytes."""
        with self._changed:
            self._windows.append(window)
            self._bytes += size(window)
            while self._bytes > self._settings.max_bytes:
                self._bytes -= size(self._windows.popleft())
            self._owed = min(self._owed + self._settings.steps, len(self._windows) * self._settings.steps)
            self._changed.notify_all()

    def _keep(self, made: Callable[[], Written]) -> None:
        """Keep a window when there is time to read its events, if nobody needed them to draft."""
        with self._changed:
            self._waiting.append(made)
            self._changed.notify_all()

    # --- the learning thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        _lower_priority()
        while self._wait():
            started, self._step = time.monotonic(), Cancellation()
            try:
                with self._learning, self._step.scope(), suppress(CancelledError):
                    self._go_on()
            except Exception as error:  # noqa: BLE001 - the thread goes on with the next window, and it is told
                self._give_up(Failure.of(error))
            busy = time.monotonic() - started
            time.sleep(busy * (1 / self._settings.share - 1))

    def _go_on(self) -> None:
        """Read the events of a window that came, or learn; save now and then."""
        with self._changed:
            made = self._waiting.popleft() if self._waiting else None
        if made is not None:
            self.add(made())
            return
        with self._changed:
            self._owed -= 1
        self.learn()
        if self.steps % self._settings.trial == 0:
            self.compare()
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self.save()

    def _give_up(self, failure: Failure) -> None:
        """Learn no more from the windows that came, and begin anew from the head."""
        self._begin_anew()
        with self._changed:
            self._failure, self._owed = failure, 0

    def _begin_anew(self) -> None:
        self._student.load_state_dict(self._champion.state_dict())
        self._optimizer = self._new_optimizer()

    def _wait(self) -> bool:
        """Until a step is due; False when it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._due and not self._writing))
            return not self._closed

    @property
    def _due(self) -> bool:
        # one offer at a time: what follows is compared with the head that it becomes
        enough = len(self._windows) >= self._settings.held_out + self._settings.batch
        return bool(self._waiting) or (self._owed > 0 and enough and self._offered is None)

    def learn(self) -> None:
        """One step on windows that are not among the newest."""
        with self._changed:
            older = list(self._windows)[: len(self._windows) - self._settings.held_out]
        drawn = torch.randint(len(older), (self._settings.batch,), generator=self._random).tolist()
        windows = [older[number] for number in dict.fromkeys(drawn) if alike(older[number], older[drawn[0]])]
        loss = loss_of(self._plan.kind)
        with self._autocast():
            answers = together(windows, self._pair.device)
            value = loss(self._pair, self._student, answers, self.steps, self._plan)
        self._optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._student.parameters(), MAX_GRADIENT_NORM)
        self._optimizer.step()
        self.steps += 1

    def compare(self) -> None:
        """Offer the copy if it is accepted further than the head on the newest windows; begin anew from the
        head if it is accepted much less far. Where no head drafts yet, offer it if drafting with it were
        worth the while there.
        """
        with self._changed:
            newest = list(self._windows)[-self._settings.held_out :]
        tests = [together([window], self._pair.device) for window in newest]
        with self._autocast():
            self.accepted = ours = acceptance(self._pair, self._student, tests)["acceptance length"]
            if self.drafts:
                theirs = acceptance(self._pair, self._champion, tests)["acceptance length"]
            else:
                ours, theirs = self._beside(newest)
                theirs = min(ours, WORTHWHILE * theirs)  # what is not good enough learns on
        if ours > theirs:
            self._champion.load_state_dict(self._student.state_dict())
            weights = {name: value.clone() for name, value in self._student.state_dict().items()}
            with self._changed:
                self._offered = weights
        elif ours < self._settings.setback * theirs:
            self._begin_anew()

    @torch.inference_mode()
    def _beside(self, windows: list[Written]) -> tuple[float, float]:
        """Tokens per pass of the target if the copy had drafted, too, and as they were.

        A head that is new drafts beside what drafts without it (a tree of both is followed as far as the
        farther of them), so what counts is not how far it comes alone but how much further a pass would have
        come: of the passes that the target really made, from the tokens behind which it made them.
        """
        beside = alone = passes = 0
        for window in windows:
            answers = together([window], self._pair.device)
            follows = accepted_drafts(self._pair, self._student, answers, CHAIN)[0].cpu()
            places, emitted = window.passes.unbind(1)
            would = torch.minimum(
                follows[places] + 1, len(follows) - places
            )  # the bonus, if the text goes on
            beside += int(torch.maximum(would, emitted).sum())
            alone += int(emitted.sum())
            passes += len(places)
        return beside / max(1, passes), alone / max(1, passes)

    def _autocast(self) -> torch.autocast:
        """The copies are float32, whatever the models are."""
        dtype = self._pair.target.lm_head.weight.dtype
        return torch.autocast(self._pair.device.type, dtype, enabled=dtype in {torch.half, torch.bfloat16})

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self._student.parameters(), self._settings.learning_rate, (0.9, 0.98))


def _lower_priority() -> None:
    """Of this thread alone, and of those that it starts; elsewhere than on Linux it is the process's to
    set.
    """
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
