"""A draft head of EAGLE's kind on a GPU: level after level of a fixed number of rows, whose tokens nobody
looks at before the target has judged them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evspec_ros.engines.draft_head import LevelEngine, UnseenPass
from evspec_ros.networks.devices import uploaded
from evspec_ros.networks.llama import KVCache
from evspec_ros.speculative.device_growth import LevelGrowth, drawn_chain
from evspec_ros.speculative.device_tree import DeviceTree
from evspec_ros.speculative.drafter import DraftLimits
from evspec_ros.speculative.sampling import Sampling, drawn


def grown_levels(
    engine: LevelEngine, root: UnseenPass, cache: KVCache, limits: DraftLimits, branches: int
) -> DeviceTree:
    """A tree within the limits, from what the head gave at its root; the cache holds the root's row last."""
    device = root.output.device
    growth = LevelGrowth(limits, branches, device)
    growth.add(root.tokens, root.probabilities)
    level, first, passes = root, cache.length, 1
    seen = torch.ones(1, 0, dtype=torch.bool, device=device)  # [W, rows], what the last frontier attends to
    while (rows := growth.frontier) > 0:
        tokens, parents = growth.last
        carried = level.output[parents]
        if branches == 1:
            level = engine.level(tokens, carried, cache)
        else:
            seen = torch.cat((seen[parents], torch.eye(rows, dtype=torch.bool, device=device)), 1)
            depths = torch.full((rows,), first + passes - 1 - cache.length, device=device)
            level = engine.level(tokens, carried, cache, depths, seen)
        passes += 1
        growth.add(level.tokens, level.probabilities)
    return growth.tree(passes)


def drawn_levels(
    engine: LevelEngine,
    root: UnseenPass,
    cache: KVCache,
    limits: DraftLimits,
    sampling: Sampling,
    generator: torch.Generator,
) -> DeviceTree:
    """A chain, each token of it drawn by the host's random numbers."""
    count = min(limits.n_max, limits.most_nodes)
    chances = torch.rand(count, generator=generator, dtype=torch.float64)
    chances = uploaded(chances, root.output.device)
    step, tokens, confidences, distributions = root, list[Tensor](), list[Tensor](), list[Tensor]()
    for place in range(count):
        if place > 0:
            step = engine.level(tokens[-1].clamp(min=0), step.output, cache)
        confidences.append(step.probabilities[:, 0].clone())
        distributions.append(sampling.probabilities(step.logits))
        tokens.append(drawn(distributions[-1], chances[place : place + 1]))
    said, spread, sure = (torch.cat(each) for each in (tokens, distributions, confidences))
    return drawn_chain(said, spread, sure, limits, count)
