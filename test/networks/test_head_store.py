"""Where a head that learns is kept: what is read again, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from evspec_ros.errors import CheckpointError
from evspec_ros.networks.block_head import BlockConfig, BlockHead
from evspec_ros.networks.checkpoints import load_draft_head, read_video_llava_config
from evspec_ros.networks.head_store import HeadStore, default_directory, fingerprints
from evspec_ros.networks.tokenizer import load_tokenizer

MODELS = Path(__file__).parents[2] / "models"
TARGET, EVENT_MODEL = MODELS / "tiny_video_llava", MODELS / "tiny_eventgpt"
PAIR = {"target": "t", "event_model": "e", "vocabulary": "v"}
FITS: Callable[[BlockConfig], None] = lambda _: None  # noqa: E731
CONFIG = BlockConfig(
    target_size=8, layers=(1,), vocab_size=20, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=2,
    head_dim=4, event_size=4, max_positions=64, block=4,
)  # fmt: skip


def _store(directory: Path, **changes: str) -> HeadStore:
    return HeadStore(directory, {**PAIR, **changes})


def _load(store: HeadStore) -> tuple[BlockHead, bool] | None:
    return store.load(FITS, torch.float32, "cpu")


def test_what_was_saved_is_loaded_and_is_a_head_as_every_other(tmp_path: Path) -> None:
    """Its weights, in half precision, and whether it drafted; `load_draft_head` reads it, too."""
    head = BlockHead(CONFIG)
    for drafts in (False, True):
        _store(tmp_path / "new" / "deep").save(head, drafts=drafts)
        found = _load(_store(tmp_path / "new" / "deep"))
        assert found is not None
        assert found[1] is drafts
        for name, value in load_draft_head(tmp_path / "new" / "deep").state_dict().items():
            assert torch.equal(value, head.state_dict()[name].half().float())
            assert torch.equal(value, found[0].state_dict()[name])


def test_where_nothing_was_saved_there_is_nothing(tmp_path: Path) -> None:
    """Neither in a directory that is not there nor in an empty one."""
    (tmp_path / "empty").mkdir()
    assert _load(_store(tmp_path / "empty")) is None
    assert _load(_store(tmp_path / "nowhere")) is None


@pytest.mark.parametrize(
    ("name", "shown"), [("target", "target"), ("event_model", "event model"), ("vocabulary", "vocabulary")]
)
def test_a_head_that_learnt_from_others_is_refused(name: str, shown: str, tmp_path: Path) -> None:
    """It says from which."""
    _store(tmp_path).save(BlockHead(CONFIG), drafts=True)
    with pytest.raises(CheckpointError, match=f"learnt from another {shown}"):
        _load(_store(tmp_path, **{name: "other"}))


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "learnt_from.json"])
def test_a_file_that_was_cut_off_is_refused_by_name(file: str, part: float, tmp_path: Path) -> None:
    """Wherever it ends; moved aside, it is out of the way of the next head."""
    _store(tmp_path).save(BlockHead(CONFIG), drafts=True)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(CheckpointError, match=file):
        _load(_store(tmp_path))
    aside = _store(tmp_path).set_aside()
    assert (aside / file).is_file()
    assert _load(_store(tmp_path)) is None
    _store(tmp_path).save(BlockHead(CONFIG), drafts=True)
    assert _store(tmp_path).set_aside() != aside


def test_saving_that_fails_leaves_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full in the middle of the weights: the old head is still whole, and nothing lies beside."""
    head = BlockHead(CONFIG)
    _store(tmp_path).save(head, drafts=True)
    names = sorted(path.name for path in tmp_path.iterdir())

    def full(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evspec_ros.networks.weights.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        _store(tmp_path).save(BlockHead(CONFIG), drafts=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    found = _load(_store(tmp_path))
    assert found is not None
    assert torch.equal(found[0].fc.weight, head.fc.weight.half().float())


SAVE_AND_DIE = """
import os, signal, sys
from pathlib import Path
import torch
from evspec_ros.networks.block_head import BlockConfig, BlockHead
from evspec_ros.networks.head_store import HeadStore

folder, config, pair = Path(sys.argv[1]), BlockConfig(**eval(sys.argv[2])), eval(sys.argv[3])
STEPS = "open", "os.rename", "os.chmod", "os.remove", "tempfile.mkstemp"

def save(value, folder):
    head = BlockHead(config)
    with torch.no_grad():
        for weight in head.parameters():
            weight.fill_(value)
    HeadStore(folder, pair).save(head, drafts=True)

def die_at(number):
    left = iter(range(number))
    def hook(event, _):
        if event in STEPS and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

number, status = 0, signal.SIGKILL
save(1.0, folder / "0")
while status == signal.SIGKILL:
    save(1.0, folder / str(number))
    if (child := os.fork()) == 0:
        die_at(number)
        save(2.0, folder / str(number))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    number += 1
"""


def test_a_head_whose_saving_was_killed_at_any_step_is_whole(tmp_path: Path) -> None:
    """All of it as before, or all of it new; what lies beside is removed by a later save, an hour on."""
    arguments = [str(tmp_path), repr(asdict(CONFIG)), repr(PAIR)]
    subprocess.run([sys.executable, "-c", SAVE_AND_DIE, *arguments], check=True)
    steps = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    assert len(steps) > 6
    found = []
    for step in steps:
        loaded = _load(_store(step))
        assert loaded is not None
        (value,) = {float(value) for weight in loaded[0].state_dict().values() for value in weight.unique()}
        found.append(value)
    assert found == sorted(found)
    assert (found[0], found[-1]) == (1.0, 2.0)

    left = [path for step in steps for path in step.glob(".*")]
    assert left
    for path in left:
        os.utime(path, (0, 0))
        _store(path.parent).save(BlockHead(CONFIG), drafts=True)
        assert not path.exists()


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """One sentence; here it lies below a file."""
    (tmp_path / "file").write_text("")
    store = _store(tmp_path / "file" / "below")
    with pytest.raises(
        CheckpointError, match=r"cannot be saved in .*below.* choose another draft_head_dir\.$"
    ):
        store.require_writable()
    with pytest.raises(CheckpointError, match="cannot be written"):
        store.save(BlockHead(CONFIG), drafts=True)
    _store(tmp_path / "new").require_writable()


def test_fingerprints_tell_models_and_vocabularies_apart(tmp_path: Path) -> None:
    """A changed weight of a large part of the file is another target; a copy elsewhere is the same one."""
    tokenizer = load_tokenizer(TARGET)
    shutil.copytree(TARGET, tmp_path / "target")
    before = fingerprints(TARGET, EVENT_MODEL, tokenizer)
    assert fingerprints(tmp_path / "target", EVENT_MODEL, tokenizer) == before
    weights = bytearray((tmp_path / "target" / "model.safetensors").read_bytes())
    half = len(weights) // 2
    weights[half:] = bytes(byte ^ 1 for byte in weights[half:])
    (tmp_path / "target" / "model.safetensors").write_bytes(weights)
    after = fingerprints(tmp_path / "target", EVENT_MODEL, tokenizer)
    assert [name for name in before if before[name] != after[name]] == ["target"]
    other = fingerprints(TARGET, EVENT_MODEL, load_tokenizer(EVENT_MODEL))
    assert other["target"] == before["target"]


def test_each_pair_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Among what the user's programs keep."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    one, other = default_directory(PAIR), default_directory({**PAIR, "target": "other"})
    assert one != other
    assert one.parent == other.parent == tmp_path / "evspec_ros" / "draft_heads"


def test_a_new_head_is_small_beside_its_target() -> None:
    """At most a tenth of the parameters, of the tiny target and of Video-LLaVA-7B."""
    tiny = read_video_llava_config(TARGET).text
    large = replace(
        tiny, vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_layers=32, num_heads=32,
        num_kv_heads=32, head_dim=128,
    )  # fmt: skip
    for text in (tiny, large):
        layer = 4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size
        target = text.num_layers * layer + 2 * text.vocab_size * text.hidden_size
        with torch.device("meta"):
            head = BlockHead(BlockConfig.for_target(text, text.hidden_size, 582))
        assert sum(parameter.numel() for parameter in head.parameters()) <= 0.1 * target
        assert head.config.causal
