"""Several projections as one product: where their weights lie, and that nothing else depends on it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from evspec_ros.networks.checkpoints import load_eventgpt, load_video_llava
from evspec_ros.networks.llama import DecoderLayer, LlamaConfig
from evspec_ros.networks.products import joint
from evspec_ros.networks.quantisation import load_in

MODELS = Path(__file__).parents[2] / "models"
CONFIG = LlamaConfig(50, 32, 48, 1, 4, 2, 8)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """One more where it is one."""
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.linear)
        return func(*args, **(kwargs or {}))


def _products(run: Callable[[], object]) -> int:
    with torch.no_grad(), Products() as counted:
        run()
    return counted.count


def _separately(x: Tensor, linears: tuple[nn.Linear, ...]) -> Tensor:
    return torch.cat([x @ linear.weight.T for linear in linears], -1)


CHANGES: dict[str, Callable[[DecoderLayer], DecoderLayer]] = {
    "made": lambda layer: layer,
    "moved": lambda layer: layer.double().float(),
    "copied": copy.deepcopy,
    "trained": lambda layer: (layer.self_attn.k_proj.weight.data.mul_(1.5), layer)[1],
    "loaded": lambda layer: (layer.load_state_dict(DecoderLayer(CONFIG).state_dict()), layer)[1],
    "assigned": lambda layer: (
        layer.load_state_dict(DecoderLayer(CONFIG).state_dict(), assign=True),
        layer,
    )[1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_products_are_those_of_each_projection(change: str) -> None:
    """Whatever was done to a layer's weights before, and for somebody who trains them as well."""
    layer = CHANGES[change](DecoderLayer(CONFIG))
    x = torch.randn(2, 3, 32)
    for together in (layer.self_attn.together, layer.mlp.together):
        trained = joint(x, together)
        with torch.no_grad():
            torch.testing.assert_close(joint(x, together), _separately(x, together))
        torch.testing.assert_close(trained, _separately(x, together))
        trained.sum().backward()
        assert all(linear.weight.grad is not None for linear in together)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_loaded_model_multiplies_its_input_twice_a_layer_less_than_it_has_projections(
    dtype: torch.dtype,
) -> None:
    """Of q, k, v, o, gate, up and down four products are left, in both models, under the published names."""
    for model in (
        load_video_llava(MODELS / "tiny_video_llava", dtype),
        load_eventgpt(MODELS / "tiny_eventgpt", dtype),
    ):
        x = torch.randn(1, 2, model.config.text.hidden_size, dtype=dtype)
        layers = len(model.decoder.layers)
        assert _products(lambda: model.decoder(x)) == 4 * layers  # noqa: B023
        names = {name for name, _ in model.decoder.layers[0].named_parameters()}
        assert {f"self_attn.{one}_proj.weight" for one in "qkvo"} <= names


def test_quantised_projections_are_multiplied_one_by_one() -> None:
    """As they are packed one by one; the result is that of the model in float32 up to its rounding."""
    path = MODELS / "tiny_video_llava"
    exact, rounded = load_video_llava(path), load_in("int8", load_video_llava, path, torch.device("cpu"))
    x = exact.decoder.embed(torch.arange(5))[None]
    with torch.no_grad():
        theirs, ours = exact.decoder(x).hidden, rounded.decoder(x).hidden
    assert 0 < (theirs - ours).abs().max() < 0.1 * theirs.abs().max()
