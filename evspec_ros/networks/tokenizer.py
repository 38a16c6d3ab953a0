"""The tokenizer of a checkpoint: what transformers loads from its directory, behind the calls used here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from evspec_ros.errors import CheckpointError
from evspec_ros.networks.video_llava import VideoLlavaConfig
from evspec_ros.networks.weights import read_json, write_json
from evspec_ros.prompts import VIDEO_TOKEN

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
_ANY_SPECIAL = "\0"  # in the place of the special token that plain text stands behind; no text holds it


class Tokenizer:
    """Text to token ids and back. `bos` and `eos` are the ids that begin and end a sequence."""

    def __init__(self, backend: PreTrainedTokenizerBase) -> None:
        if not isinstance(backend, PreTrainedTokenizerFast):
            raise TypeError("it is of a kind that the package tokenizers does not read, as it does LLaMA's")
        if backend.bos_token_id is None or backend.eos_token_id is None:
            raise ValueError("it names no token that begins and none that ends a sequence, as LLaMA's does")
        self.backend = backend
        self.bos = int(backend.bos_token_id)
        self.eos = int(backend.eos_token_id)
        self._plain = _without_special_tokens(backend.backend_tokenizer)

    def __len__(self) -> int:
        return len(self.backend)

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Token ids, behind the beginning-of-sequence id if `bos`; special tokens in the text become ids."""
        ids = list(self.backend.encode(text, add_special_tokens=False))
        return [self.bos, *ids] if bos else ids

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of text that stands behind a special token and has none itself: `<video>` or `</s>` in it
        is text like any other.
        """
        ids: list[int] = self._plain.encode(_ANY_SPECIAL + text, add_special_tokens=False).ids
        return ids[1:]

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

    def base_tokens(self) -> dict[int, str]:
        """The tokens by id, without those that were added behind the vocabulary."""
        size = self.backend.vocab_size
        return {index: token for token, index in self.backend.get_vocab().items() if index < size}


@dataclass(frozen=True)
class Compatibility:
    """Whether the event model's token ids mean to the target what they mean to the event model.

    shared: how many ids of the base vocabulary are the same token in both. first_difference: the lowest id
    that is not, with the target's and the event model's token (None: it has none); None where all are.
    """

    shared: int
    first_difference: tuple[int, str | None, str | None] | None

    @property
    def same(self) -> bool:
        """Whether the event model's tokens can be drafted as they are."""
        return self.first_difference is None

    @property
    def report(self) -> str:
        """What was found and what follows from it, in one sentence."""
        if self.first_difference is None:
            return (
                f"Target and event model share the {self.shared} tokens of their vocabulary, so the event "
                "model's tokens can be drafted as they are."
            )
        index, target, event = self.first_difference
        return (
            f"Target and event model differ in their vocabulary ({self.shared} tokens are shared; id {index} "
            f"is {_quoted(target)} to the target and {_quoted(event)} to the event model), so token-level "
            "drafting is impossible and the event model's features alone can be used."
        )


def compatibility(target: Tokenizer, event: Tokenizer) -> Compatibility:
    """Compare the base vocabularies of a pair; the special tokens that each adds behind it may differ."""
    ours, theirs = target.base_tokens(), event.base_tokens()
    different = [index for index in sorted({*ours, *theirs}) if ours.get(index) != theirs.get(index)]
    shared = len({*ours, *theirs}) - len(different)
    if not different:
        return Compatibility(shared, None)
    return Compatibility(shared, (different[0], ours.get(different[0]), theirs.get(different[0])))


def require_fit(
    tokenizer: Tokenizer, path: Path, rows: int, special: Mapping[str, int] | None = None
) -> None:
    """Raise CheckpointError where the tokenizer of `path` is not that of its model.

    rows: embeddings that the model has (there may be more than tokens); special: tokens that the model's
    config knows by id.
    """
    vocabulary = tokenizer.backend.get_vocab()
    if max(vocabulary.values()) >= rows:
        raise CheckpointError(
            f"The tokenizer in {path} has ids up to {max(vocabulary.values())} and the model there has "
            f"embeddings for {rows} tokens; use the tokenizer that belongs to the checkpoint."
        )
    for token, index in (special or {}).items():
        if vocabulary.get(token) != index:
            raise CheckpointError(
                f"The tokenizer in {path} has {_id(vocabulary.get(token))} for {token!r} where the model's "
                f"config has id {index}; use the tokenizer that belongs to the checkpoint."
            )


def load_fitting_tokenizer(path: Path, rows: int, special: Mapping[str, int] | None = None) -> Tokenizer:
    """`load_tokenizer`, where it is the model's as `require_fit` tells; CheckpointError otherwise."""
    tokenizer = load_tokenizer(path)
    require_fit(tokenizer, path, rows, special)
    return tokenizer


def load_target_tokenizer(path: Path, config: VideoLlavaConfig) -> Tokenizer:
    """A Video-LLaVA's tokenizer, which has to know its video token; raises as `load_fitting_tokenizer`."""
    return load_fitting_tokenizer(path, config.text.vocab_size, {VIDEO_TOKEN: config.video_token_id})


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


def _without_special_tokens(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy to which _ANY_SPECIAL alone is special."""
    content = json.loads(tokenizer.to_str())
    plain = tokenizers.Tokenizer.from_str(
        json.dumps({**content, "added_tokens": [], "truncation": None, "padding": None})
    )
    plain.add_special_tokens([tokenizers.AddedToken(_ANY_SPECIAL, normalized=False)])
    return plain


def _quoted(token: str | None) -> str:
    return "no token" if token is None else repr(token)


def _id(index: int | None) -> str:
    return "no id" if index is None else f"id {index}"


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
