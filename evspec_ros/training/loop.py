"""One optimisation loop for everything that is trained here: resumable at any step, the same result as
without a stop.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from evspec_ros.errors import TrainingError

SAVE_SECONDS = 60.0
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Schedule:
    """`steps` steps: the rate rises linearly over the first `warmup`, then follows a cosine down to a
    tenth.
    """

    steps: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 0.01

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))


Report = Callable[[str, int, int, float], None]  # stage, finished steps, all steps, mean loss lately


def fit(
    stage: str,
    model: nn.Module,
    loss: Callable[[int], Tensor],
    schedule: Schedule,
    run: Path,
    report: Report = lambda *_: None,
) -> None:
    """Train model in place; `loss(step)` draws its batch from the step number alone, so that a resumed run
    repeats it.

    Matrices of the layers are trained by Muon (Jordan et al. 2024), all else by AdamW, both as torch has
    them. The state is kept in `run/<stage>.pt` (read back with torch's weights-only loader) and written
    every minute, whole or not at all. Forward passes run in bfloat16 where the processor has instructions
    for it. Raises TrainingError if the state belongs to another model, if the loss stops being a number, and
    with a torch that has no Muon.
    """
    run.mkdir(parents=True, exist_ok=True)
    state_file = run / f"{stage}.pt"
    optimizers = _optimizers(model, schedule)
    step = _resume(state_file, model, optimizers)
    device = next(model.parameters()).device.type
    recent, saved = float("nan"), time.monotonic()
    model.train()
    while step < schedule.steps:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = schedule.rate(step)
        with torch.autocast(device, torch.bfloat16, enabled=fast_bfloat16(device)), fast_attention(device):
            value = loss(step)
        model.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        now = float(value.detach())
        if not math.isfinite(now):
            raise TrainingError(
                f"The loss of stage {stage!r} became {now} at step {step}; lower the learning rate."
            )
        recent = now if math.isnan(recent) else 0.95 * recent + 0.05 * now
        report(stage, step, schedule.steps, recent)
        if step == schedule.steps or time.monotonic() - saved > SAVE_SECONDS:
            _save(state_file, step, model, optimizers)
            saved = time.monotonic()
    model.eval()


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


def _resume(file: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    if not file.exists():
        return 0
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"])
        for optimizer, known in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)
    except (KeyError, RuntimeError, ValueError) as error:
        raise TrainingError(
            f"{file} holds the state of another model; choose another run directory or delete it."
        ) from error
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{file} is damaged; delete it to train this stage again.") from error
    return int(state["step"])


def _save(file: Path, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    unfinished = file.with_suffix(".part")
    state = {"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    torch.save(state, unfinished)
    unfinished.replace(file)
