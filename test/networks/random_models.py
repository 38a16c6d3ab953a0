"""Tiny random models and a throwaway LLaMA-style tokenizer."""

from __future__ import annotations

import tokenizers
import torch
from tokenizers import decoders, models, normalizers

from evspec_ros.networks.clip import ClipConfig
from evspec_ros.networks.llama import LlamaConfig

SPECIAL = ("<image>", "<video>", "<ev_patch>", "<ev_start>", "<ev_end>")


def llama_style_tokenizer(special: tuple[str, ...] = SPECIAL) -> tokenizers.Tokenizer:
    """Byte fallback; ids 0-2 are <unk> <s> </s>, then 256 bytes, letters, merges, `special`."""
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:?"
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *letters,
        "th",
        "the",
        "▁the",
    ]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[("t", "h"), ("th", "e"), ("▁", "the")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", *special])
    return tokenizer


CLIP = ClipConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=32,
    patch_size=16,
    projection_dim=32,
)


def llama_config(num_kv_heads: int = 4) -> LlamaConfig:
    """Three layers of 64."""
    return LlamaConfig(
        vocab_size=333,
        hidden_size=64,
        intermediate_size=160,
        num_layers=3,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        head_dim=16,
        max_positions=256,
        rms_norm_eps=1e-5,
    )


def lively(module: torch.nn.Module) -> None:
    """Weights large enough that every part of a network shows in its logits, norms and biases included."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_((1.0 if "norm" in name and "bias" not in name else 0.0) + 0.2 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
