"""All that a GPU's speed is judged by, in one command: `evspec bench gpu`.

At full size with random weights, as no full-size checkpoint is at hand where it runs, and on the shipped tiny
pair, whose texts mean something. On a CPU the same code runs at the tiny shape.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from evspec_ros.describer import SceneDescriber
from evspec_ros.description import Description, Limits
from evspec_ros.engines.drafter import drafter_engines
from evspec_ros.engines.selection import choose_engine
from evspec_ros.errors import EngineError
from evspec_ros.evaluation.decoder_speed import DecoderBench, bench_decoder
from evspec_ros.evaluation.gpu_figures import Figure, FigureFile, GpuReport, Measurement, measure_all
from evspec_ros.evaluation.gpu_kernels import PASS_ROWS, PassBench
from evspec_ros.evaluation.gpu_texts import TinyTexts, let_go
from evspec_ros.evaluation.lossless import KnownText
from evspec_ros.events.types import Events
from evspec_ros.frames.clip import ClipPreprocessor
from evspec_ros.frames.types import Frame
from evspec_ros.networks.block_head import BlockConfig, BlockHead
from evspec_ros.networks.checkpoints import read_eventgpt_config, read_video_llava_config
from evspec_ros.networks.cuda_streams import Mark
from evspec_ros.networks.devices import compute_device, machine
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.memory import published
from evspec_ros.networks.pixels import PixelReader
from evspec_ros.networks.tokenizer import load_fitting_tokenizer, load_target_tokenizer
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.reading import EventReader, TargetReader, WindowReader
from evspec_ros.sizes import EVENT_IMAGES, FRAMES
from evspec_ros.speculative import (
    DecoderTarget,
    Drafter,
    DraftModels,
    EventSide,
    NoDrafter,
    make_drafter,
)
from evspec_ros.speculative.drafters import Drafters
from evspec_ros.speculative.eventgpt import EventWriter
from evspec_ros.speculative.learner import NoLearner

NODES = (4, 7, 15, 24, 31, 60)
TOKENS = 64  # of a whole description
EVENTS = 200_000  # in a window: 4 million a second
CAMERA = 480, 640  # height and width of both sensors

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class GpuBench:
    """What to measure. models: the folder of the shipped checkpoints; shape: 7b (a GPU alone) or tiny;
    windows: how many texts of each drafter are compared with the CPU's; repetitions: of what is timed.
    """

    models: Path
    device: str = "cuda"
    shape: str = "7b"
    windows: int = 20
    repetitions: int = 20

    @property
    def dtype(self) -> str:
        """Of the full size."""
        return "float32" if self.device == "cpu" else "float16"


def bench_gpu(bench: GpuBench, path: Path, minutes: float, say: Callable[[str], None]) -> GpuReport:
    """Measure what the file at `path` lacks, within the time.

    Raises CheckpointError without that device, EngineError for the full size on a CPU, EvspecError for a file
    of something else.
    """
    device = compute_device(bench.device)
    if bench.shape == "7b" and device.type != "cuda":
        raise EngineError("The full-size shapes need a GPU; add --shape tiny to run without one.")
    begun = {
        "machine": machine(device),
        "torch": torch.__version__,
        "device": bench.device,
        "shape": bench.shape,
    }
    file = FigureFile(path, begun)
    left_out = measure_all(_rows(bench, device), file, minutes * 60, say)
    return GpuReport(begun, file.figures, left_out)


def _rows(bench: GpuBench, device: torch.device) -> Iterator[Measurement]:
    """In the order of what matters most; the full-size pair is made when it is first needed, and let go
    before the tiny one's texts.
    """
    yield Measurement("decoder", 50, lambda: _decoder(bench))
    sized = _Sized(bench, device)
    yield Measurement("preprocessing", 20, sized.preprocessing)
    yield Measurement("block head", 15, sized.block)
    yield Measurement("event model", 15, sized.event_model)
    yield Measurement("overlap", 30, sized.overlap)
    yield Measurement("whole descriptions", 25, sized.descriptions)
    for name, seconds in PASS_ROWS.items():
        yield Measurement(f"kernels: {name}", seconds, partial(sized.kernels, name))
    del sized
    tiny = TinyTexts(bench.models, device, bench.windows)
    yield Measurement("tiny: texts", 35, tiny.texts)
    yield Measurement("tiny: drafters", 25, tiny.drafters)
    yield Measurement("tiny: waiting", 10, tiny.waiting)


def _decoder(bench: GpuBench) -> list[Figure]:
    """Copying memory, prefill, step and verification."""
    settings = DecoderBench(
        bench.shape, device=bench.device, dtype=bench.dtype, repetitions=bench.repetitions
    )
    speed = bench_decoder(settings, NODES)
    let_go()
    prefill, step, *verified = speed.rows
    figures = [
        Figure("copy bandwidth", speed.copy_gb_per_s, "GB/s", note="read and written"),
        Figure("prefill", prefill.ms, "ms", note=f"transformers {prefill.transformers_ms:.1f} ms"),
        Figure("step", step.ms, "ms", note=speed.engine),
        Figure("step's share of the bandwidth", step.bandwidth_share, "", at_least=0.75),
    ]
    for row in verified:
        goal = 1.25 if row.nodes == 24 else None
        figures.append(Figure(f"verify {row.nodes} nodes", row.steps, "steps", goal, note=f"{row.ms:.2f} ms"))
    return figures


class _Sized:
    """The pair of the shape with random weights: no head is ever right, so what drafts bring is measured with
    a text that is known.
    """

    def __init__(self, bench: GpuBench, device: torch.device) -> None:
        self._bench, self._device = bench, device
        self._dtype = getattr(torch, bench.dtype)

    @cached_property
    def _target(self) -> VideoLlava:
        tiny = read_video_llava_config(self._bench.models / "tiny_video_llava")
        if self._bench.shape == "tiny":
            return self._made(VideoLlava, tiny)
        image, video = tiny.image_token_id, tiny.video_token_id  # of the tokenizer that is at hand
        sizes = replace(published().target, image_token_id=image, video_token_id=video)
        return self._made(VideoLlava, sizes)

    @cached_property
    def _events(self) -> EventGpt:
        if self._bench.shape == "tiny":
            return self._made(EventGpt, read_eventgpt_config(self._bench.models / "tiny_eventgpt"))
        return self._made(EventGpt, published().event_model)

    @cached_property
    def _head(self) -> BlockHead:
        rows = EVENT_IMAGES + self._events.config.vision.tokens
        size = self._events.config.text.hidden_size
        return self._made(BlockHead, BlockConfig.for_target(self._target.config.text, size, rows))

    @cached_property
    def _decoder(self) -> DecoderTarget:
        model = self._target
        engine = choose_engine(model.decoder, model.lm_head).engine
        ends = model.config.text.end_tokens
        return DecoderTarget(model.decoder, model.lm_head, ends, lambda _: "", engine=engine)

    @cached_property
    def _pass(self) -> PassBench:
        return PassBench(self._target.decoder, self._target.lm_head, self._ms)

    @cached_property
    def _engines(self) -> Any:
        return drafter_engines("auto", (self._events, self._head))

    @cached_property
    def _reader(self) -> WindowReader:
        models = self._bench.models
        target = read_video_llava_config(models / "tiny_video_llava")
        vocabulary = read_eventgpt_config(models / "tiny_eventgpt").text.vocab_size
        sizes = (model.config.vision.image_size for model in (self._target, self._events))
        of_frames, of_events = (ClipPreprocessor(size) for size in sizes)
        return WindowReader(
            TargetReader(self._target, load_target_tokenizer(models / "tiny_video_llava", target), of_frames),
            EventReader(
                self._events,
                self._engines.encoder(self._events),
                load_fitting_tokenizer(models / "tiny_eventgpt", vocabulary),
                of_events,
            ),
        )

    def preprocessing(self) -> list[Figure]:
        """Eight frames and five pictures of events on their way to the towers; the frames in their tower."""
        weight, (events, frames) = self._target.lm_head.weight, _window(0)
        reader = PixelReader(self._reader.target.preprocessor, weight)
        assert self._reader.events is not None
        of_events = PixelReader(self._reader.events.preprocessor, weight)
        images = [frame.image for frame in frames]
        with torch.inference_mode():
            pixels, drawn = reader.frames(images), of_events.drawn(events)
            return [
                Figure("eight frames", self._ms(lambda: reader.frames(images)), "ms", at_most=2.0),
                Figure("encoding them", self._ms(lambda: self._target.encode_frames(pixels)), "ms"),
                Figure("drawing events", self._ms(lambda: of_events.drawn(events)), "ms"),
                Figure("five pictures of them", self._ms(lambda: of_events.events(drawn)), "ms", at_most=4.0),
            ]

    def kernels(self, name: str) -> list[Figure]:
        """What the target's pass consists of, one of PASS_ROWS."""
        return self._pass.measure(name)

    def block(self) -> list[Figure]:
        """The block head's whole pass beside a step of the target, both behind a prompt."""
        head, target = self._head, self._decoder
        engine = self._engines.block(head, self._target.decoder)
        config = head.config
        cache = engine.new_cache(config.context)
        features = torch.zeros(
            4, len(config.layers) * config.target_size, dtype=self._dtype, device=self._device
        )
        with torch.inference_mode():
            engine.read(features.repeat(8, 1), None, cache)
            rows = cache.length

            def draft() -> None:
                cache.truncate(rows)
                engine.run(features, 5, cache)

            pass_ms = self._ms(draft)
        (plain,) = self._described(self._describer(NoDrafter()), target, 1)
        step_ms = plain.latency_ms["verify"] / max(1, plain.statistics.target_passes)
        return [
            Figure("block head's pass", pass_ms, "ms"),
            Figure("its share of a step", pass_ms / step_ms, "", at_most=0.08, note=f"step {step_ms:.2f} ms"),
        ]

    def event_model(self) -> list[Figure]:
        """EventGPT: its encoder, and a step as a drafter takes it, the look at its token included."""
        reader, writer = self._reader.events, EventWriter(self._events, engines=self._engines)
        assert reader is not None
        side = self._events.config.vision.image_size
        pixels = torch.zeros(EVENT_IMAGES, 3, side, side, dtype=self._dtype, device=self._device)
        with torch.inference_mode():
            tokens = reader.encoder.encode(pixels)
            writer.read_prompt(reader.prompt_ids("What moves?"), tokens)

            def step() -> None:
                writer.truncate(0)
                writer.append([5])

            return [
                Figure("event encoder", self._ms(lambda: reader.encoder.encode(pixels)), "ms"),
                Figure("EventGPT's step", self._ms(step), "ms"),
            ]

    def overlap(self) -> list[Figure]:
        """Events read beside the prefill by a drafter that wants them."""

        def make(side: EventSide) -> Drafter:
            models = DraftModels(self._head, self._events, side, False, self._engines)
            return make_drafter("block", self._decoder, models)

        describer = self._describer(make, overlap=True)
        warm_s = _seconds(describer.warm_up)
        found = self._described(describer, self._decoder, 3)

        def median(name: str) -> float:
            return statistics.median(one.latency_ms[name] for one in found)

        slowdown = statistics.median(one.prefill_slowdown for one in found)
        gpu = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) / 2**30 if gpu else None
        return [
            Figure("prefill", median("prefill"), "ms"),
            Figure("event model's work", median("event_model"), "ms"),
            Figure("of it hidden", median("event_hidden"), "ms"),
            Figure("event_wait", median("event_wait"), "ms", at_most=1.0),
            Figure("prefill slowed", slowdown, "x", at_most=1.15),
            Figure("warm-up", warm_s, "s", at_most=10.0, note="graphs and the cost of passes"),
            Figure("memory at most", peak, "GiB", note="" if gpu else "needs a GPU"),
        ]

    def descriptions(self) -> list[Figure]:
        """Whole descriptions: plain, and with a draft that is always right."""
        plain = self._described(self._describer(NoDrafter()), self._decoder, 2)
        known = KnownText("perfect", self._target.config.text.vocab_size, 0)
        describer = self._describer(known)
        describer.warm_up()
        known.text = plain[-1].tokens
        drafted = self._described(describer, self._decoder, 2)
        plain_ms, drafted_ms = (min(one.latency_ms["total"] for one in found) for found in (plain, drafted))
        length = drafted[-1].statistics.mean_accepted_length
        same = "the same text" if drafted[-1].tokens == plain[-1].tokens else "another text"
        return [
            Figure("plain", plain_ms, "ms", note=f"{len(plain[-1].tokens)} tokens"),
            Figure("perfect draft", drafted_ms, "ms", note=f"{length:.1f} tokens a pass, {same}"),
            Figure("speed-up", plain_ms / drafted_ms, "x", at_least=6.0),
        ]

    def _describer(
        self, drafter: Drafter | Callable[[EventSide], Drafter], *, overlap: bool = False
    ) -> SceneDescriber:
        make = drafter if callable(drafter) else lambda _: drafter
        drafters = Drafters("bench", make, NoLearner(), overlap=overlap)
        return SceneDescriber(self._reader, self._decoder, drafters, NoLearner())

    def _described(self, describer: SceneDescriber, target: DecoderTarget, count: int) -> list[Description]:
        """Windows that have nothing in common with one another; the first of them does not count."""
        found = []
        for _ in range(count + 1):
            target.forget()
            events, frames = _window(0)
            found.append(describer.describe(events, frames, stamp_ns=0, limits=Limits(max_new_tokens=TOKENS)))
        return found[1:]

    def _ms(self, call: Callable[[], object]) -> float:
        """The median; on a GPU by events in its stream."""
        taken = []
        for _ in range(self._bench.repetitions + 2):
            began = Mark.now(self._device)
            call()
            taken.append(began.ms_until(Mark.now(self._device)))
        return statistics.median(taken[2:])

    def _made(self, kind: Callable[[Any], _Module], config: Any) -> _Module:
        """A network with random weights, the same every time."""
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)
        try:
            with self._device:
                return kind(config).eval().requires_grad_(False).to(self._device)
        finally:
            torch.set_default_dtype(before)


def _window(seed: int) -> tuple[Events, list[Frame]]:
    """Noise: events and frames of usual cameras, other objects every time."""
    random = np.random.default_rng(seed)
    height, width = CAMERA
    events = Events(
        np.sort(random.integers(0, 50_000_000, EVENTS)),
        random.integers(0, width, EVENTS).astype(np.uint16),
        random.integers(0, height, EVENTS).astype(np.uint16),
        random.integers(0, 2, EVENTS).astype(np.uint8),
        width,
        height,
    )
    images = random.integers(0, 256, (FRAMES, height, width, 3), dtype=np.uint8)
    return events, [Frame(number * 143_000_000, image) for number, image in enumerate(images)]


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
