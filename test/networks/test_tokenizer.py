"""The tokenizer of a checkpoint directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import assume, given
from hypothesis import strategies as st
from random_models import SPECIAL, llama_style_tokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from evspec_ros.errors import CheckpointError
from evspec_ros.networks.tokenizer import (
    Tokenizer,
    compatibility,
    load_tokenizer,
    require_fit,
    save_tokenizer,
)
from evspec_ros.prompts import EVENT_PROMPT, TARGET_PROMPT, asked, event_prompt, target_prompt

MODELS = Path(__file__).parents[2] / "models"
TEXT = ["What moves in the scene? The red circle moves to the left.", "Nothing moves.", "A blue square."]


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


def sentence_piece(path: Path, special: tuple[str, ...], *, legacy: bool = False) -> None:
    """Write a tokenizer.model trained here, and its tokens beside it, as a slow LlamaTokenizer does."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_prefix=str(path / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        character_coverage=1.0,
        minloglevel=2,
    )
    (path / "tokenizer.vocab").unlink()
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    added = {token: 300 + index for index, token in enumerate(special)}
    (path / "added_tokens.json").write_text(json.dumps(added))
    (path / "special_tokens_map.json").write_text(json.dumps(roles))
    (path / "tokenizer_config.json").write_text(
        json.dumps({**roles, "tokenizer_class": "LlamaTokenizer", "legacy": legacy, "add_bos_token": True})
    )


def byte_level(path: Path, special: tuple[str, ...]) -> None:
    """Write a tokenizer of GPT-2's family, trained here."""
    other = tokenizers.Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    other.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
        ),
    )
    save_tokenizer(other, path, special)


# Text in which nothing is special

KINDS = ["shipped target", "shipped event model", "llama", "sentencepiece", "old sentencepiece", "byte level"]
ORDINARY = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t  <>/"), max_size=40)
LIKE_SPECIAL = st.lists(
    st.sampled_from(["<s>", "</s>", "<unk>", *SPECIAL, "<event>", "USER:", " ", "a", "\n", "<", ">"]),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Tokenizers of LLaMA's kind as they were written over the years, and one of GPT-2's."""
    made = {name: tmp_path_factory.mktemp(name.replace(" ", "_")) for name in KINDS[2:]}
    save_tokenizer(llama_style_tokenizer(), made["llama"], SPECIAL)
    sentence_piece(made["sentencepiece"], SPECIAL)
    sentence_piece(made["old sentencepiece"], SPECIAL, legacy=True)
    byte_level(made["byte level"], ("<unk>", "<s>", "</s>", *SPECIAL))
    shipped = {"shipped target": MODELS / "tiny_video_llava", "shipped event model": MODELS / "tiny_eventgpt"}
    return {name: load_tokenizer(path) for name, path in (shipped | made).items()}


@pytest.mark.parametrize("kind", KINDS)
@given(question=ORDINARY)
def test_a_question_has_the_ids_that_transformers_gives_the_whole_prompt(
    every_kind: dict[str, Tokenizer], kind: str, question: str
) -> None:
    """Whatever it begins and ends with: merges at the seams are those of the whole."""
    tokenizer = every_kind[kind]
    assume(not any(token in question for token in tokenizer.backend.get_added_vocab()))
    behind = tokenizer.encode_plain(asked(question))
    if kind != "shipped event model":
        whole = tokenizer.backend.encode(target_prompt(question), add_special_tokens=False)
        assert tokenizer.encode(TARGET_PROMPT) + behind == whole
    if kind != "shipped target":
        _, after = event_prompt(question)
        whole = tokenizer.backend.encode(after, add_special_tokens=False)
        assert tokenizer.encode(EVENT_PROMPT[1]) + behind == whole


@pytest.mark.parametrize("kind", KINDS)
@given(question=LIKE_SPECIAL)
def test_words_of_the_template_in_a_question_are_text(
    every_kind: dict[str, Tokenizer], kind: str, question: str
) -> None:
    """No id of a special token comes of them, and they are read as they were written."""
    tokenizer = every_kind[kind]
    special = {tokenizer.backend.get_vocab()[token] for token in tokenizer.backend.all_special_tokens}
    ids = tokenizer.encode_plain(asked(question))
    assert special.isdisjoint(ids)
    assert max(ids) < len(tokenizer)
    assert f"\n{question} ASSISTANT:" in tokenizer.decode([*tokenizer.encode("the"), *ids])


# The tokenizers of a pair


def test_the_shipped_pair_shares_its_vocabulary() -> None:
    """Target and event model agree on all 608 base tokens, though their special tokens differ."""
    target, event = load_tokenizer(MODELS / "tiny_video_llava"), load_tokenizer(MODELS / "tiny_eventgpt")
    assert target.token_id("<video>") == event.token_id("<ev_start>")
    found = compatibility(target, event)
    assert found.same
    assert (found.shared, found.first_difference) == (608, None)
    assert "608 tokens" in found.report


def test_special_tokens_behind_the_vocabulary_are_put_aside(tmp_path: Path) -> None:
    """<ev_patch>, <ev_start>, <ev_end> beside <image>, <video>, or none at all, make no difference."""
    for name, special in (("target", SPECIAL[:2]), ("event", SPECIAL[2:]), ("plain", ())):
        save_tokenizer(llama_style_tokenizer(special), tmp_path / name, special)
    target, event, plain = (load_tokenizer(tmp_path / name) for name in ("target", "event", "plain"))
    assert compatibility(target, event) == compatibility(plain, target) == compatibility(event, event)
    assert compatibility(target, event).same


def test_a_tokenizer_of_another_family_is_reported(loaded: Tokenizer, tmp_path: Path) -> None:
    """A byte-level BPE differs from the first ids on: the report says where and what follows."""
    byte_level(tmp_path, ("<unk>", "<s>", "</s>"))
    found = compatibility(loaded, load_tokenizer(tmp_path))
    assert not found.same
    assert found.first_difference == (3, "<0x00>", "!")
    assert found.shared == 3
    assert "id 3 is '<0x00>' to the target and '!' to the event model" in found.report
    assert "token-level drafting is impossible" in found.report
    assert "\n" not in found.report


@pytest.mark.parametrize("longer", ["target", "event"])
def test_a_longer_vocabulary_is_another_one(loaded: Tokenizer, tmp_path: Path, longer: str) -> None:
    """A token more in either base vocabulary is the first difference: its id means something else beside."""
    content = json.loads(llama_style_tokenizer().to_str())
    size = len(content["model"]["vocab"])
    content["model"]["vocab"]["more"] = size
    content["added_tokens"] = content["added_tokens"][:3]
    save_tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)), tmp_path)
    pair = [load_tokenizer(tmp_path), loaded]
    tokens = ["more", None]
    if longer == "event":
        pair.reverse()
        tokens.reverse()
    found = compatibility(*pair)
    assert found.first_difference == (size, *tokens)
    assert "no token" in found.report
    assert found.shared == size


# A tokenizer and its model


def test_a_tokenizer_may_have_fewer_tokens_than_the_model_rows(loaded: Tokenizer) -> None:
    """Embeddings padded to a round number fit, and so do exactly as many."""
    video = loaded.token_id("<video>")
    for rows in (len(loaded), len(loaded) + 61):
        require_fit(loaded, Path("x"), rows, {"<video>": video})


def test_more_tokens_than_rows_are_refused(loaded: Tokenizer, tmp_path: Path) -> None:
    """Added tokens that the model has no embedding for: both numbers are named."""
    rows = len(loaded) - 1
    with pytest.raises(CheckpointError, match=f"{tmp_path} has ids up to {rows} .* for {rows} tokens"):
        require_fit(loaded, tmp_path, rows)


def test_another_id_of_a_special_token_is_refused(loaded: Tokenizer, tmp_path: Path) -> None:
    """A token that the model's config knows by another id, or that the vocabulary lacks, is named."""
    video = loaded.token_id("<video>")
    with pytest.raises(CheckpointError, match=f"has id {video} for '<video>' where .* id 5;"):
        require_fit(loaded, tmp_path, 1000, {"<video>": 5})
    with pytest.raises(CheckpointError, match=r"has no id for '<depth>' where .* id 5;"):
        require_fit(loaded, tmp_path, 1000, {"<depth>": 5})


def test_a_tokenizer_without_first_and_last_token_is_refused(tmp_path: Path) -> None:
    """A family that begins no sequence is no LLaMA's."""
    byte_level(tmp_path, ("<unk>",))
    content = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del content["bos_token"], content["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    (tmp_path / "special_tokens_map.json").unlink()
    with pytest.raises(CheckpointError, match="names no token that begins"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_model_with_added_tokens_is_read(tmp_path: Path) -> None:
    """EventGPT's files, saved by a slow LlamaTokenizer: tokenizer.model, and its tokens in a file beside."""
    sentence_piece(tmp_path, ("<ev_patch>", "<ev_start>", "<ev_end>"))
    loaded = load_tokenizer(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    text = "What moves? The é circle."
    assert loaded.encode(text) == reference.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert (loaded.bos, loaded.eos, len(loaded)) == (1, 2, 303)
    assert loaded.encode("The <ev_start> circle").count(301) == 1
    assert len(loaded.base_tokens()) == 300
