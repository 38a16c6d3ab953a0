"""What the shipped tiny pair says on a GPU, whose texts mean something: part of `evspec bench gpu`."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from evspec_ros.evaluation.decoding import BASELINE, DEFAULT, Bench, Contestant, held_out
from evspec_ros.evaluation.gpu_figures import Figure
from evspec_ros.networks.checkpoints import load_draft_head
from evspec_ros.speculative import DEFAULT_LIMITS, DRAFTERS, DraftLimits, generate
from evspec_ros.training.head_run import load_pair

HEADS = ("block", "eagle", "eagle3", "eventgpt_adapter", "feature")


class TinyTexts:
    """The tiny pair of the folder `models` with its trained heads, in float32."""

    def __init__(self, models: Path, device: torch.device, windows: int) -> None:
        """windows: of which texts are compared."""
        self._models, self._device, self._windows = models, device, windows

    @cached_property
    def _decoding(self) -> Bench:
        let_go()
        return self._of(self._device)

    def _of(self, device: torch.device, heads: Sequence[str] = HEADS) -> Bench:
        models = self._models
        pair = load_pair(models / "tiny_video_llava", models / "tiny_eventgpt", str(device), torch.float32)
        loaded = {kind: load_draft_head(models / f"tiny_{kind}", torch.float32, device) for kind in heads}
        return Bench(pair, loaded)

    def texts(self) -> list[Figure]:
        """Every drafter's texts beside the CPU's plain ones, events read beside the prefill or not."""
        here, plain = self._decoding, self._of(torch.device("cpu"), ())
        alone = plain.entry(Contestant(BASELINE))
        entries = [
            here.entry(Contestant(name, overlap))
            for name in here.able()
            for overlap in ((False, True) if DRAFTERS[name].reads_events else (False,))
        ]
        different: dict[str, int] = {}
        count = self._windows
        for (scene,) in held_out(count):
            expected = plain.describe(alone, plain.prompt(scene), DEFAULT_LIMITS).tokens
            here.decoder.forget()
            for entry in entries:
                if here.describe(entry, here.prompt(scene), DEFAULT_LIMITS).tokens != expected:
                    name = f"{entry.contestant.name}, overlap {('off', 'on')[entry.contestant.overlap]}"
                    different[name] = different.get(name, 0) + 1
        note = "; ".join(f"{name}: {times}" for name, times in different.items())
        return [
            Figure("texts compared", count * len(entries), "", note="greedy, float32"),
            Figure("other than the CPU's", sum(different.values()), "", at_most=0, note=note),
        ]

    def drafters(self) -> list[Figure]:
        """Whole descriptions with the real drafters beside plain decoding."""
        ways = [Contestant(BASELINE), Contestant("eagle3"), Contestant("block"), Contestant(DEFAULT, True)]
        rows = self._decoding.race(ways, held_out(min(self._windows, 5)))
        return [
            Figure(
                f"{row.drafter}{', overlap' if row.overlap else ''}",
                row.seconds / row.scenes * 1e3,
                "ms",
                note=f"{row.speedup:.2f}x plain, {row.mean_accepted_length:.2f} tokens a pass",
            )
            for row in rows
        ]

    def waiting(self) -> list[Figure]:
        """How often the host waits for the GPU in a turn of the loop."""
        return [self._waits(drafter) for drafter in ("suffix", "block", "eagle3", "eventgpt")]

    def _waits(self, drafter: str) -> Figure:
        """Of a drafter; what is accepted is waited for, and nothing else."""
        name = f"waits a turn, {drafter}"
        if self._device.type != "cuda":
            return Figure(name, None, "", at_most=1.0, note="needs a GPU")
        here, ((scene,),) = self._decoding, held_out(1)
        entry = here.entry(Contestant(drafter))
        prompt = here.prompt(scene)

        def written(tokens: int) -> tuple[int, int]:
            """Waits and turns of a text of so many tokens."""
            here.decoder.forget()
            limits = DraftLimits(4, 4)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    found = generate(
                        here.decoder, entry.drafter, prompt, max_new_tokens=tokens, limits=limits
                    )
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            return len(caught), found.statistics.target_passes

        written(40)  # captures graphs
        (few, first), (many, turns) = written(8), written(40)
        waits = (many - few) / max(1, turns - first)  # those of the prefill are in both
        return Figure(name, waits, "", at_most=1.0)


def let_go() -> None:
    """Give the GPU's memory back that nothing uses any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
