"""The tiny models' tokenizer: LLaMA's kind (byte-pair merges with byte fallback) on the scenes' language."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from evspec_ros.prompts import DEFAULT_PROMPT, event_prompt, target_prompt
from evspec_ros.simulation.captions import caption
from evspec_ros.simulation.scenes import random_scene

BASE_VOCABULARY = 640  # tokens before a model's own special ones; the merges end by themselves below it
_CORPUS_SCENES = 2000
_CORPUS_SEED = 20  # no other part of the training draws scenes from this seed
_BASE_TOKENS = ["<unk>", "<s>", "</s>"]  # ids 0, 1, 2 as in LLaMA
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def corpus() -> Iterable[str]:
    """Captions of simulated scenes, and the two prompts."""
    random = np.random.default_rng(_CORPUS_SEED)
    yield from (caption(random_scene(random), 0.0) for _ in range(_CORPUS_SCENES))
    prompts = " ".join((target_prompt(DEFAULT_PROMPT), *event_prompt(DEFAULT_PROMPT)))
    yield from [re.sub(r"<\w+>", " ", prompts)] * 20


def train_tokenizer(special: Iterable[str]) -> Tokenizer:
    """A tokenizer with the shared base vocabulary, followed by the given special tokens of one model."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=BASE_VOCABULARY,
        special_tokens=[*_BASE_TOKENS, *_BYTES],
        initial_alphabet=list(string.ascii_letters + string.digits),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer = _bytes_as_text(tokenizer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _bytes_as_text(tokenizer: Tokenizer) -> Tokenizer:
    """The trainer can only put the byte tokens in place as special ones; they are text, so decoding must keep
    them.
    """
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in _BASE_TOKENS]
    return Tokenizer.from_str(json.dumps(content))
