"""The tokenizer of a checkpoint directory."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from random_models import SPECIAL, llama_style_tokenizer

from evspec_ros.errors import CheckpointError
from evspec_ros.networks.tokenizer import Tokenizer, load_tokenizer, save_tokenizer


@pytest.fixture(scope="module")
def directory(tokenizer: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory with a tokenizer."""
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tokenizer, path, SPECIAL)
    return path


@pytest.fixture(scope="module")
def loaded(directory: Path) -> Tokenizer:
    """The tokenizer read back."""
    return load_tokenizer(directory)


def test_ids_are_llamas(loaded: Tokenizer) -> None:
    """<s> and </s> are 1 and 2, and a prompt begins with <s> where asked for."""
    assert (loaded.bos, loaded.eos) == (1, 2)
    assert loaded.encode("the", bos=True) == [1, *loaded.encode("the")]


def test_special_tokens_in_a_text_become_their_ids(loaded: Tokenizer) -> None:
    """<video> in a prompt is one token, wherever it stands."""
    video = loaded.token_id("<video>")
    assert loaded.encode("USER: <video>\nthe end").count(video) == 1


def test_decoding_leaves_special_tokens_out(loaded: Tokenizer) -> None:
    """The end-of-sequence token and the video's place are no part of a text."""
    ids = [loaded.bos, *loaded.encode("the end"), loaded.token_id("<video>"), loaded.eos]
    assert loaded.decode(ids) == "the end"


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_text_survives_with_byte_fallback(text: str) -> None:
    """Any text comes back from its ids, letters outside the vocabulary through bytes."""
    if "▁" in text or any(token in text for token in ("<unk>", "<s>", "</s>", *SPECIAL)):
        return
    backend = llama_style_tokenizer()
    assert backend.decode(backend.encode(text).ids) == text


def test_saving_keeps_every_id(loaded: Tokenizer, tokenizer: tokenizers.Tokenizer) -> None:
    """The read tokenizer has the ids of the written one, for texts and for single tokens."""
    text = "USER: <video>\nWhat moves? the é cat. ASSISTANT:"
    assert loaded.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids
    assert loaded.backend.get_vocab() == tokenizer.get_vocab()
    assert len(loaded) == tokenizer.get_vocab_size()


def test_an_unknown_token_is_named(loaded: Tokenizer) -> None:
    """Asking for a token that the vocabulary lacks is an error about the checkpoint."""
    with pytest.raises(CheckpointError, match="no token '<depth>'"):
        loaded.token_id("<depth>")


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """A checkpoint that lacks its tokenizer says which file is missing."""
    with pytest.raises(CheckpointError, match=r"has no tokenizer_config\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", '{"model":'),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[1]"),
        ("tokenizer.json", '{"version": "1.0", "added_tokens": [], "model": {"type": "unheard of"}}'),
        ("tokenizer_config.json", "no JSON"),
    ],
)
def test_a_damaged_tokenizer_is_refused(directory: Path, tmp_path: Path, name: str, content: str) -> None:
    """Half a file, or another, gives one sentence that names it."""
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_tokenizer(tmp_path)
