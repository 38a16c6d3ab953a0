"""The tokenizer of a checkpoint: what transformers loads from its directory, behind the calls used here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from evspec_ros.errors import CheckpointError
from evspec_ros.networks.weights import read_json, write_json

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"


class Tokenizer:
    """Text to token ids and back. `bos` and `eos` are the ids that begin and end a sequence."""

    def __init__(self, backend: PreTrainedTokenizerBase) -> None:
        self.backend = backend
        self.bos = int(backend.bos_token_id)
        self.eos = int(backend.eos_token_id)

    def __len__(self) -> int:
        return len(self.backend)

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Token ids, behind the beginning-of-sequence id if `bos`; special tokens in the text become ids."""
        ids = list(self.backend.encode(text, add_special_tokens=False))
        return [self.bos, *ids] if bos else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        text = self.backend.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def token_id(self, token: str) -> int:
        """The id of one token by its name, e.g. `<video>`; CheckpointError where the vocabulary lacks it."""
        index = self.backend.get_vocab().get(token)
        if index is None:
            raise CheckpointError(
                f"The tokenizer has no token {token!r}; use the tokenizer that belongs to the checkpoint."
            )
        return int(index)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a checkpoint directory; CheckpointError where it is missing or damaged."""
    read_json(path / TOKENIZER_CONFIG)
    if (path / TOKENIZER).is_file():  # a checkpoint may hold tokenizer.model instead
        read_json(path / TOKENIZER)
    try:
        # both models carry LLaMA's; without a config transformers would warn of EventGPT's model type
        return Tokenizer(
            AutoTokenizer.from_pretrained(str(path), config=LlamaConfig(), local_files_only=True)
        )
    except Exception as error:  # what tokenizers raises is of the class Exception itself
        raise CheckpointError(
            f"The tokenizer in {path} cannot be loaded ({error}); fetch its files again."
        ) from error


def save_tokenizer(tokenizer: tokenizers.Tokenizer, path: Path, special: Sequence[str] = ()) -> None:
    """Write tokenizer.json and its two companions as published LLaMA checkpoints have them.

    `<unk>`, `<s>` and `</s>` are the unknown, first and last token; `special` names further special tokens,
    which the tokenizer already holds.
    """
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(path / TOKENIZER, json.loads(tokenizer.to_str()))
    write_json(path / SPECIAL_TOKENS, {**roles, "additional_special_tokens": list(special)})
    write_json(
        path / TOKENIZER_CONFIG,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **roles,
            "additional_special_tokens": list(special),
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000,
        },
    )
