"""One optimisation loop for everything that is trained here, on Hugging Face accelerate: one processor or
several, one GPU or several, resumable at any step with the same result as without a stop.
"""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from evspec_ros.errors import TrainingError
from evspec_ros.training.files import written_whole

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.amp import GradScaler as Scaler

SAVE_SECONDS = 60.0
MAX_GRADIENT_NORM = 1.0
MIXED_PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class Schedule:
    """`steps` steps: the rate rises linearly over the first `warmup`, then follows a cosine down to a
    tenth.

    accumulate: batches of each process whose gradients make one step. precision: one of MIXED_PRECISIONS;
    None takes the launcher's, else bfloat16 where the device computes it in hardware.
    """

    steps: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 0.01
    accumulate: int = 1
    precision: str | None = None

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))


Report = Callable[[str, int, int, float], None]  # stage, finished steps, all steps, mean loss lately


@dataclass(frozen=True)
class Examination:
    """score: figures by name, of which the first, the larger the better, decides which weights are kept.

    every: steps between two examinations; the last step is always examined. patience: how many of them in a
    row may find nothing better before training ends; 0 for as many as there are.
    """

    score: Callable[[], Mapping[str, float]]
    every: int
    patience: int = 0


@dataclass
class _Progress:
    """How far a stage is: finished steps, and the best weights that an examination has found."""

    step: int = 0
    best: float = -math.inf
    best_model: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0  # examinations since then


def fit(
    stage: str,
    model: nn.Module,
    loss: Callable[[int], Tensor],
    schedule: Schedule,
    run: Path,
    report: Report = lambda *_: None,
    examination: Examination | None = None,
) -> None:
    """Train model in place; `loss(n)` draws batch n from its number alone, so that a resumed run repeats it.

    Each process computes other batches: one with two accumulated batches and two with one each take the same
    steps. Matrices of the layers are trained by Muon (Jordan et al. 2024), all else by AdamW, both as torch
    has them. The first process keeps the state in `run/<stage>.pt` (read back with torch's weights-only
    loader), which it writes every minute, whole or not at all, and it alone reports. Raises TrainingError if
    the state belongs to another model, if the loss stops being a number, with a torch that has no Muon and
    for a precision that the device lacks.
    """
    run.mkdir(parents=True, exist_ok=True)
    state_file = run / f"{stage}.pt"
    device = next(model.parameters()).device
    accelerator = _accelerator(schedule, device)
    own = _optimizers(model, schedule)
    progress = _resume(state_file, model, own, accelerator.scaler)
    objective, *optimizers = accelerator.prepare(_Objective(model, loss), *own)
    recent, saved = float("nan"), time.monotonic()
    model.train()
    while progress.step < schedule.steps:
        for optimizer in own:
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(progress.step)
        now = 0.0
        for number in _batches(progress.step, schedule.accumulate, accelerator):
            with accelerator.accumulate(objective), fast_attention(device.type):
                value = objective(number)
                now += float(value.detach()) / schedule.accumulate
                accelerator.backward(value)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        progress.step += 1
        if not math.isfinite(now):
            raise TrainingError(
                f"The loss of stage {stage!r} became {now} at step {progress.step}; lower the learning rate."
            )
        recent = now if math.isnan(recent) else 0.95 * recent + 0.05 * now
        if accelerator.is_main_process:
            report(stage, progress.step, schedule.steps, recent)
        if examination is not None:
            _examine(examination, model, progress, schedule.steps, accelerator, report)
        if progress.step == schedule.steps or time.monotonic() - saved > SAVE_SECONDS:
            if accelerator.is_main_process:
                _save(state_file, progress, model, own, accelerator.scaler)
            saved = time.monotonic()
    accelerator.wait_for_everyone()
    if progress.best_model:
        model.load_state_dict(progress.best_model)
    model.eval()


class _Objective(nn.Module):
    """What is to be minimised as a module: accelerate synchronises and casts what a module's call
    computes.
    """

    def __init__(self, model: nn.Module, loss: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, number: int) -> Tensor:
        """Loss of one batch."""
        return self.loss(number)


def _accelerator(schedule: Schedule, device: torch.device) -> Accelerator:
    from accelerate import Accelerator

    launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
    fast = "bf16" if fast_bfloat16(device.type) else "no"
    precision = schedule.precision or launched or fast
    refusal = (
        f"The precision {precision} cannot be had on {device}; choose another of "
        f"{', '.join(MIXED_PRECISIONS)}."
    )
    if precision == "fp16" and device.type == "cpu":  # accelerate computes in float32 then, without a word
        raise TrainingError(refusal)
    try:
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=precision,
            gradient_accumulation_steps=schedule.accumulate,
        )
    except ValueError as error:
        raise TrainingError(f"{refusal} ({error})") from error


def _batches(step: int, accumulate: int, accelerator: Accelerator) -> Iterator[int]:
    """The numbers of the batches that this process computes for a step."""
    for part in range(accumulate):
        yield (step * accumulate + part) * accelerator.num_processes + accelerator.process_index


def _examine(
    examination: Examination,
    model: nn.Module,
    progress: _Progress,
    steps: int,
    accelerator: Accelerator,
    report: Report,
) -> None:
    """Score the model where it is time to; what the first process finds holds for all."""
    from accelerate.utils import broadcast_object_list

    if progress.step % examination.every and progress.step != steps:
        return
    model.eval()
    (figures,) = broadcast_object_list([dict(examination.score())])
    model.train()
    if accelerator.is_main_process:
        for name, figure in figures.items():
            report(name, progress.step, steps, figure)
    score = next(iter(figures.values()))
    if score > progress.best:
        progress.best, progress.stale = score, 0
        progress.best_model = {name: value.detach().clone() for name, value in model.state_dict().items()}
    else:
        progress.stale += 1
        if progress.stale == examination.patience:
            progress.step = steps


@contextmanager
def fast_attention(device: str) -> Iterator[None]:
    """On a CPU attention as plain matrix products: the fused one's backward pass takes twice as long."""
    if device != "cpu":
        yield
        return
    # the flag is CUDA's by name and rules the CPU as well
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # type: ignore[no-untyped-call]
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def fast_bfloat16(device: str) -> bool:
    """True where bfloat16 is computed in hardware (AVX512-BF16, or a GPU) rather than emulated slowly."""
    if device == "cpu":
        return "avx512_bf16" in _cpu_flags()
    return bool(torch.cuda.is_bf16_supported())


def _cpu_flags() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text() if cpuinfo.exists() else ""


def _optimizers(model: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.dim() == 2 and ".layers." in name]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in trained if id(p) not in chosen]
    decay = schedule.weight_decay
    if not hasattr(torch.optim, "Muon"):  # describing needs no more than torch 2.4
        raise TrainingError(
            f"Training needs torch 2.9 or newer, and this is {torch.__version__}; upgrade it."
        )
    muon = (
        [torch.optim.Muon(matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw")] if matrices else []
    )
    return [*muon, torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=decay)]


def _resume(
    file: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], scaler: Scaler | None
) -> _Progress:
    if not file.exists():
        return _Progress()
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"])
        for optimizer, known in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)
        if scaler is not None:
            scaler.load_state_dict(state["scaler"])
        return _Progress(**state["progress"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise TrainingError(
            f"{file} holds the state of another model; choose another run directory or delete it."
        ) from error
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{file} is damaged; delete it to train this stage again.") from error


def _save(
    file: Path,
    progress: _Progress,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    scaler: Scaler | None,
) -> None:
    state: dict[str, Any] = {
        "progress": vars(progress),
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "scaler": {} if scaler is None else scaler.state_dict(),
    }
    with written_whole(file) as unfinished:
        torch.save(state, unfinished)
