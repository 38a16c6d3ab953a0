"""Online distillation: a draft head learns from the texts that the target writes while it describes.

As in Online Speculative Decoding (Liu et al. 2024, arXiv 2310.07177) verified tokens and the target's
features, which decoding computes anyway, teach a copy of the head. The copy takes the head's place between
two descriptions, and only if its acceptance is longer on the newest windows, which it did not learn from.
What is kept is bounded in bytes, what is computed in steps for each window and in its share of time; all of
it happens in one thread of the lowest priority, which begins no step while a description is being written.
The text stays the target's, whoever drafts.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evspec_ros.errors import Failure
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.speculative.drafter import Drafter, DraftLimits, Prompt
from evspec_ros.speculative.event_side import pooled
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.tree import DraftTree
from evspec_ros.training.acceptance import acceptance
from evspec_ros.training.draft_heads import HeadPlan, loss_of
from evspec_ros.training.features import Answers, ModelPair
from evspec_ros.training.loop import MAX_GRADIENT_NORM

LOWEST_PRIORITY = 19
LEAST_ROWS = 2  # tokens of a text that is worth learning from


@dataclass(frozen=True)
class OnlineSettings:
    """max_bytes: of the windows kept; held_out: the newest of them, to compare heads on; steps: of learning
    for each new window, after every `trial` of which the heads are compared; share: of the time that may be
    spent.
    """

    max_bytes: int = 64 * 2**20
    held_out: int = 8
    steps: int = 16
    trial: int = 64
    learning_rate: float = 1e-4
    share: float = 0.25


class OnlineDistiller:
    """Teaches copies of the head that drafts.

    One thread describes: it calls `observed`, `writing` and `take`. Another one learns, from `start` to
    `close`. version counts the heads that have drafted, 0 being the one that was loaded.
    """

    def __init__(self, pair: ModelPair, head: DraftHead, settings: OnlineSettings, pooling: int = 1) -> None:
        """pooling: of the event tokens that the head reads."""
        for model in (pair.target, pair.event_model):
            model.requires_grad_(requires_grad=False)
        self.version = 0
        self.steps = 0  # of learning, in all
        self._pair = pair
        self._head = head
        self._settings = settings
        self._pooling = pooling
        self._plan = HeadPlan(head.config.kind)
        self._windows: deque[Answers] = deque()
        self._bytes = 0
        self._owed = 0  # steps for the windows that came
        self._changed = threading.Condition()  # guards the windows, what is owed and what is offered
        self._writing = False
        self._closed = False
        self._failure: Failure | None = None
        self._offered: dict[str, Tensor] | None = None
        self._champion = deepcopy(head).float()  # as the head that drafts, for the other thread
        self._student = deepcopy(self._champion)
        self._random = torch.Generator().manual_seed(0)
        self._optimizer = self._new_optimizer()
        self._thread = threading.Thread(target=self._work, name="distil", daemon=True)

    @classmethod
    def between_windows(
        cls,
        target: VideoLlava,
        event_model: EventGpt,
        head: DraftHead,
        pooling: int,
        settings: OnlineSettings = OnlineSettings(),
    ) -> OnlineDistiller:
        """What teaches the head of a describer: what it reads of the windows comes from the describer's own
        passes, and never from prompts of its own.
        """
        nothing = torch.empty(0, dtype=torch.int64, device=target.lm_head.weight.device)
        return cls(ModelPair(target, event_model, nothing, (nothing, nothing)), head, settings, pooling)

    def start(self) -> bool:
        """Begin to learn; False where it has begun already."""
        first = self._thread.ident is None
        if first:
            self._thread.start()
        return first

    def close(self) -> None:
        """End the thread after its step."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # --- the describing thread ----------------------------------------------------------------------------

    def observed(self, drafter: Drafter) -> Drafter:
        """The drafter, with what the target says to it kept to learn from."""
        return _Observed(drafter, self)

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
        return True

    def take_failure(self) -> Failure | None:
        """Why a step of learning failed, told once; None where none did."""
        with self._changed:
            failure, self._failure = self._failure, None
        return failure

    def add(self, window: Answers) -> None:
        """Keep one window, float16 and on the CPU, and forget the oldest ones beyond max_bytes."""
        with self._changed:
            self._windows.append(window)
            self._bytes += _bytes(window)
            while self._bytes > self._settings.max_bytes:
                self._bytes -= _bytes(self._windows.popleft())
            self._owed = min(self._owed + self._settings.steps, len(self._windows) * self._settings.steps)
            self._changed.notify_all()

    def events(self, prompt: Prompt) -> Tensor | None:
        """What the head reads of a prompt's events [E, event_size]; None where it has none."""
        return None if prompt.events is None else pooled(prompt.events(), self._pooling)

    def context(self, prompt_rows: int) -> int:
        """How many of a prompt's last rows the head reads."""
        return self._head.context(prompt_rows)

    # --- the learning thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        _lower_priority()
        while self._wait():
            started = time.monotonic()
            try:
                self.learn()
                if self.steps % self._settings.trial == 0:
                    self.compare()
            except Exception as error:  # noqa: BLE001 - the thread goes on with the next window, and it is told
                self._give_up(Failure.of(error))
            busy = time.monotonic() - started
            time.sleep(busy * (1 / self._settings.share - 1))

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
            self._owed -= 1
            return not self._closed

    @property
    def _due(self) -> bool:
        # one offer at a time: what follows is compared with the head that it becomes
        enough = len(self._windows) > self._settings.held_out
        return self._owed > 0 and enough and self._offered is None

    def learn(self) -> None:
        """One step on a window that is not among the newest."""
        with self._changed:
            older = len(self._windows) - self._settings.held_out
            answers = self._windows[int(torch.randint(older, (), generator=self._random))]
        loss = loss_of(self._plan.kind)
        with self._autocast():
            value = loss(
                self._pair, self._student, _ready(answers, self._pair.device), self.steps, self._plan
            )
        self._optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._student.parameters(), MAX_GRADIENT_NORM)
        self._optimizer.step()
        self.steps += 1

    def compare(self) -> None:
        """Offer the copy if it is accepted further than the head on the newest windows; begin anew from the
        head if it is accepted less far.
        """
        with self._changed:
            newest = list(self._windows)[-self._settings.held_out :]
        tests = [_ready(window, self._pair.device) for window in newest]
        with self._autocast():
            ours, theirs = (
                acceptance(self._pair, head, tests)["acceptance length"]
                for head in (self._student, self._champion)
            )
        if ours > theirs:
            self._champion.load_state_dict(self._student.state_dict())
            weights = {name: value.clone() for name, value in self._student.state_dict().items()}
            with self._changed:
                self._offered = weights
        elif ours < theirs:
            self._begin_anew()

    def _autocast(self) -> torch.autocast:
        """The copies are float32, whatever the models are."""
        dtype = self._pair.target.lm_head.weight.dtype
        return torch.autocast(self._pair.device.type, dtype, enabled=dtype in {torch.half, torch.bfloat16})

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self._student.parameters(), self._settings.learning_rate, (0.9, 0.98))


class _Observed:
    """A drafter, and one text's tokens and features as the target tells them to it."""

    def __init__(self, drafter: Drafter, distiller: OnlineDistiller) -> None:
        self.name = drafter.name
        self.layers = drafter.layers
        self._drafter = drafter
        self._distiller = distiller
        self._prompt: Prompt | None = None
        self._features: list[Tensor] = []  # [n, layers * D] each, float16

    def prepare(self, prompt: Prompt) -> None:
        """See Drafter."""
        self._prompt, self._features = None, []
        self._drafter.prepare(prompt)

    def start(self, prompt: Prompt, features: tuple[Tensor, ...], token: int, capacity: int) -> None:
        """See Drafter."""
        self._prompt = prompt
        rows = self._distiller.context(len(features[0]) - 1) + 1
        self._keep(tuple(feature[-rows:] for feature in features))
        self._drafter.start(prompt, features, token, capacity)

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator) -> DraftTree:
        """See Drafter."""
        return self._drafter.propose(limits, sampling, generator)

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...]) -> None:
        """See Drafter."""
        self._keep(features)
        self._drafter.accept(tokens, features)

    def finish(self, tokens: Sequence[int]) -> None:
        """See Drafter; of the last block's features nobody is told, so that its tokens but the first are left
        out.
        """
        self._drafter.finish(tokens)
        if self._prompt is None:  # a text of one token
            return
        read = len(self._features[0])
        features_kept = sum(map(len, self._features)) - read
        events = self._distiller.events(self._prompt)
        if features_kept < LEAST_ROWS or events is None:
            return
        prompt = self._prompt.embeddings[:, -read:]
        answer = torch.tensor([tokens[: features_kept + 1]])
        self._distiller.add(
            Answers(
                _stored(prompt),
                answer,
                torch.tensor([features_kept + 1]),
                torch.cat(self._features)[None],
                _stored(events[None]),
                torch.empty(1, features_kept + 1, 0),
            )
        )

    def forget(self) -> None:
        """See Drafter."""
        self._drafter.forget()

    def _keep(self, features: tuple[Tensor, ...]) -> None:
        self._features.append(_stored(torch.cat(features, -1)))


def _stored(values: Tensor) -> Tensor:
    """A copy on the CPU."""
    return values.to("cpu", torch.half, copy=True)


def _ready(window: Answers, device: torch.device) -> Answers:
    """As the losses read it; a copy, as what inference has made cannot be differentiated."""
    return Answers(
        **{
            name: value.to(device).float() if value.is_floating_point() else value.to(device, copy=True)
            for name, value in vars(window).items()
        }
    )


def _bytes(window: Answers) -> int:
    return sum(value.nbytes for value in vars(window).values())


def _lower_priority() -> None:
    """Of this thread alone, and of those that it starts; elsewhere than on Linux it is the process's to
    set.
    """
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
