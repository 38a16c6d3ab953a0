"""What compiling the drafter's networks with TensorRT takes: `evspec bench builds`.

At the full width of 4,096 values a row, with few decoder layers and random weights: time and memory go by the
number of layers, and no test holds 32 of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from torch import nn

from evspec_ros.engines import networks
from evspec_ros.engines.building import PlanRow, build_visibly
from evspec_ros.engines.networks import Network
from evspec_ros.engines.plans import Order, PlanCache
from evspec_ros.engines.tensorrt_library import Capability
from evspec_ros.networks.block_head import BlockConfig, BlockHead
from evspec_ros.networks.clip import CLIP_L_14_336, ClipConfig
from evspec_ros.networks.draft_head import Eagle3Config, Eagle3Head
from evspec_ros.networks.eventgpt import EventGpt, EventGptConfig
from evspec_ros.networks.llama import RMSNorm
from evspec_ros.networks.memory import published

Module = TypeVar("Module", bound=nn.Module)

_REPEATED = 2**16  # random numbers that all weights are made of


def bench_builds(
    layers: int, capabilities: Sequence[Capability], tower: ClipConfig = CLIP_L_14_336
) -> list[PlanRow]:
    """Build the full-width networks in float16, one after another, and keep none of the plans; see
    `wide_networks`.
    """
    with TemporaryDirectory(prefix="evspec-plans") as folder:
        orders = (Order(network, "float16", tuple(capabilities)) for network in wide_networks(layers, tower))
        return build_visibly(orders, PlanCache(Path(folder)))


def wide_networks(layers: int, tower: ClipConfig = CLIP_L_14_336) -> Iterator[Network]:
    """The published sizes with so many layers of EventGPT's decoder and that tower, in float16: one network
    at a time.
    """
    sizes = published()
    assert sizes.event_model is not None
    config = EventGptConfig(replace(sizes.event_model.text, num_layers=layers), tower)
    with torch.device("meta"):
        event_model = EventGpt(config)
    yield networks.encode_events(_filled(event_model))
    yield networks.decoder_rows(event_model.decoder, event_model.lm_head)
    del event_model
    event_rows = config.text.hidden_size, sizes.event_tokens
    with torch.device("meta"):
        block = BlockHead(BlockConfig.for_target(sizes.target.text, *event_rows))
    yield networks.block(_filled(block))
    del block
    with torch.device("meta"):
        head = Eagle3Head(Eagle3Config.for_target(sizes.target.text, *event_rows))
    target_norm = RMSNorm(sizes.target.text.hidden_size, 1e-5).half()
    yield networks.head_level(_filled(head), target_norm, nn.Identity())  # its readout is its own


def _filled(module: Module) -> Module:
    """Give a module without data random weights in float16: a few numbers over and over, in no two tensors in
    the same order, since exporters and compilers keep one of those that are equal.
    """
    numbers = torch.randn(_REPEATED, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()
    for owner in module.modules():
        for name, empty in owner.named_parameters(recurse=False):
            flat, numbers = torch.empty(empty.numel(), dtype=torch.float16), numbers.roll(1)
            for start in range(0, len(flat), _REPEATED):
                piece = flat[start : start + _REPEATED]
                piece.copy_(numbers[: len(piece)])
            setattr(owner, name, nn.Parameter(flat.view(empty.shape), requires_grad=False))
    return module
