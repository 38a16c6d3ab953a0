"""What a model itself writes: greedy answers of many scenes at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from evspec_ros.networks.llama import KVCache, LlamaDecoder


class Rollout(NamedTuple):
    """tokens: int64 [B, T], an end token repeated behind each end; features: [B, P + T - 1, layers * D], of
    each layer asked for, one beside the other, for the prompt and for all tokens but the last.
    """

    tokens: Tensor
    features: Tensor


@torch.inference_mode()
def greedy_answers(
    decoder: LlamaDecoder,
    lm_head: nn.Module,
    prompts: Tensor,
    max_new_tokens: int,
    kv_dtype: torch.dtype | None = None,
    layers: tuple[int, ...] | None = None,
) -> Rollout:
    """Continue B prompts [B, P, D] of one length until each has ended, or for max_new_tokens.

    layers: whose features are wanted, as `LlamaDecoder.forward` counts them; None is the last one's output.
    kv_dtype: what the cache is kept in, as `KVCache`; None keeps what the decoder computes.
    """
    config = decoder.config
    ends = torch.tensor(config.end_tokens, dtype=torch.int64, device=prompts.device)
    filling = config.end_tokens[0] if config.end_tokens else 0
    batch, rows, _ = prompts.shape
    # under autocast the decoder's keys come out in the lower precision
    computed = (
        torch.get_autocast_dtype(prompts.device.type)
        if torch.is_autocast_enabled(prompts.device.type)
        else prompts.dtype
    )
    cache = KVCache(config, rows + max_new_tokens, batch, dtype=kv_dtype or computed, device=prompts.device)
    tokens: list[Tensor] = []
    features: list[Tensor] = []
    embeddings = prompts
    ended = torch.zeros(batch, dtype=torch.bool, device=prompts.device)
    while len(tokens) < max_new_tokens and not bool(ended.all()):
        output = decoder(embeddings, cache, layers=layers or (config.num_layers,))
        features.append(torch.cat(output.features, -1))
        choice = lm_head(output.hidden[:, -1]).argmax(-1).masked_fill(ended, filling)
        tokens.append(choice)
        ended = ended | torch.isin(choice, ends)
        embeddings = decoder.embed(choice[:, None])
    return Rollout(torch.stack(tokens, 1), torch.cat(features, 1))
