"""Loading at full size: every name and shape of the published 7B checkpoints, and full-width weights on disk.

No published weights are needed: names and shapes come from transformers' models on the meta device. Files of
the full size are sparse (their data is a hole that nobody reads), so they are loaded up to the point where
the memory is found too small, which is after every key was accounted for.
"""

from __future__ import annotations

import gc
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from published_configs import VIDEO_LLAVA
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from evspec_ros.errors import CheckpointError
from evspec_ros.networks.checkpoints import load_eventgpt, load_video_llava
from evspec_ros.networks.clip import CLIP_L_14_336

GB = 10**9
MIB = 2**20
SHARD = 5 * GB  # at most, as published
TOWER = "clip-vit-large-patch14-336"

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

# EventGPT-7b: Vicuna with three tokens more, its tower named.
EVENTGPT: dict[str, Any] = {
    "architectures": ["EventChatModel"],
    "model_type": "EventChat_llama",
    "mm_visual_tower": f"openai/{TOWER}",
    "event_feature_adaptor": True,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": 32003,
}


def shapes_of(model: nn.Module) -> Shapes:
    """Names and shapes of everything that transformers saves."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def prefixed(shapes: Shapes, *pairs: tuple[str, str]) -> Shapes:
    """Every name with its first matching prefix replaced."""

    def rename(name: str) -> str:
        for old, new in pairs:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    return {rename(name): shape for name, shape in shapes.items()}


def video_llava_shapes(config: Mapping[str, Any]) -> Shapes:
    """The names of the transformers that is installed."""
    sections = {name: config[name] for name in ("text_config", "vision_config")}
    with torch.device("meta"):
        return shapes_of(VideoLlavaForConditionalGeneration(VideoLlavaConfig(**sections)))


def as_transformers_4(shapes: Shapes) -> Shapes:
    """The names of the published files, which transformers maps to its own when it loads them."""
    return prefixed(
        shapes,
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.video_tower.vision_model.", "video_tower.vision_model."),
        ("model.image_tower.vision_model.", "image_tower.vision_model."),
        ("model.video_tower.", "video_tower.vision_model."),
        ("model.image_tower.", "image_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    )


def eventgpt_shapes(config: Mapping[str, Any], layers: int) -> tuple[Shapes, Shapes]:
    """The names of EventGPT's own weights and those of its tower of so many layers, as CLIP has them."""
    sizes = {name: config[name] for name in config if name not in ("architectures", "model_type")}
    tower = {**CLIP_L_14_336.to_hf(), "num_hidden_layers": layers}
    with torch.device("meta"):
        decoder = shapes_of(LlamaForCausalLM(LlamaConfig(**sizes)))
        clip = shapes_of(CLIPVisionModel(CLIPVisionConfig(**tower)))
    own = {
        **decoder,
        "model.visual_projector.0.weight": (4096, 1024),
        "model.visual_projector.0.bias": (4096,),
        "model.visual_projector.2.weight": (4096, 4096),
        "model.visual_projector.2.bias": (4096,),
        "model.feature_adaptor.weight": (4096, 4096),
        "model.feature_adaptor.bias": (4096,),
    }
    inner = prefixed(clip, ("vision_model.", ""))
    return own, {f"vision_model.{name}": shape for name, shape in inner.items()}


def bytes_of(shapes: Shapes, width: int = 2) -> int:
    """What the tensors take in half precision."""
    return width * sum(prod(shape) for shape in shapes.values())


def in_shards(shapes: Shapes, limit: int) -> list[Shapes]:
    """Neighbours together, as many as fit into a file."""
    shards: list[dict[str, tuple[int, ...]]] = []
    room = 0
    for name, shape in shapes.items():
        size = bytes_of({name: shape})
        if size > room:
            shards.append({})
            room = limit
        shards[-1][name] = shape
        room -= size
    return list(shards)


def write(
    path: Path,
    config: Mapping[str, Any],
    shapes: Shapes,
    save: Callable[[Shapes, Path], None],
    limit: int = SHARD,
    ending: str = "safetensors",
) -> None:
    """A directory with config.json, shards and their index."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    name = {"safetensors": "model", "bin": "pytorch_model"}[ending]
    weight_map = {}
    shards = in_shards(shapes, limit)
    for index, shard in enumerate(shards):
        file = path / f"{name}-{index + 1:05}-of-{len(shards):05}.{ending}"
        save(shard, file)
        weight_map.update(dict.fromkeys(shard, file.name))
    (path / f"{name}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def save_sparse(shapes: Shapes, file: Path) -> None:
    """A safetensors file in half precision whose data takes no space on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


@pytest.fixture
def _no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kibibyte is free."""
    (tmp_path / "meminfo").write_text("MemAvailable: 1 kB\n")
    monkeypatch.setattr("evspec_ros.networks.weights._MEMINFO", tmp_path / "meminfo")


def refusal(load: Callable[..., object], path: Path) -> str:
    """Why a checkpoint is not loaded in half precision."""
    with pytest.raises(CheckpointError) as caught:
        load(path, torch.float16)
    return str(caught.value)


# Every name and shape of 7B


@pytest.fixture(scope="module")
def video_llava_7b() -> Shapes:
    """As the installed transformers names them."""
    return video_llava_shapes(VIDEO_LLAVA)


@pytest.fixture(scope="module")
def eventgpt_7b() -> tuple[Shapes, Shapes]:
    """Its own weights and its tower's."""
    return eventgpt_shapes(EVENTGPT, CLIP_L_14_336.num_hidden_layers)


@pytest.mark.usefixtures("_no_memory")
@pytest.mark.parametrize("layout", [as_transformers_4, dict], ids=["transformers 4", "installed"])
def test_every_key_of_video_llava_7b_is_accounted_for(
    video_llava_7b: Shapes, tmp_path: Path, layout: Callable[[Shapes], Shapes]
) -> None:
    """Each is one parameter of its shape, or of the image tower or the video tower's last layer."""
    shapes = layout(video_llava_7b)
    write(tmp_path / "7b", VIDEO_LLAVA, shapes, save_sparse)
    used = {
        name: shape
        for name, shape in shapes.items()
        if "image_tower." not in name and not re.search(r"video_tower\..*layers\.23\.", name)
    }
    assert len(shapes) - len(used) == len([name for name in shapes if "image_tower." in name]) + 16
    message = refusal(load_video_llava, tmp_path / "7b")
    assert f"take {bytes_of(used) / GB:.2f} GB as float16 and cpu has 0.00 GB free" in message
    assert 14.0 < bytes_of(used) / GB < 14.3  # 7 billion parameters


@pytest.mark.usefixtures("_no_memory")
def test_every_difference_at_7b_is_listed(video_llava_7b: Shapes, tmp_path: Path) -> None:
    """A key too few, one too many and a vocabulary without the added tokens stand in one error."""
    shapes = dict(as_transformers_4(video_llava_7b))
    del shapes["language_model.model.layers.31.mlp.up_proj.weight"]
    shapes["video_tower.vision_model.encoder.layers.0.temporal_attn.q_proj.weight"] = (1024, 1024)
    shapes["language_model.lm_head.weight"] = (32000, 4096)
    write(tmp_path / "7b", VIDEO_LLAVA, shapes, save_sparse)
    message = refusal(load_video_llava, tmp_path / "7b")
    assert "decoder.layers.31.mlp.up_proj.weight is missing" in message
    assert "temporal_attn.q_proj.weight is unexpected" in message
    assert "language_model.lm_head.weight has shape (32000, 4096) instead of (32064, 4096)" in message
    assert message.count(";") == 3


@pytest.mark.usefixtures("_no_memory")
@pytest.mark.parametrize(("place", "rows"), [("inside", 32003), ("beside", 32000), ("beside", 32064)])
def test_every_key_of_eventgpt_7b_is_accounted_for(
    eventgpt_7b: tuple[Shapes, Shapes], tmp_path: Path, place: str, rows: int
) -> None:
    """Decoder, projector, adaptor and tower, the tower in the same files or in CLIP's own directory.

    The vocabulary is LLaMA's, extended by three tokens, or padded to a round number.
    """
    config = {**EVENTGPT, "vocab_size": rows}
    own, tower = dict(eventgpt_7b[0]), eventgpt_7b[1]
    own["lm_head.weight"] = own["model.embed_tokens.weight"] = (rows, 4096)
    if place == "beside":
        clip = {"model_type": "clip", "vision_config": CLIP_L_14_336.to_hf()}
        rest = {
            "text_model.final_layer_norm.bias": (768,),
            "text_projection.weight": (768, 768),
            "visual_projection.weight": (768, 1024),
            "logit_scale": (),
        }
        write(tmp_path / TOWER, clip, {**tower, **rest}, save_sparse)
        write(tmp_path / "7b", config, own, save_sparse)
    else:
        inside = {f"model.visual_tower.visual_tower.{name}": shape for name, shape in tower.items()}
        write(tmp_path / "7b", config, {**own, **inside}, save_sparse)
    needed = bytes_of(own) + bytes_of(tower)
    assert f"take {needed / GB:.2f} GB as float16" in refusal(load_eventgpt, tmp_path / "7b")


# Full width, few layers


def values(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Half-precision tensors, each full of a number that is its name's alone."""
    return {name: torch.full(shape, number(name), dtype=torch.float16) for name, shape in shapes.items()}


def number(name: str) -> float:
    """Far enough from most others', and exact in half precision."""
    return sum((index + 1) * byte for index, byte in enumerate(name.encode())) % 2039 / 64


def save_values(shapes: Shapes, file: Path) -> None:
    """A real file of weights."""
    if file.suffix == ".bin":
        torch.save(values(shapes), file)
    else:
        save_file(values(shapes), file)


def status(entry: str) -> int:
    """A line of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))


def peak_over_before(load: Callable[[], nn.Module]) -> tuple[nn.Module, int]:
    """A loaded model, and by how many bytes the process grew at most meanwhile, mapped files included."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the highest VmRSS, starts again
    before = status("VmRSS")
    model = load()
    return model, status("VmHWM") - before


@pytest.fixture(scope="module", params=["transformers 4", "installed", "eventgpt"])
def few_layers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One decoder layer of 4096, three of CLIP-L, some 600 MB in shards of 200; removed at once."""
    path: Path = tmp_path_factory.mktemp("few") / request.param
    if request.param == "eventgpt":
        config = {**EVENTGPT, "num_hidden_layers": 1, "vocab_size": 323, "mm_visual_tower": "tower"}
        own, tower = eventgpt_shapes(config, 3)
        inside = {f"model.visual_tower.visual_tower.{name}": shape for name, shape in tower.items()}
        write(path, config, {**own, **inside}, save_values, 200 * MIB, "bin")
        (path / "tower").mkdir()
        clip = {**CLIP_L_14_336.to_hf(), "num_hidden_layers": 3}
        (path / "tower" / "config.json").write_text(json.dumps(clip))
    else:
        text = {**VIDEO_LLAVA["text_config"], "num_hidden_layers": 1, "vocab_size": 384}
        vision = {**VIDEO_LLAVA["vision_config"], "num_hidden_layers": 3}
        config = {**VIDEO_LLAVA, "text_config": text, "vision_config": vision}
        shapes = video_llava_shapes(config)
        if request.param == "transformers 4":
            shapes = as_transformers_4(shapes)
        write(path, config, shapes, save_values, 200 * MIB)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_full_width_weights_come_with_one_shard_beside_them(few_layers: Path, dtype: torch.dtype) -> None:
    """Every parameter has its own number, and the process never held more than model and largest shard."""
    load = load_eventgpt if few_layers.name == "eventgpt" else load_video_llava
    shards = [file.stat().st_size for file in few_layers.iterdir() if file.suffix in (".bin", ".safetensors")]
    assert len(shards) >= 3
    model, peak = peak_over_before(lambda: load(few_layers, dtype))
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    assert peak <= weights + max(shards) + 48 * MIB
    index = next(few_layers.glob("*.index.json"))
    numbers = {plain(name): number(name) for name in json.loads(index.read_text())["weight_map"]}
    for name, tensor in model.state_dict().items():
        expected = torch.tensor(numbers[plain(name)], dtype=torch.float16).to(dtype)
        assert tensor.dtype == dtype
        assert (tensor == expected).all(), name


def plain(name: str) -> str:
    """Ours and both published names without what they call their parts."""
    parts = (
        "language_model.",
        "vision_model.",
        "model.",
        "decoder.",
        "multi_modal_",
        "clip.",
        "visual_tower.",
    )
    for part in parts:
        name = name.replace(part, "")
    return name


def test_a_refused_checkpoint_leaves_nothing_behind(
    video_llava_7b: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No mapped file, no memory: after missing keys, a cut shard, or too little memory, all is as before."""
    shapes = dict(as_transformers_4(video_llava_7b))
    path = tmp_path / "7b"
    write(path, VIDEO_LLAVA, shapes, save_sparse)
    (tmp_path / "meminfo").write_text("MemAvailable: 1 kB\n")
    monkeypatch.setattr("evspec_ros.networks.weights._MEMINFO", tmp_path / "meminfo")
    refusal(load_video_llava, path)  # what is imported or built once is there now
    gc.collect()
    before = status("VmRSS")
    assert "GB free" in refusal(load_video_llava, path)
    last = max(path.glob("*.safetensors"))
    size = last.stat().st_size
    with last.open("r+b") as stream:
        stream.truncate(size - 1)
    assert last.name in refusal(load_video_llava, path)
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert status("VmRSS") - before < 32 * MIB
