"""How fast the target's decoder is beside transformers' on the same weights: `evspec bench decoder`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM
from transformers import LlamaConfig as HfLlamaConfig

from evspec_ros.engines.decoder import Rows
from evspec_ros.engines.selection import choose_engine
from evspec_ros.errors import EngineError
from evspec_ros.networks.attention import attention_mask
from evspec_ros.networks.checkpoints import load_video_llava
from evspec_ros.networks.devices import compute_device, machine
from evspec_ros.networks.llama import KVCache, LlamaDecoder
from evspec_ros.networks.memory import published
from evspec_ros.networks.quantisation import compute_dtype
from evspec_ros.networks.tiny import tiny_video_llava

NODES = (4, 8, 16, 24, 32, 60)
_PROMPT = {"tiny": 150, "7b": 2100}  # rows of a usual prompt, its eight frames among them
_WRITTEN = 40  # rows between prompt and pass: half of a description
_WARM_UPS, _TURN, _COPY_BYTES = 3, 10, 2**28


@dataclass(frozen=True)
class DecoderRow:
    """One operation of our decoder beside transformers'.

    operation: prefill, step (one row) or verify (nodes + 1 rows); ms, transformers_ms: median milliseconds;
    ratio: theirs over ours; steps: ms over the one-token step's, None for the prefill; bandwidth_share: the
    bytes of weights and of visible keys and values over ms, as a part of what copying memory reaches (a copy
    counted as read and written); above 1 where a processor's cache holds them. None for the prefill.
    """

    shape: str
    device: str
    dtype: str
    operation: str
    nodes: int
    ms: float
    transformers_ms: float
    ratio: float
    steps: float | None
    bandwidth_share: float | None


@dataclass(frozen=True)
class DecoderSpeed:
    """What ran where, and a row per operation; copy_gb_per_s: bytes read and written by a large copy."""

    machine: str
    engine: str
    copy_gb_per_s: float
    rows: tuple[DecoderRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class DecoderBench:
    """What to measure. target: a Video-LLaVA directory, None for random weights of `shape`; threads: of torch
    and of ONNX Runtime, None as torch has them.
    """

    shape: str = "tiny"
    target: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"
    backend: str = "auto"
    threads: int | None = None
    repetitions: int = 50


def bench_visibly(settings: DecoderBench) -> DecoderSpeed:
    """`bench_decoder` with progress on stderr."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring the decoder", total=len(NODES) + 2)
        return bench_decoder(settings, report=lambda done: progress.update(task, completed=done))


def bench_decoder(
    settings: DecoderBench,
    nodes: Sequence[int] = NODES,
    *,
    report: Callable[[int], None] = lambda *_: None,
) -> DecoderSpeed:
    """Measure prefill, one-token step and verification of each number of nodes.

    Ours and theirs take turns, each pass waited for, after warm-ups of both. Raises EngineError for a shape
    that the device does not hold, and CheckpointError for a target that cannot be loaded.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads)
    try:
        with torch.inference_mode():
            return _SpeedRun(settings, max(nodes)).measure(nodes, report)
    finally:
        torch.set_num_threads(threads)


def print_speed(speed: DecoderSpeed) -> None:
    """The rows as a table."""
    console = Console(highlight=False)
    first = speed.rows[0]
    table = Table(
        title=f"the {first.shape} decoder, {first.dtype}, on {speed.machine}",
        title_justify="left",
        box=SIMPLE,
        padding=0,
    )
    for column in ("operation", "nodes", "ms", "transformers ms", "ratio", "steps", "of the bandwidth"):
        table.add_column(column, justify="left" if column == "operation" else "right")
    for row in speed.rows:
        table.add_row(
            row.operation,
            str(row.nodes) if row.operation == "verify" else "",
            *(f"{value:.2f}" for value in (row.ms, row.transformers_ms, row.ratio)),
            "" if row.steps is None else f"{row.steps:.2f}",
            "" if row.bandwidth_share is None else f"{row.bandwidth_share:.0%}",
        )
    console.print(table)
    console.print(f"{speed.engine}; copying memory: {speed.copy_gb_per_s:.1f} GB/s", soft_wrap=True)


class _SpeedRun:
    """Both decoders on one set of weights, behind prompts of one length."""

    def __init__(self, settings: DecoderBench, most_nodes: int) -> None:
        self._settings = settings
        self._device = compute_device(settings.device)
        _require_device(self._device, settings.shape, compute_dtype(settings.dtype, self._device))
        decoder, lm_head = _networks(settings, self._device)
        self._decoder, self._lm_head, self._sizes = decoder, lm_head, decoder.config
        self._chosen = choose_engine(decoder, lm_head, settings.backend)
        self._theirs = in_transformers(decoder, lm_head)
        prompt = _PROMPT[settings.shape]
        self._prefix = prompt + _WRITTEN
        self._prompt = self._random_ids(prompt)
        self._cache = self._new_cache(self._prefix + most_nodes + 1)
        self._prefill_cache = self._new_cache(prompt)
        self._their_cache = DynamicCache(config=self._theirs.config)
        read = self._random_ids(self._prefix)
        decoder(decoder.embed(read)[None], self._cache)
        self._theirs(input_ids=read[None], past_key_values=self._their_cache, logits_to_keep=1)

    def measure(self, nodes: Sequence[int], report: Callable[[int], None]) -> DecoderSpeed:
        """The rows, in the order prefill, step, verify."""
        copy = _copy_gb_per_s(self._device)
        rows = [self._row("prefill", 0, self._prefill, self._their_prefill)]
        report(1)
        for done, count in enumerate((0, *nodes), start=2):
            row = self._pass_row(count, copy)
            rows.append(replace(row, steps=row.ms / (rows[1].ms if count else row.ms)))
            report(done)
        return DecoderSpeed(machine(self._device), str(self._chosen), copy, tuple(rows))

    def _pass_row(self, nodes: int, copy_gb_per_s: float) -> DecoderRow:
        """A step for no nodes, else the verification of a chain of them: what a tree costs as well, because
        all engines apply a mask to both.
        """
        rows = Rows(self._random_ids(nodes + 1).cpu())
        ids = rows.ids.to(self._device)
        row = self._row(
            "verify" if nodes else "step", nodes, lambda: self._pass(rows), lambda: self._their_pass(ids)
        )
        return replace(row, bandwidth_share=self._bytes(nodes + 1) / row.ms / 1e6 / copy_gb_per_s)

    def _row(
        self, operation: str, nodes: int, ours: Callable[[], Tensor], theirs: Callable[[], Tensor]
    ) -> DecoderRow:
        ms, transformers_ms = _in_turn(ours, theirs, self._settings.repetitions, self._device)
        return DecoderRow(
            shape=self._settings.shape,
            device=str(self._device),
            dtype=self._settings.dtype,
            operation=operation,
            nodes=nodes,
            ms=ms,
            transformers_ms=transformers_ms,
            ratio=transformers_ms / ms,
            steps=None,
            bandwidth_share=None,
        )

    def _prefill(self) -> Tensor:
        self._prefill_cache.truncate(0)
        hidden = self._decoder(self._decoder.embed(self._prompt)[None], self._prefill_cache).hidden
        logits: Tensor = self._lm_head(hidden[0, -1:])
        return logits

    def _their_prefill(self) -> Tensor:
        cache = DynamicCache(config=self._theirs.config)
        output = self._theirs(input_ids=self._prompt[None], past_key_values=cache, logits_to_keep=1)
        logits: Tensor = output.logits
        return logits

    def _pass(self, rows: Rows) -> Tensor:
        self._cache.truncate(self._prefix)
        return self._chosen.engine.run(rows, self._cache, ()).logits

    def _their_pass(self, ids: Tensor) -> Tensor:
        """A mask of four dimensions, as a tree needs it; a step needs none."""
        count = ids.numel()
        mask = attention_mask(self._prefix, count, None, self._decoder.norm.weight)
        output = self._theirs(
            input_ids=ids[None],
            attention_mask=None if mask is None else mask[None, None],
            position_ids=torch.arange(self._prefix, self._prefix + count, device=self._device)[None],
            past_key_values=self._their_cache,
        )
        self._their_cache.crop(-count)
        logits: Tensor = output.logits
        return logits

    def _bytes(self, rows: int) -> int:
        """Weights and the visible rows' keys and values, each read once."""
        weights = (*self._decoder.layers.parameters(), *self._lm_head.parameters())
        row = 2 * self._sizes.num_layers * self._sizes.num_kv_heads * self._sizes.head_dim
        visible = (self._prefix + rows) * row * self._cache.k.element_size()
        return sum(weight.nbytes for weight in weights) + visible

    def _new_cache(self, capacity: int) -> KVCache:
        dtype = self._decoder.norm.weight.dtype
        return KVCache(self._sizes, capacity, dtype=dtype, device=self._device)

    def _random_ids(self, count: int) -> Tensor:
        return torch.randint(self._sizes.vocab_size, (count,), device=self._device)


def _networks(settings: DecoderBench, device: torch.device) -> tuple[LlamaDecoder, nn.Linear]:
    """Our decoder with its head, from a checkpoint or at random."""
    dtype = compute_dtype(settings.dtype, device)
    if settings.target is not None:
        model = load_video_llava(settings.target, dtype, device)
        return model.decoder, model.lm_head
    sizes = published().target.text if settings.shape == "7b" else tiny_video_llava(611, 608, 609).text
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            decoder = LlamaDecoder(sizes).eval()
            lm_head = nn.Linear(sizes.hidden_size, sizes.vocab_size, bias=False)
    finally:
        torch.set_default_dtype(before)
    return decoder.to(device), lm_head


def in_transformers(decoder: LlamaDecoder, lm_head: nn.Linear) -> LlamaForCausalLM:
    """Theirs with the same weights, which lie in memory once."""
    config = HfLlamaConfig(**decoder.config.to_hf())
    weight = lm_head.weight
    with torch.device("meta"):
        theirs = LlamaForCausalLM(config)
    rotary = type(theirs.model.rotary_emb)(config).to(weight.device)  # its tables are no weights
    theirs.model.rotary_emb = rotary
    theirs.model.load_state_dict(decoder.state_dict(), assign=True)
    theirs.lm_head.load_state_dict(lm_head.state_dict(), assign=True)
    theirs.train(False)
    return theirs


def _require_device(device: torch.device, shape: str, dtype: torch.dtype) -> None:
    """Refuse what cannot run before minutes are spent on it."""
    if shape != "7b":
        return
    if device.type != "cuda":
        raise EngineError("The full-size shapes need a GPU; add --device cuda, or choose --shape tiny.")
    needed = 7.2e9 * dtype.itemsize  # 6.7 billion weights, two caches, what a prefill holds for a while
    free, _ = torch.cuda.mem_get_info(device)
    if free < needed:
        raise EngineError(
            f"The full-size shapes need {needed / 1e9:.0f} GB of the GPU's memory in {dtype} and "
            f"{free / 1e9:.0f} GB are free; choose --dtype float16, or --shape tiny."
        )


def _in_turn(
    ours: Callable[[], Tensor], theirs: Callable[[], Tensor], repetitions: int, device: torch.device
) -> tuple[float, float]:
    """Median milliseconds of each, in turns of _TURN passes: decoding, too, runs pass after pass, each over
    the weights that the one before it left in the processor's cache.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for done in range(0, repetitions, _TURN):
        for call, laps in zip((ours, theirs), times, strict=True):
            for _ in range(_WARM_UPS):
                call()
            turn = min(_TURN, repetitions - done)
            laps.extend(_milliseconds(call, device) for _ in range(turn))
    return statistics.median(times[0]), statistics.median(times[1])


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    return (time.perf_counter() - started) * 1e3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _copy_gb_per_s(device: torch.device) -> float:
    """The best of ten copies too large for any cache."""
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(_milliseconds(lambda: target.copy_(source), device) for _ in range(10))
    return 2 * _COPY_BYTES / best / 1e6
