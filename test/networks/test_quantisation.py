"""Precisions: what is quantised, how near it stays, how much it takes."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from evspec_ros.choices import KV_PRECISIONS, PRECISIONS
from evspec_ros.errors import CheckpointError
from evspec_ros.networks.checkpoints import load_eventgpt, load_video_llava
from evspec_ros.networks.llama import KVCache
from evspec_ros.networks.quantisation import bits, compute_dtype, kv_dtype, load_in, weight_bytes
from evspec_ros.networks.video_llava import VideoLlava

MODELS = Path(__file__).parents[2] / "models"
TARGET, EVENT_MODEL = MODELS / "tiny_video_llava", MODELS / "tiny_eventgpt"
CPU = torch.device("cpu")
# Relative error of the hidden states (root mean square) of the tiny target on random rows.
TOLERANCE = {"float16": 3e-3, "bfloat16": 3e-2, "int8": 4e-2, "int4": 0.3}

needs_torchao = pytest.mark.skipif(
    find_spec("torchao") is None,
    reason="needs torchao: pip install torchao",
)


def target(precision: str) -> VideoLlava:
    """The tiny target."""
    return load_in(precision, load_video_llava, TARGET, CPU)


@torch.inference_mode()
def hidden(model: VideoLlava) -> Tensor:
    """Hidden states of a prefill and of a step on random token embeddings."""
    ids = torch.randint(3, 300, (1, 40), generator=torch.Generator().manual_seed(0))
    rows = model.decoder.embed(ids)
    cache = KVCache(model.config.text, 40, dtype=rows.dtype)
    parts = model.decoder(rows[:, :39], cache).hidden, model.decoder(rows[:, 39:], cache).hidden
    return torch.cat(parts, 1).float()


@needs_torchao
@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_smaller_precision_stays_near_float32(precision: str) -> None:
    """Within the stated tolerance, and not equal: it was applied."""
    exact = hidden(target("float32"))
    error = float((hidden(target(precision)) - exact).norm() / exact.norm())
    assert 0 < error <= TOLERANCE[precision]


@needs_torchao
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_projections_alone_are_quantised(precision: str) -> None:
    """Every linear of the decoders' layers, within half a step of its own scale; all else is as loaded."""
    for load, path in ((load_video_llava, TARGET), (load_eventgpt, EVENT_MODEL)):
        exact, found = load(path), load_in(precision, load, path, CPU)
        assert not found.training
        originals = dict(exact.named_modules())
        for name, module in found.named_modules():
            if not isinstance(module, (nn.Linear, nn.Embedding)):
                continue
            weight, original = module.weight, originals[name].weight
            if name.startswith("decoder.layers."):
                assert type(weight) is not nn.Parameter
                width = bits(precision, module.in_features)
                group = 64 if width == 4 else module.in_features
                groups = original.detach().unflatten(-1, (-1, group))
                reach = 2 * groups.abs().amax(-1, True)
                error = (weight.dequantize().unflatten(-1, (-1, group)) - groups).abs()
                assert (error <= reach / (2**width - 2) * 1.01).all(), name
            else:
                assert torch.equal(weight, original), name
        assert torch.equal(found.decoder.rotary.cos, exact.decoder.rotary.cos)
        assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}


@needs_torchao
def test_the_estimate_of_a_projection_is_what_it_takes() -> None:
    """Bytes of values, scales and zero points, for int8 and (on a CPU) int4."""
    for precision in ("int8", "int4"):
        for name, module in target(precision).decoder.layers.named_modules():
            if isinstance(module, nn.Linear):
                held = (getattr(module.weight, part, None) for part in ("qdata", "scale", "zero_point"))
                taken = sum(tensor.nbytes for tensor in held if tensor is not None)
                assert taken == weight_bytes(module.out_features, module.in_features, precision, CPU), name


def test_int4_falls_back_to_int8_where_groups_do_not_divide() -> None:
    """688 inputs, the tiny target's widest projection, are no multiple of 64."""
    assert [bits("int4", inputs) for inputs in (256, 688, 4096, 11008)] == [4, 8, 4, 4]
    assert bits("int8", 4096) == 8


def test_int4_takes_half_a_byte_on_a_gpu() -> None:
    """And a scale and a zero point in bfloat16 per 64 inputs: 7B's MLP by hand, 11264 with padding."""
    gpu = torch.device("cuda")
    assert weight_bytes(11008, 4096, "int4", gpu) == 11008 * (2048 + 64 * 4)
    assert weight_bytes(4096, 11008, "int4", gpu) == 4096 * (5632 + 176 * 4)
    assert weight_bytes(4096, 4096, "float16", gpu) == 2 * 4096 * 4096


def test_whole_numbers_are_computed_in_float32_on_a_cpu_and_bfloat16_on_a_gpu() -> None:
    """The others in themselves."""
    for precision in ("int8", "int4"):
        assert compute_dtype(precision, CPU) == torch.float32
        assert compute_dtype(precision, torch.device("cuda")) == torch.bfloat16
    assert [compute_dtype(name, CPU) for name in PRECISIONS[:3]] == [
        torch.float32, torch.float16, torch.bfloat16,
    ]  # fmt: skip
    assert [kv_dtype(name) for name in KV_PRECISIONS] == [None, torch.float16, torch.int8]


def test_unknown_precisions_are_refused() -> None:
    """With those that there are."""
    with pytest.raises(CheckpointError, match=r"no precision 'int3'; choose one of float32, .*, int4\.$"):
        compute_dtype("int3", CPU)
    with pytest.raises(CheckpointError, match=r"'int4' of the key/value cache; choose one of auto"):
        kv_dtype("int4")


def test_without_torchao_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read."""
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(CheckpointError, match=r"int8 needs the package torchao.*pip install"):
        load_in("int8", load_video_llava, Path("nowhere"), CPU)
