"""Checkpoints: published layouts in and out, and every way in which one can be broken."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from random_models import CLIP, lively
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.torch_version import TorchVersion
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaForCausalLM,
    VideoLlavaForConditionalGeneration,
)

from evspec_ros.errors import CheckpointError
from evspec_ros.frames.clip import ClipPreprocessor
from evspec_ros.networks.checkpoints import (
    load_draft_head,
    load_eventgpt,
    load_preprocessor_config,
    load_video_llava,
    read_eventgpt_config,
    read_video_llava_config,
    save_draft_head,
    save_eventgpt,
    save_video_llava,
)
from evspec_ros.networks.clip import CLIP_L_14_336
from evspec_ros.networks.draft_head import EagleConfig, EagleHead
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.networks.weights import free_bytes

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"


@pytest.fixture(scope="module")
def head(video_llava: VideoLlava) -> EagleHead:
    """A random draft head."""
    head = EagleHead(EagleConfig.for_target(video_llava.config.text, 64, 10)).eval()
    lively(head)
    return head


@pytest.fixture
def target(video_llava: VideoLlava, tmp_path: Path) -> Path:
    """A saved target in single precision."""
    save_video_llava(video_llava, tmp_path / "target", torch.float32)
    return tmp_path / "target"


@pytest.fixture
def event_model(eventgpt: EventGpt, tmp_path: Path) -> Path:
    """A saved event model in single precision."""
    save_eventgpt(eventgpt, tmp_path / "event", torch.float32)
    return tmp_path / "event"


def assert_same(found: nn.Module, expected: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """All parameters equal after the expected ones went through `dtype`, and the model is set to evaluate."""
    assert not found.training
    state = found.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], tensor.to(dtype).float()), name


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Save a checkpoint's weights again, changed."""
    save_file(change(load_file(path / WEIGHTS)), path / WEIGHTS)


def renamed(*pairs: tuple[str, str]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Every key with its first matching prefix replaced."""

    def rename(key: str) -> str:
        for old, new in pairs:
            if key.startswith(old):
                return new + key.removeprefix(old)
        return key

    return lambda tensors: {rename(key): tensor for key, tensor in tensors.items()}


def shard(path: Path, count: int = 3) -> None:
    """Split a checkpoint's weights over `count` files and an index."""
    tensors = load_file(path / WEIGHTS)
    names = [f"model-{index + 1:05}-of-{count:05}.safetensors" for index in range(count)]
    weight_map = {key: names[index % count] for index, key in enumerate(tensors)}
    for name in names:
        save_file({key: tensors[key] for key in tensors if weight_map[key] == name}, path / name)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (path / WEIGHTS).unlink()


def pickled(path: Path, count: int = 1) -> None:
    """The same weights as older versions of transformers saved them: one pickle, or shards and an index."""
    tensors = load_file(path / WEIGHTS)
    (path / WEIGHTS).unlink()
    if count == 1:
        torch.save(tensors, path / PICKLE)
        return
    names = [f"pytorch_model-{index + 1:05}-of-{count:05}.bin" for index in range(count)]
    weight_map = {key: names[index % count] for index, key in enumerate(tensors)}
    for name in names:
        torch.save({key: tensors[key] for key in tensors if weight_map[key] == name}, path / name)
    (path / f"{PICKLE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def without_tower(path: Path) -> None:
    """Take the visual tower out of an event model's own weights."""
    rewrite(path, lambda tensors: {key: tensors[key] for key in tensors if "visual_tower" not in key})


def edit_config(path: Path, **entries: object) -> None:
    """Change entries of config.json."""
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **entries}))


# What is written is read back


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_target_comes_back(video_llava: VideoLlava, tmp_path: Path, dtype: torch.dtype) -> None:
    """Every parameter survives, rounded once to the precision on disk."""
    save_video_llava(video_llava, tmp_path, dtype)
    loaded = load_video_llava(tmp_path)
    assert loaded.config == video_llava.config
    assert_same(loaded, video_llava, dtype)


def test_an_event_model_comes_back(eventgpt: EventGpt, tmp_path: Path) -> None:
    """Every parameter survives in half precision."""
    save_eventgpt(eventgpt, tmp_path)
    loaded = load_eventgpt(tmp_path)
    assert loaded.config == eventgpt.config
    assert_same(loaded, eventgpt, torch.float16)


def test_a_draft_head_comes_back(head: EagleHead, tmp_path: Path) -> None:
    """A head's sizes, kind and parameters survive."""
    save_draft_head(head, tmp_path)
    loaded = load_draft_head(tmp_path)
    assert loaded.config == head.config
    assert_same(loaded, head, torch.float16)


def test_a_loaded_target_computes_what_the_saved_one_did(video_llava: VideoLlava, target: Path) -> None:
    """Nothing outside the parameters (position tables, position ids) is lost on the way."""
    pixels = torch.randn(2, 3, CLIP.image_size, CLIP.image_size)
    loaded = load_video_llava(target)
    with torch.inference_mode():
        video = video_llava.encode_frames(pixels)
        assert torch.equal(loaded.encode_frames(pixels), video)
        assert torch.equal(loaded.decoder(video[None]).hidden, video_llava.decoder(video[None]).hidden)


def test_a_loaded_model_can_be_trained_further(target: Path) -> None:
    """Loaded parameters take gradients."""
    loaded = load_video_llava(target)
    loaded.lm_head(
        loaded.decoder(loaded.encode_frames(torch.zeros(1, 3, 32, 32))[None]).hidden
    ).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.decoder.layers.parameters())


def test_weights_are_loaded_in_the_precision_asked_for(target: Path) -> None:
    """dtype is that of every parameter in memory."""
    loaded = load_video_llava(target, torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_saving_again_replaces_the_old_and_leaves_nothing_behind(
    video_llava: VideoLlava, target: Path
) -> None:
    """A second save keeps foreign files (a tokenizer), and no temporary file stays."""
    (target / "tokenizer.json").write_text("{}")
    before = {file.name for file in target.iterdir()}
    save_video_llava(video_llava, target, torch.float16)
    assert {file.name for file in target.iterdir()} == before
    assert_same(load_video_llava(target), video_llava, torch.float16)


def test_the_preprocessor_of_a_checkpoint_is_clips(target: Path, event_model: Path) -> None:
    """preprocessor_config.json describes CLIP's recipe at the tower's image size."""
    for path in (target, event_model):
        assert ClipPreprocessor.from_config(load_preprocessor_config(path)).size == CLIP.image_size


# Published layouts


def test_transformers_loads_a_saved_target_completely(target: Path, video_llava: VideoLlava) -> None:
    """No key is missing or unexpected, and the unread parts are what the format's filling says."""
    model, report = VideoLlavaForConditionalGeneration.from_pretrained(
        target, output_loading_info=True, torch_dtype=torch.float32
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = torch.randn(1, 3, CLIP.image_size, CLIP.image_size)
    with torch.inference_mode():
        parts = getattr(model, "model", model)  # transformers 4 before 4.52 has no inner model
        video = parts.video_tower(pixels, output_hidden_states=True).hidden_states
        image = parts.image_tower(pixels, output_hidden_states=True).hidden_states
    assert torch.equal(video[-1], video[-2])  # the unread layer changes nothing
    assert torch.equal(image[-1], video[-1])


def test_the_keys_on_disk_are_those_of_the_published_checkpoint(target: Path, event_model: Path) -> None:
    """Both networks are written under the names that their makers use."""
    video_llava, eventgpt = load_file(target / WEIGHTS), load_file(event_model / WEIGHTS)
    assert {key.split(".")[0] for key in video_llava} == {
        "image_tower",
        "language_model",
        "multi_modal_projector",
        "video_tower",
    }
    for key in (
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "language_model.lm_head.weight",
        "video_tower.vision_model.encoder.layers.2.mlp.fc1.bias",
        "image_tower.vision_model.pre_layrnorm.weight",
        "multi_modal_projector.linear_2.bias",
    ):
        assert key in video_llava
    for key in (
        "model.visual_tower.visual_tower.vision_model.embeddings.class_embedding",
        "model.visual_projector.2.weight",
        "model.feature_adaptor.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    ):
        assert key in eventgpt


@pytest.mark.parametrize(
    "pairs",
    [
        (
            ("language_model.model.", "model.language_model."),
            ("language_model.lm_head.", "lm_head."),
            ("video_tower.vision_model.", "model.video_tower."),
            ("image_tower.vision_model.", "model.image_tower."),
            ("multi_modal_projector.", "model.multi_modal_projector."),
        ),
        (
            ("language_model.model.", "model.language_model."),
            ("language_model.lm_head.", "lm_head."),
            ("video_tower.", "model.video_tower."),
            ("image_tower.", "model.image_tower."),
            ("multi_modal_projector.", "model.multi_modal_projector."),
        ),
    ],
    ids=["transformers 5", "transformers 4.52"],
)
def test_other_key_layouts_of_transformers_are_read(
    video_llava: VideoLlava, target: Path, pairs: tuple[tuple[str, str], ...]
) -> None:
    """The names that later versions of transformers write mean the same parameters."""
    rewrite(target, renamed(*pairs))
    assert_same(load_video_llava(target), video_llava)


def test_what_transformers_saves_is_read(video_llava: VideoLlava, target: Path, tmp_path: Path) -> None:
    """A checkpoint that transformers itself wrote, config included, gives the same model."""
    model = VideoLlavaForConditionalGeneration.from_pretrained(target, torch_dtype=torch.float32)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_video_llava(tmp_path / "theirs")
    assert loaded.config == video_llava.config
    assert_same(loaded, video_llava)


def test_shards_and_an_index_are_read(video_llava: VideoLlava, target: Path) -> None:
    """Weights over several files give the same model."""
    shard(target)
    assert_same(load_video_llava(target), video_llava)


@pytest.mark.parametrize("count", [1, 3])
def test_pickled_weights_are_read(
    video_llava: VideoLlava, eventgpt: EventGpt, target: Path, event_model: Path, count: int
) -> None:
    """pytorch_model.bin, whole or in shards, gives the same models."""
    pickled(target, count)
    pickled(event_model, count)
    assert_same(load_video_llava(target), video_llava)
    assert_same(load_eventgpt(event_model), eventgpt)


def test_safetensors_are_preferred_to_pickles(video_llava: VideoLlava, target: Path) -> None:
    """Where a directory holds both, the pickle stays closed."""
    (target / PICKLE).write_bytes(b"anything")
    assert_same(load_video_llava(target), video_llava)


def test_a_model_does_not_hang_on_its_files(video_llava: VideoLlava, target: Path) -> None:
    """Loaded weights stay what they are when the files are overwritten in place."""
    loaded = load_video_llava(target)
    size = (target / WEIGHTS).stat().st_size
    with (target / WEIGHTS).open("r+b") as stream:
        stream.write(b"\xff" * size)
    assert_same(loaded, video_llava)


def test_buffers_that_old_versions_saved_are_ignored(video_llava: VideoLlava, target: Path) -> None:
    """position_ids and inv_freq are no weights."""
    old = {
        "video_tower.vision_model.embeddings.position_ids": torch.arange(5)[None],
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    rewrite(target, lambda tensors: {**tensors, **old})
    assert_same(load_video_llava(target), video_llava)


def test_an_event_models_tower_may_lie_beside_it(eventgpt: EventGpt, event_model: Path) -> None:
    """mm_visual_tower with a foreign path is found by its name beside the checkpoint."""
    shutil.move(event_model / "visual_tower", event_model.parent / "clip-tower")
    edit_config(event_model, mm_visual_tower="/home/someone/models/clip-tower")
    assert load_eventgpt(event_model).config == eventgpt.config


def test_the_published_tower_needs_no_directory(event_model: Path) -> None:
    """CLIP-L/14-336 is known by name: its shapes are then what the weights are held against."""
    shutil.rmtree(event_model / "visual_tower")
    edit_config(event_model, mm_visual_tower="openai/clip-vit-large-patch14-336")
    with pytest.raises(CheckpointError, match=str(CLIP_L_14_336.hidden_size)):
        load_eventgpt(event_model)


@pytest.mark.parametrize("whole", [True, False], ids=["all of CLIP", "its image tower"])
@pytest.mark.parametrize("pickle_it", [False, True], ids=["safetensors", "pickle"])
@pytest.mark.parametrize("place", ["beside", "inside"])
def test_a_towers_weights_may_lie_in_its_own_directory(
    eventgpt: EventGpt, event_model: Path, place: str, pickle_it: bool, whole: bool
) -> None:
    """A directory that transformers' CLIP wrote completes a checkpoint; its text is not read."""
    state = eventgpt.visual_tower.clip.state_dict()
    vision = {**CLIP.to_hf()}
    if whole:
        text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        clip = CLIPModel(
            CLIPConfig(text_config=text, vision_config=vision, projection_dim=CLIP.projection_dim)
        )
        clip.vision_model.load_state_dict({name.removeprefix("vision_model."): state[name] for name in state})
    else:
        clip = CLIPVisionModel(CLIPVisionConfig(**vision))
        clip.load_state_dict(state)
    shutil.rmtree(event_model / "visual_tower")
    tower = (event_model.parent if place == "beside" else event_model) / "clip-vit"
    clip.save_pretrained(tower)
    if pickle_it:
        pickled(tower)
    without_tower(event_model)
    edit_config(event_model, mm_visual_tower="openai/clip-vit")
    loaded = load_eventgpt(event_model)
    assert loaded.config == eventgpt.config
    assert_same(loaded, eventgpt)


def test_a_towers_own_weights_come_first(eventgpt: EventGpt, event_model: Path) -> None:
    """Where the checkpoint holds its tower, trained further perhaps, nothing is read from the tower's."""
    (event_model / "visual_tower" / WEIGHTS).write_bytes(b"anything")
    assert_same(load_eventgpt(event_model), eventgpt)


def test_a_checkpoint_without_preprocessor_has_its_towers(event_model: Path) -> None:
    """EventGPT's images go through the processor of its CLIP directory, or of CLIP-L/14-336 by its name."""
    (event_model / "preprocessor_config.json").unlink()
    assert ClipPreprocessor.from_config(load_preprocessor_config(event_model)).size == CLIP.image_size
    shutil.rmtree(event_model / "visual_tower")
    edit_config(event_model, mm_visual_tower="openai/clip-vit-large-patch14-336")
    assert ClipPreprocessor.from_config(load_preprocessor_config(event_model)).size == 336


def test_a_target_without_preprocessor_is_refused(target: Path) -> None:
    """There is no tower's directory to look into."""
    (target / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        load_preprocessor_config(target)


# What is broken is refused in one sentence


def assert_refused(load: Callable[[Path], object], path: Path, *parts: str) -> None:
    """CheckpointError in one sentence that names the place and holds `parts`."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.endswith(".")
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("load", [load_video_llava, load_eventgpt, load_draft_head])
def test_a_missing_directory_is_refused(load: Callable[[Path], object], tmp_path: Path) -> None:
    """A path that does not exist is named."""
    assert_refused(load, tmp_path / "nowhere", "no checkpoint directory")


@pytest.mark.parametrize("load", [load_video_llava, load_eventgpt, load_draft_head])
def test_an_empty_directory_is_refused(load: Callable[[Path], object], tmp_path: Path) -> None:
    """A directory without config.json is no checkpoint."""
    assert_refused(load, tmp_path, "has no config.json")


@pytest.mark.parametrize("content", ['{"model_type": "video_', "[]", "\x00\xff"])
def test_a_damaged_config_is_refused(target: Path, content: str) -> None:
    """A half-written config.json is named."""
    (target / "config.json").write_text(content)
    assert_refused(load_video_llava, target, "config.json")


def test_another_architecture_is_refused(target: Path, event_model: Path) -> None:
    """A target is no event model and the other way round; both are told apart by name."""
    assert_refused(load_eventgpt, target, "'video_llava'", "EventGPT")
    assert_refused(load_video_llava, event_model, "'EventChat_llama'", "Video-LLaVA")


def test_the_authors_layout_is_refused_with_the_reason(target: Path) -> None:
    """The original Video-LLaVA has attention over time, which this network has not."""
    edit_config(target, model_type="llava", mm_video_tower="LanguageBind/LanguageBind_Video_merge")
    assert_refused(load_video_llava, target, "attends over time", "Video-LLaVA-7B-hf")


def test_missing_weights_are_refused(target: Path) -> None:
    """A directory with a config alone says which files are missing."""
    (target / WEIGHTS).unlink()
    assert_refused(load_video_llava, target, WEIGHTS)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_refused(target: Path, share: float) -> None:
    """A file cut off anywhere is found before a model exists."""
    content = (target / WEIGHTS).read_bytes()
    (target / WEIGHTS).write_bytes(content[: int(share * len(content))])
    assert_refused(load_video_llava, target, "half written")


def test_a_missing_shard_is_refused(target: Path) -> None:
    """A shard that the index lists and the directory lacks is named."""
    shard(target)
    (target / "model-00002-of-00003.safetensors").unlink()
    assert_refused(load_video_llava, target, "model-00002-of-00003.safetensors")


def test_an_index_without_a_map_is_refused(target: Path) -> None:
    """An index that lists nothing is damaged."""
    shard(target)
    (target / INDEX).write_text(json.dumps({"weight_map": ["x"]}))
    assert_refused(load_video_llava, target, INDEX)


def test_all_problems_with_keys_are_listed_at_once(target: Path) -> None:
    """Missing, unexpected and mis-shaped keys stand in one error."""

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        del tensors["language_model.model.norm.weight"]
        tensors["multi_modal_projector.linear_1.bias"] = torch.zeros(3)
        return {**tensors, "language_model.model.layers.9.extra": torch.zeros(1)}

    rewrite(target, change)
    assert_refused(
        load_video_llava,
        target,
        "decoder.norm.weight is missing",
        "multi_modal_projector.linear_1.bias has shape (3,) instead of (64,)",
        "language_model.model.layers.9.extra is unexpected",
    )


def test_pickles_under_other_names_are_refused(target: Path) -> None:
    """A .pth is named and never opened."""
    (target / WEIGHTS).unlink()
    (target / "weights.pth").write_bytes(b"anything")
    assert_refused(load_video_llava, target, "weights.pth", "pickle")


def test_a_vocabulary_of_another_size_is_refused(event_model: Path) -> None:
    """Embeddings without the rows that config.json counts, for added tokens perhaps, are mis-shaped."""
    edit_config(event_model, vocab_size=336)
    assert_refused(
        load_eventgpt,
        event_model,
        "model.embed_tokens.weight has shape (333, 64) instead of (336, 64)",
        "lm_head.weight has shape (333, 64) instead of (336, 64)",
    )


def test_a_doubled_key_is_refused(target: Path) -> None:
    """Two published keys for one parameter leave open which is meant."""
    rewrite(target, lambda t: {**t, "lm_head.weight": t["language_model.lm_head.weight"].clone()})
    assert_refused(load_video_llava, target, "lm_head.weight is there 2 times")


def test_missing_tower_weights_are_refused(event_model: Path) -> None:
    """A tower that neither the checkpoint nor a directory holds is named; half a tower is listed."""
    rewrite(
        event_model,
        lambda t: {key: t[key] for key in t if not key.endswith("vision_model.post_layernorm.bias")},
    )
    assert_refused(load_eventgpt, event_model, "visual_tower.clip.post_layernorm.bias is missing")
    without_tower(event_model)
    assert_refused(load_eventgpt, event_model, f"{event_model / 'visual_tower'} has neither {WEIGHTS}")
    shutil.rmtree(event_model / "visual_tower")
    edit_config(event_model, mm_visual_tower="openai/clip-vit-large-patch14-336")
    assert_refused(load_eventgpt, event_model, "lack the visual tower", "openai/clip-vit-large-patch14-336")


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_in_disguise_is_refused_unread(target: Path, form: str) -> None:
    """A pickle under the name of a safetensors file is recognised and not run."""
    if form == "pickle":
        (target / WEIGHTS).write_bytes(pickle.dumps(_Bomb()))
    else:
        torch.save({"bomb": _Bomb()}, target / WEIGHTS)
    assert_refused(load_video_llava, target, "is a pickle")


@pytest.mark.parametrize("form", ["pickle", "torch", "nested", "list", "half", "empty"])
def test_a_pickle_of_more_than_tensors_is_refused(target: Path, form: str) -> None:
    """torch's weights-only loader runs nothing: bombs, objects and halves give one sentence."""
    pickled(target)
    file = target / PICKLE
    if form == "pickle":
        file.write_bytes(pickle.dumps(_Bomb()))
    elif form == "torch":
        torch.save({"bomb": _Bomb()}, file)
    elif form == "nested":
        torch.save({"state_dict": {"weight": torch.ones(1)}}, file)
    elif form == "list":
        torch.save([torch.ones(1)], file)
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 if form == "half" else 0])
    assert_refused(load_video_llava, target, PICKLE)


def test_an_old_torch_reads_no_pickle(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 2.6 the weights-only loader could be made to run code."""
    pickled(target)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.5.1"))
    assert_refused(load_video_llava, target, "torch 2.5.1", "install torch 2.6")


def test_too_little_memory_is_refused_before_a_tensor_is_read(
    video_llava: VideoLlava, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names what the weights take in the precision asked for, and what is free."""
    values = sum(parameter.numel() for parameter in video_llava.parameters())
    monkeypatch.setattr("evspec_ros.networks.weights._MEMINFO", tmp_path / "meminfo")
    kibibytes = 3 * values // 1024  # enough for two bytes a value, not for four
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemFree: 0 kB\nMemAvailable: {kibibytes} kB\n")
    assert free_bytes("cpu") == kibibytes * 1024
    assert_refused(
        load_video_llava,
        target,
        f"take {4 * values / 1e9:.2f} GB as float32",
        f"cpu has {kibibytes * 1024 / 1e9:.2f} GB free",
    )
    load_video_llava(target, torch.float16)


@pytest.mark.parametrize("content", [None, "MemTotal: 1 kB\n"])
def test_unknown_memory_refuses_nothing(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    """A system that does not say what is free is trusted."""
    monkeypatch.setattr("evspec_ros.networks.weights._MEMINFO", tmp_path / "meminfo")
    if content is not None:
        (tmp_path / "meminfo").write_text(content)
    assert free_bytes("cpu") is None
    load_video_llava(target)


@pytest.mark.parametrize("integrated", [0, 1])
def test_free_memory_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, integrated: int) -> None:
    """A card's own memory, with what torch holds unused; an integrated GPU has the host's."""
    (tmp_path / "meminfo").write_text("MemAvailable: 5 kB\n")
    monkeypatch.setattr("evspec_ros.networks.weights._MEMINFO", tmp_path / "meminfo")
    properties = SimpleNamespace(is_integrated=integrated)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert free_bytes("cuda") == (5 * 1024 if integrated else 1200)


def test_an_unknown_visual_tower_is_refused(event_model: Path) -> None:
    """A tower that is neither inside nor beside the checkpoint is named."""
    edit_config(event_model, mm_visual_tower="elsewhere/siglip")
    assert_refused(load_eventgpt, event_model, "elsewhere/siglip")


def test_another_kind_of_head_is_refused(head: EagleHead, tmp_path: Path) -> None:
    """A head of a kind that is not known is named."""
    save_draft_head(head, tmp_path)
    edit_config(tmp_path, kind="medusa")
    with pytest.raises(CheckpointError, match="medusa"):
        load_draft_head(tmp_path)


def test_a_failed_save_leaves_the_old_checkpoint(
    video_llava: VideoLlava, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that cannot be written to the end replace nothing, and their temporary file is removed."""

    def fails(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    before = {file.name: file.read_bytes() for file in target.iterdir()}
    monkeypatch.setattr("evspec_ros.networks.weights.save_file", fails)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_video_llava(video_llava, target, torch.float16)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before


# What ends a text, and weights that two layers share, as transformers reads them


def edit_text_config(path: Path, **entries: object) -> None:
    """Change entries of the text's section of config.json."""
    config = json.loads((path / "config.json").read_text())
    edit_config(path, text_config={**config["text_config"], **entries})


@pytest.mark.parametrize("generation", [5, [5, 2], [2], None, "absent", "no file"])
@pytest.mark.parametrize("whole", [None, 9, [9, 10]])
@pytest.mark.parametrize("text", [7, [7, 8]])
def test_end_tokens_are_those_of_transformers(
    target: Path, generation: object, whole: object, text: object
) -> None:
    """From generation_config.json, else from the config, else from its text's section; one or several."""
    edit_text_config(target, eos_token_id=text)
    if whole is not None:
        edit_config(target, eos_token_id=whole)
    file = target / "generation_config.json"
    file.write_text(json.dumps({} if generation == "absent" else {"eos_token_id": generation}))
    if generation == "no file":
        file.unlink()
    theirs = VideoLlavaForConditionalGeneration.from_pretrained(target).generation_config.eos_token_id
    expected = [] if theirs is None else theirs if isinstance(theirs, list) else [theirs]
    assert list(read_video_llava_config(target).text.end_tokens) == expected


@pytest.mark.parametrize("generation", [[5, 2], "no file"])
def test_end_tokens_of_an_event_model_are_read_alike(event_model: Path, generation: object) -> None:
    """Its config has no section for the text."""
    edit_config(event_model, eos_token_id=[7, 8])
    file = event_model / "generation_config.json"
    if generation == "no file":
        file.unlink()
    else:
        file.write_text(json.dumps({"eos_token_id": generation}))
    expected = (7, 8) if generation == "no file" else (5, 2)
    assert read_eventgpt_config(event_model).text.end_tokens == expected
    assert load_eventgpt(event_model).config.text.end_tokens == expected


def test_several_end_tokens_come_back(video_llava: VideoLlava, tmp_path: Path) -> None:
    """Also none at all."""
    config = video_llava.config
    for ends in ((5, 2), (5,), ()):
        model = VideoLlava(replace(config, text=replace(config.text, end_tokens=ends)))
        save_video_llava(model, tmp_path)
        assert load_video_llava(tmp_path).config.text.end_tokens == ends


@pytest.mark.parametrize("ends", ["2", [2, "3"], 2.0, True, {"id": 2}])
def test_an_end_token_that_is_no_whole_number_is_refused(target: Path, ends: object) -> None:
    """Wherever it stands."""
    edit_text_config(target, eos_token_id=ends)
    sentence = "entry eos_token_id .* instead of a whole number or a list"
    with pytest.raises(CheckpointError, match=sentence):
        load_video_llava(target)
    edit_text_config(target, eos_token_id=2)
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(CheckpointError, match=sentence):
        load_video_llava(target)


def without(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """All tensors but those whose key contains one of these."""
    return lambda tensors: {
        key: tensor for key, tensor in tensors.items() if not any(name in key for name in names)
    }


@pytest.mark.parametrize("gone", [(), ("lm_head",), ("embed_tokens",)])
def test_tied_embeddings_are_read_as_transformers_reads_them(target: Path, gone: tuple[str, ...]) -> None:
    """One tensor for both where one is there, whichever; both where both are."""
    edit_config(target, tie_word_embeddings=True)
    rewrite(target, without(*gone))
    theirs = VideoLlavaForConditionalGeneration.from_pretrained(target)
    found = load_video_llava(target)
    assert torch.equal(found.lm_head.weight, theirs.lm_head.weight)
    assert torch.equal(found.decoder.embed_tokens.weight, theirs.model.language_model.embed_tokens.weight)
    assert (found.lm_head.weight is found.decoder.embed_tokens.weight) == bool(gone)
    ids = torch.tensor([[1, 5, 9]])
    hidden = found.decoder(found.decoder.embed(ids)).hidden
    assert (found.lm_head(hidden) - theirs(input_ids=ids).logits).abs().max() <= 1e-4


def test_tied_embeddings_of_an_event_model_are_those_of_a_llama(event_model: Path, tmp_path: Path) -> None:
    """transformers' decoder on the same tensors; also where the config of the text alone says so."""
    edit_config(event_model, tie_word_embeddings=True)
    rewrite(event_model, without("lm_head"))
    llama = tmp_path / "llama"
    llama.mkdir()
    decoder = without("visual", "feature_adaptor")(load_file(event_model / WEIGHTS))
    save_file(decoder, llama / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((event_model / "config.json").read_text())
    (llama / "config.json").write_text(
        json.dumps({**config, "model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    theirs, found = LlamaForCausalLM.from_pretrained(llama), load_eventgpt(event_model)
    ids = torch.tensor([[1, 5, 9]])
    hidden = found.decoder(found.decoder.embed(ids)).hidden
    assert (found.lm_head(hidden) - theirs(input_ids=ids).logits).abs().max() <= 1e-4


def test_a_text_config_may_say_that_embeddings_are_tied(target: Path) -> None:
    """As transformers 4 wrote it; without a word of it the missing output head is named."""
    rewrite(target, without("lm_head"))
    assert_refused(load_video_llava, target, "lm_head.weight is missing")
    edit_text_config(target, tie_word_embeddings=True)
    found = load_video_llava(target)
    assert found.lm_head.weight is found.decoder.embed_tokens.weight


def test_tied_embeddings_come_back_tied(target: Path, tmp_path: Path) -> None:
    """Written once, in a layout that transformers ties as well."""
    edit_config(target, tie_word_embeddings=True)
    rewrite(target, without("lm_head"))
    found = load_video_llava(target)
    save_video_llava(found, tmp_path / "again", torch.float32)
    assert not any("lm_head" in key for key in load_file(tmp_path / "again" / WEIGHTS))
    assert_same(load_video_llava(tmp_path / "again"), found)
    theirs = VideoLlavaForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert torch.equal(theirs.lm_head.weight, found.lm_head.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["embed_tokens", "layers.1.mlp.up_proj", "lm_head", "linear_1.bias"])
def test_weights_that_are_not_finite_are_refused(target: Path, key: str, value: float) -> None:
    """One value of millions, with the tensor and its file."""

    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(name for name in tensors if key in name)
        tensors[name].view(-1)[-1] = value
        return tensors

    rewrite(target, spoil)
    assert_refused(load_video_llava, target, key, WEIGHTS, "not finite (NaN or infinite)")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_too_large_for_a_precision_are_refused_in_it(target: Path, dtype: torch.dtype) -> None:
    """70,000 is no number in float16; it is one in bfloat16."""

    def enlarge(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        next(tensor for name, tensor in tensors.items() if "lm_head" in name)[0, 0] = 70_000.0
        return tensors

    rewrite(target, enlarge)
    if dtype == torch.bfloat16:
        assert load_video_llava(target, dtype).lm_head.weight.isfinite().all()
        return
    with pytest.raises(CheckpointError, match=r"infinite\) as float16; .* choose float32 or bfloat16"):
        load_video_llava(target, dtype)


def test_a_draft_head_with_nan_is_refused(head: EagleHead, tmp_path: Path) -> None:
    """As every network is."""
    save_draft_head(head, tmp_path, torch.float32)
    rewrite(tmp_path, lambda tensors: {**tensors, "fc.bias": tensors["fc.bias"] * float("nan")})
    assert_refused(load_draft_head, tmp_path, "fc.bias", "not finite")
