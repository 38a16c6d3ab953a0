"""What the target's cache holds after a pass that failed: nothing of it is taken for an earlier prompt's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evspec_ros.networks.llama import LlamaConfig, LlamaDecoder
from evspec_ros.speculative import DecoderTarget, NoDrafter, Prompt, generate, generate_together

CONFIG = LlamaConfig(50, 32, 48, 3, 2, 2, 16, max_positions=96)
LENGTH = 12


def _target() -> DecoderTarget:
    torch.manual_seed(0)
    decoder = LlamaDecoder(CONFIG).eval()
    lm_head = nn.Linear(CONFIG.hidden_size, CONFIG.vocab_size, bias=False)
    with torch.no_grad():
        for parameter in (*decoder.parameters(), lm_head.weight):
            parameter.normal_(std=0.4) if parameter.dim() == 2 else parameter.uniform_(0.5, 1.5)
    return DecoderTarget(decoder, lm_head, (), str)


def _prompt(seed: int, rows: int = 20) -> Tensor:
    """[1, rows, D], the first five rows the same for all."""
    common = torch.randn(1, 5, CONFIG.hidden_size, generator=torch.Generator().manual_seed(99))
    own = torch.randn(1, rows - 5, CONFIG.hidden_size, generator=torch.Generator().manual_seed(seed))
    return torch.cat((common, own), 1)


def _failing_layer(target: DecoderTarget, layer: int) -> Callable[[], None]:
    """Let one layer raise from now on; a call that mends it."""

    def raising(*_: Any) -> None:
        raise RuntimeError("out of memory")

    hook = target.decoder.layers[layer].mlp.register_forward_pre_hook(raising)
    return hook.remove


@torch.inference_mode()
@pytest.mark.parametrize("layer", range(3))
def test_a_prompt_that_could_not_be_read_leaves_no_trace(layer: int) -> None:
    """The prompt before it, read again, has the logits that it has in a fresh cache: none of its rows is
    taken to be there, of which some layers hold the failed prompt's.
    """
    target, prompt = _target(), _prompt(1)
    target.prefill([prompt], LENGTH, ())
    mend = _failing_layer(target, layer)
    with pytest.raises(RuntimeError, match="out of memory"):
        target.prefill([_prompt(2)], LENGTH, ())
    mend()
    (again,) = target.prefill([prompt], LENGTH, ())
    (fresh,) = _target().prefill([prompt], LENGTH, ())
    assert again.reused == 0
    torch.testing.assert_close(again.logits, fresh.logits, atol=0.0, rtol=0.0)


@torch.inference_mode()
@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("failing_pass", range(1, 5))
def test_a_text_after_one_that_failed_anywhere_is_what_it_is_alone(layer: int, failing_pass: int) -> None:
    """One text or two together: the prompts' passes and two verifications fail in turn."""
    prompts = [Prompt(_prompt(1)), Prompt(_prompt(3))]
    alone = [generate(_target(), NoDrafter(), prompt, max_new_tokens=LENGTH).tokens for prompt in prompts]
    for count in (1, 2):
        target = _target()
        passes = 0

        def counted(*_: Any) -> None:
            nonlocal passes
            passes += 1
            if passes == failing_pass:
                raise MemoryError

        hook = target.decoder.layers[layer].mlp.register_forward_pre_hook(counted)
        with pytest.raises(MemoryError):
            _write(target, prompts[:count])
        hook.remove()
        assert _write(target, prompts[:count]) == alone[:count]
        assert _write(target, prompts[::-1][:count]) == alone[::-1][:count]


def _write(target: DecoderTarget, prompts: list[Prompt]) -> list[tuple[int, ...]]:
    drafters = [NoDrafter() for _ in prompts]
    return [found.tokens for found in generate_together(target, drafters, prompts, max_new_tokens=LENGTH)]
