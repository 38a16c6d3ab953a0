"""The whole pipeline in one place: events + frames + prompts in, descriptions out. No ROS."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch

from evspec_ros.description import (
    DEFAULT_LIMITS,
    EXACT,
    LOSSY,
    UP_TO_ROUNDING,
    Description,
    GrowingTexts,
    Limits,
    latencies,
)
from evspec_ros.errors import Failure, GenerationError
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.prompts import DEFAULT_PROMPT
from evspec_ros.reading import Reading, WindowReader
from evspec_ros.sizes import WINDOW_MS
from evspec_ros.speculative.costs import Pace
from evspec_ros.speculative.drafter import DraftLimits, NoDrafter
from evspec_ros.speculative.drafters import Drafters
from evspec_ros.speculative.event_side import EventTimes
from evspec_ros.speculative.generate import Generation, generate_together
from evspec_ros.speculative.guarded import GuardedDrafter, Patience
from evspec_ros.speculative.learner import Learner
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.target import DecoderTarget
from evspec_ros.speculative.verification import Acceptance


class SceneDescriber:
    """Video-LLaVA describes, EventGPT and a draft head make it faster. One window at a time.

    `loading.load_describer` makes one from checkpoints.
    """

    def __init__(
        self,
        reader: WindowReader,
        target: DecoderTarget,
        drafters: Drafters,
        learner: Learner,
        *,
        execution: str = "",
        drafting: str = "",
    ) -> None:
        """learner: improves the head that drafts, between windows; execution: what computes the target's
        passes, and why; drafting: what computes the drafter's networks, and why.
        """
        self.execution, self.drafting = execution, drafting
        self._reader = reader
        self._target = target
        self._drafters = drafters
        self._learner = learner
        weakref.finalize(self, self._learner.close)
        self._warm = False
        self._stream_ended = False
        self._pace = Pace()
        self._patience = Patience()

    @property
    def drafter(self) -> str:
        """The name of the way of drafting, and what of it is left out."""
        return self._drafters.name

    @property
    def chosen(self) -> str:
        """Which way of drafting, and why, in a sentence."""
        return self._drafters.chosen

    @property
    def left_out(self) -> str:
        """Why a part of the drafter is left out, in a sentence; "" where none is."""
        return self._drafters.left_out

    @property
    def cache_precision(self) -> str:
        """What the target's key/value cache is kept in."""
        return str(self._target.kv_dtype).removeprefix("torch.")

    @property
    def plain_step_ms(self) -> float | None:
        """What plain decoding takes for a token here; see `Pace`."""
        return self._pace.plain_step_ms

    def time_step(self, description: Description) -> None:
        """Time a plain step behind the description that was written last; see `Pace`."""
        self._pace.time_step(self._target, description.tokens[-1])

    def warm_up(self) -> None:
        """Describe a blank window, so that all is compiled and allocated before the first real one, and
        measure what passes and drafts cost here. The first description does it, if nobody did before.
        """
        self._warm = True  # or the blank window would ask for it
        try:
            self._measure()
        except BaseException:
            self._warm = False
            raise

    def rest(self) -> Failure | None:
        """No window comes for a while: what the head has learnt is saved. What went wrong with that, or with
        the last learning.
        """
        self._learner.save()
        return self._learner.take_failure()

    def forget_stream(self) -> None:
        """Let the next window begin a stream: what was said of earlier ones is no draft for it."""
        self._stream_ended = True

    def relieve(self) -> None:
        """Let go of what is kept between windows, on the device too: it ran out of memory."""
        self._target.forget()
        self.forget_stream()
        if self._target.device.type == "cuda":
            torch.cuda.empty_cache()

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of tokens that a description holds, special ones left out."""
        return self._target.detokenize(tokens)

    def require_room(self, prompts: Sequence[str], limits: Limits) -> None:
        """Raise GenerationError where an answer within the limits to one of the prompts needs more positions
        than the target has, and for a prompt that holds what is no text.
        """
        for prompt in prompts:
            self._require_positions(self._reader.target.prompt_rows(prompt), limits)

    def describe(
        self,
        events: Events,
        frames: Sequence[Frame],
        *,
        prompt: str = DEFAULT_PROMPT,
        stamp_ns: int,
        window_ms: float = WINDOW_MS,
        limits: Limits = DEFAULT_LIMITS,
        on_text: Callable[[str], None] = lambda _: None,
    ) -> Description:
        """`describe_all` with one prompt; on_text is called with the text so far whenever it grows."""
        (description,) = self.describe_all(
            events,
            frames,
            prompts=(prompt,),
            stamp_ns=stamp_ns,
            window_ms=window_ms,
            limits=limits,
            on_text=lambda _, text: on_text(text),
        )
        return description

    def describe_all(
        self,
        events: Events,
        frames: Sequence[Frame],
        *,
        prompts: Sequence[str],
        stamp_ns: int,
        window_ms: float = WINDOW_MS,
        limits: Limits = DEFAULT_LIMITS,
        on_text: Callable[[int, str], None] = lambda *_: None,
        drafting: bool = True,
    ) -> tuple[Description, ...]:
        """Answer prompts about one window: its events (there may be none) and its frames (at least one,
        oldest first). The window is read once, and the answers are written together, each as it would be
        alone; without a prompt there is no answer.

        A frame that an earlier window had too is not encoded again, and a prompt that begins as the last one
        did is read from where they part. A drafter that raises anything is left out of its text and asked
        again in the next window; without `drafting` none is asked. on_text is called with a prompt's number
        and its text so far whenever that grows. Raises GenerationError without frames, for a prompt that is
        too long or holds what is no text, and for impossible limits.
        """
        if not prompts:
            return ()
        if not frames:
            raise GenerationError("There is no frame to describe; wait until the RGB camera has sent one.")
        self._take_up_head()
        if not self._warm:
            self.warm_up()
        self._begin_window()
        texts = GrowingTexts(len(prompts), self._target.detokenize, on_text)
        reading = self._reader.read(events, frames, prompts)
        for prompt in reading.prompts:
            self._require_positions(prompt.embeddings.shape[1], limits)
        used = self._drafters.get(len(prompts)) if drafting else [NoDrafter() for _ in prompts]
        drafters = [GuardedDrafter(drafter, self._patience) for drafter in used]
        generations = self._write(reading, drafters, limits, texts)
        reading.stages.lap("generate")

        learner = self._learner
        slowdown = self._pace.slowdown([one.statistics for one in generations])
        learning_failure = learner.take_failure()
        stages = reading.stages.milliseconds(), reading.event_stages.milliseconds()
        event_times = self._drafters.event_times if drafting else EventTimes()
        return tuple(
            Description(
                stamp_ns=stamp_ns,
                window_ms=window_ms,
                prompt=question,
                text=generation.text,
                tokens=generation.tokens,
                latency_ms=latencies(*stages, generation.statistics, event_times, first_word_ms),
                prefill_slowdown=slowdown,
                reused_frames=reading.reused_frames,
                statistics=generation.statistics,
                drafter=self.drafter if drafting else NoDrafter.name,
                lossless=generation.lossless,
                equality=self._equality(generation),
                head_version=learner.version,
                draft_failure=drafter.failure,
                learning_failure=learning_failure,
                passes=generation.passes,
            )
            for question, generation, drafter, first_word_ms in zip(
                prompts, generations, drafters, texts.first_word_ms, strict=True
            )
        )

    def _equality(self, generation: Generation) -> str:
        """How a text is equal to the target's own."""
        if not generation.lossless:
            return LOSSY
        return UP_TO_ROUNDING if self._target.rounds(branched=generation.branched) else EXACT

    def _require_positions(self, rows: int, limits: Limits) -> None:
        """Raise GenerationError where a prompt of so many rows leaves too few positions for an answer."""
        positions = self._target.decoder.config.max_positions
        left = positions - rows - limits.tree_size
        if limits.max_new_tokens > left:
            raise GenerationError(
                f"max_new_tokens is {limits.max_new_tokens} and {max(0, left)} is the most that fits: of the "
                f"target's {positions} positions the prompt takes {rows} and a draft up to "
                f"{limits.tree_size} (tree_size); lower max_new_tokens or shorten the prompt."
            )

    def _take_up_head(self) -> None:
        """Draft with a better head, if there is one; behind the first one drafts are timed anew."""
        drafted = self._learner.drafts
        self._drafters.renew()
        self._warm &= self._learner.drafts == drafted

    def _begin_window(self) -> None:
        """Forget the stream that has ended."""
        if self._stream_ended:
            self._stream_ended = False
            self._drafters.forget()

    def _write(
        self,
        reading: Reading,
        drafters: Sequence[GuardedDrafter],
        limits: Limits,
        texts: GrowingTexts,
    ) -> tuple[Generation, ...]:
        """One text for each prompt of the window."""
        with self._learner.writing():
            return generate_together(
                self._target,
                drafters,
                reading.prompts,
                max_new_tokens=limits.max_new_tokens,
                sampling=Sampling(limits.temperature, limits.top_p, limits.top_k),
                seed=limits.seed,
                limits=DraftLimits(limits.n_max, limits.tree_size, limits.p_min, self._pace.costs),
                acceptance=Acceptance(limits.acceptance),
                on_tokens=texts.add,
            )

    def _measure(self) -> None:
        """Warm everything up with a blank window and measure what passes, drafts and prefills cost."""
        blank = self._reader.blank()
        self.describe(*blank, stamp_ns=0)
        (prompt,) = self._reader.read(*blank, (DEFAULT_PROMPT,)).prompts
        (drafter,) = self._drafters.get(1)
        self._pace.measure(self._target, drafter, prompt, overlap=self._drafters.overlap)
        if self._pace.costs is not None:
            self._patience.pass_s = self._pace.costs.verify_ms[0] / 1e3
        self.forget_stream()
        self._target.forget()
        self._drafters.learn()  # the first blank windows teach nothing
