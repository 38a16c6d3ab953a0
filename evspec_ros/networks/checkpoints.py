"""Checkpoint directories in the layouts that their makers publish.

Video-LLaVA: `LanguageBind/Video-LLaVA-7B-hf`, which transformers loads as well. EventGPT: model type
`EventChat_llama`, its CLIP tower described by the directory that `mm_visual_tower` names, which holds the
tower's weights as well where the checkpoint's own files do not. Draft heads: `config.json` and
`model.safetensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evspec_ros.errors import CheckpointError
from evspec_ros.frames.clip import CLIP_MEAN, CLIP_STD
from evspec_ros.networks.adapters import Adapter, AdapterConfig, FeatureConfig, FeatureHead
from evspec_ros.networks.block_head import BlockConfig, BlockHead
from evspec_ros.networks.clip import CLIP_L_14_336, ClipConfig
from evspec_ros.networks.config_entries import whole_numbers
from evspec_ros.networks.draft_head import DraftHead, Eagle3Config, Eagle3Head, EagleConfig, EagleHead
from evspec_ros.networks.eventgpt import EventGpt, EventGptConfig
from evspec_ros.networks.fit import HeadConfig
from evspec_ros.networks.llama import LlamaConfig
from evspec_ros.networks.video_llava import VideoLlava, VideoLlavaConfig
from evspec_ros.networks.weights import (
    CONFIG,
    Device,
    Packing,
    Part,
    canonical,
    load_weights,
    published_keys,
    read_json,
    saved_state,
    write_directory,
)

PREPROCESSOR = "preprocessor_config.json"
GENERATION = "generation_config.json"
VISUAL_TOWER = "visual_tower"  # where a saved EventGPT describes its CLIP tower


class _HeadKind(NamedTuple):
    config: Any
    head: Any


DRAFT_HEADS = {  # by the kind that a head's config.json names
    "block": _HeadKind(BlockConfig, BlockHead),
    "eagle": _HeadKind(EagleConfig, EagleHead),
    "eagle3": _HeadKind(Eagle3Config, Eagle3Head),
    "eventgpt_adapter": _HeadKind(AdapterConfig, Adapter),
    "feature": _HeadKind(FeatureConfig, FeatureHead),
}
Head = BlockHead | DraftHead | Adapter | FeatureHead
_TOWER_KEYS = "model.visual_tower.visual_tower."  # of EventGPT's tower in its own files
# What CLIP has beside its image tower.
_UNREAD_CLIP = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")


def load_video_llava(
    path: Path,
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
    packing: Packing | None = None,
) -> VideoLlava:
    """The target from a Hugging Face Video-LLaVA directory (keys of transformers 4 or 5), ready to evaluate.

    Left out: the image tower and those layers of the video tower whose output nobody reads. packing: how the
    decoder's projections are kept. Raises CheckpointError where the directory is missing, incomplete, damaged
    or of another architecture.
    """
    sizes = read_video_llava_config(path)
    part = Part(path, _video_llava_key, _unread_prefixes(sizes))
    with torch.device("meta"):
        model = VideoLlava(replace(sizes, text=_as_published(sizes.text, part)))
    return load_weights(model, [part], dtype, device, packing)


def read_video_llava_config(path: Path) -> VideoLlavaConfig:
    """The sizes of the target in a directory, no weight read; raises CheckpointError as above."""
    config = _read_config(path)
    if "mm_video_tower" in config:
        raise CheckpointError(
            f"{path} is in the layout of Video-LLaVA's authors, whose video tower attends over time; "
            "use the version published for transformers (LanguageBind/Video-LLaVA-7B-hf)."
        )
    _require_architecture(path, config, "video_llava", "Video-LLaVA")
    sizes = VideoLlavaConfig.from_hf(config)
    return replace(sizes, text=_generating(path, sizes.text))


def save_video_llava(model: VideoLlava, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a directory that `VideoLlavaForConditionalGeneration.from_pretrained` loads with no key missing.

    The format's parts that the model does not have are filled in: the image tower with the video tower's
    weights, the video tower's unread layers with zeros (a residual layer of zeros changes nothing).
    """
    config = model.config
    tensors = {}
    for name, tensor in saved_state(model, dtype).items():
        if name.startswith("video_tower."):
            for inner, value in _whole_tower(name.removeprefix("video_tower.clip."), tensor, config).items():
                tensors[f"video_tower.vision_model.{inner}"] = value
                tensors[f"image_tower.vision_model.{inner}"] = value.clone()
        elif name.startswith("decoder."):
            tensors[f"language_model.model.{name.removeprefix('decoder.')}"] = tensor
        elif name.startswith("lm_head."):
            tensors[f"language_model.{name}"] = tensor
        else:
            tensors[name.replace("projector.", "multi_modal_projector.", 1)] = tensor
    write_directory(
        path,
        tensors,
        {
            GENERATION: _generation_config(config.text),
            PREPROCESSOR: _preprocessor_config("VideoLlavaImageProcessor", config.vision),
            CONFIG: {**config.to_hf(), "torch_dtype": _dtype_name(dtype)},
        },
    )


def load_eventgpt(
    path: Path,
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
    packing: Packing | None = None,
) -> EventGpt:
    """The event model from an EventGPT directory, ready to evaluate; as above.

    Its CLIP tower's weights may lie in its own files or in the tower's directory, inside or beside it.
    """
    sizes = read_eventgpt_config(path)
    parts = [Part(path, _eventgpt_key)]
    with torch.device("meta"):
        model = EventGpt(replace(sizes, text=_as_published(sizes.text, parts[0])))
    if not any(key.startswith(_TOWER_KEYS) for key in published_keys(path)):
        config = _read_config(path)
        tower = _tower_directory(path, config)
        if tower is None:
            raise CheckpointError(
                f"The weights in {path} lack the visual tower, and {config['mm_visual_tower']!r} lies "
                "neither inside nor beside the checkpoint; put the tower's directory there."
            )
        parts.append(Part(tower, _clip_key, _UNREAD_CLIP))
    return load_weights(model, parts, dtype, device, packing)


def read_eventgpt_config(path: Path) -> EventGptConfig:
    """The sizes of the event model in a directory, no weight read; raises CheckpointError as above."""
    config = _read_config(path)
    _require_architecture(path, config, "EventChat_llama", "EventGPT")
    text = _generating(path, LlamaConfig.from_hf(config))
    return EventGptConfig(text, _tower_config(_tower_directory(path, config)))


def save_eventgpt(model: EventGpt, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the event model in EventGPT's published layout, its tower's config in a directory inside."""
    tensors = {}
    for name, tensor in saved_state(model, dtype).items():
        if name.startswith("visual_tower."):
            inner = name.removeprefix("visual_tower.clip.")
            tensors[f"model.visual_tower.visual_tower.vision_model.{inner}"] = tensor
        elif name.startswith("lm_head."):
            tensors[name] = tensor
        else:
            tensors[f"model.{name.removeprefix('decoder.')}"] = tensor
    preprocessor = _preprocessor_config("CLIPImageProcessor", model.config.vision)
    config = {
        **model.config.text.to_hf(),
        "architectures": ["EventChatModel"],
        "model_type": "EventChat_llama",
        "mm_visual_tower": VISUAL_TOWER,
        "event_feature_adaptor": True,
        "torch_dtype": _dtype_name(dtype),
    }
    write_directory(
        path,
        tensors,
        {
            GENERATION: _generation_config(model.config.text),
            PREPROCESSOR: preprocessor,
            f"{VISUAL_TOWER}/{PREPROCESSOR}": preprocessor,
            f"{VISUAL_TOWER}/{CONFIG}": model.config.vision.to_hf(),
            CONFIG: config,
        },
    )


def load_draft_head(path: Path, dtype: torch.dtype = torch.float32, device: Device = "cpu") -> Head:
    """A draft head from a directory that `save_draft_head` wrote; raises CheckpointError as above."""
    config = read_draft_head_config(path)
    with torch.device("meta"):
        model: Head = DRAFT_HEADS[config.kind].head(config)
    return load_weights(model, [Part(path)], dtype, device)


def read_draft_head_config(path: Path) -> HeadConfig:
    """The sizes of the draft head in a directory, no weight read; raises CheckpointError as above."""
    config = _read_config(path)
    kind = config.get("kind")
    if kind not in DRAFT_HEADS:
        raise CheckpointError(
            f"{path / CONFIG} names the kind {kind!r}; a draft head's is one of {', '.join(DRAFT_HEADS)}."
        )
    found: HeadConfig = DRAFT_HEADS[kind].config.from_dict(config)
    return found


def save_draft_head(model: Head, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a draft head as `config.json` and `model.safetensors`."""
    write_directory(path, saved_state(model, dtype), {CONFIG: model.config.to_dict()})


def load_preprocessor_config(path: Path) -> dict[str, Any]:
    """`preprocessor_config.json` of a checkpoint: what `frames.clip.ClipPreprocessor.from_config` reads.

    That of its visual tower where an EventGPT checkpoint has none of its own. Raises CheckpointError where
    there is none at all.
    """
    if not (path / PREPROCESSOR).is_file():
        config = _read_config(path)
        if "mm_visual_tower" in config:
            tower = _tower_directory(path, config)
            if tower is None:
                return _preprocessor_config("CLIPImageProcessor", CLIP_L_14_336)
            return read_json(tower / PREPROCESSOR)
    return read_json(path / PREPROCESSOR)


def _video_llava_key(key: str) -> str:
    """The parameter that a published key belongs to, whether its tensor is used or not."""
    key = key.removeprefix("model.")
    for published, ours in (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "decoder."),
        ("language_model.", "decoder."),
        ("video_tower.", "video_tower.clip."),
        ("multi_modal_projector.", "projector."),
    ):
        if key.startswith(published):
            return canonical(ours + key.removeprefix(published))
    return key


def _eventgpt_key(key: str) -> str:
    """The parameter that a published EventGPT key belongs to."""
    for published, ours in (
        (_TOWER_KEYS, "visual_tower.clip."),
        ("model.visual_projector.", "visual_projector."),
        ("model.feature_adaptor.", "feature_adaptor."),
        ("model.", "decoder."),
    ):
        if key.startswith(published):
            return canonical(ours + key.removeprefix(published))
    return key


def _clip_key(key: str) -> str:
    """The parameter of EventGPT that a key of CLIP belongs to; the keys of `_UNREAD_CLIP` stay."""
    if key.startswith(_UNREAD_CLIP):
        return key
    return f"visual_tower.clip.{key.removeprefix('vision_model.')}"


def _whole_tower(inner: str, tensor: Tensor, config: VideoLlavaConfig) -> dict[str, Tensor]:
    """One tensor of the tower, and with one of the first layer its zero counterparts in unread layers."""
    first = "encoder.layers.0."
    unread = range(config.vision_layers, config.vision.num_hidden_layers) if inner.startswith(first) else ()
    zeros = {inner.replace(first, f"encoder.layers.{n}."): torch.zeros_like(tensor) for n in unread}
    return {inner: tensor, **zeros}


def _unread_prefixes(config: VideoLlavaConfig) -> tuple[str, ...]:
    """What is published and `VideoLlava` leaves out: the image tower, the video tower's last layers."""
    unread = range(config.vision_layers, config.vision.num_hidden_layers)
    return ("image_tower.", *(f"video_tower.clip.encoder.layers.{index}." for index in unread))


def _generating(path: Path, text: LlamaConfig) -> LlamaConfig:
    """With the end tokens of generation_config.json, none perhaps, where that file is: transformers'
    generate then looks nowhere else.
    """
    if not (path / GENERATION).is_file():
        return text
    return replace(text, end_tokens=whole_numbers(read_json(path / GENERATION), "eos_token_id", ()))


def _as_published(text: LlamaConfig, part: Part) -> LlamaConfig:
    """Not tied where embeddings and output head are both in the files: transformers then reads both."""
    names = {part.rename(key) for key in published_keys(part.path)} if text.tied else set()
    both = {"decoder.embed_tokens.weight", "lm_head.weight"} <= names
    return replace(text, tied=False) if both else text


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise CheckpointError(f"There is no checkpoint directory {path}; check the path.")
    return read_json(path / CONFIG)


def _require_architecture(path: Path, config: Mapping[str, Any], model_type: str, name: str) -> None:
    if config.get("model_type") != model_type:
        raise CheckpointError(
            f"{path} is a checkpoint of model type {config.get('model_type')!r}, not a {name} "
            f"({model_type!r}); point to a {name} checkpoint."
        )


def _tower_directory(path: Path, config: Mapping[str, Any]) -> Path | None:
    """The directory that `mm_visual_tower` names, inside or beside the checkpoint.

    None for CLIP-L/14-336 that is not there; raises CheckpointError for another tower that is not.
    """
    tower = Path(str(config.get("mm_visual_tower")))
    for directory in (path / tower, path / tower.name, path.parent / tower.name):
        if (directory / CONFIG).is_file():
            return directory
    if tower.name == "clip-vit-large-patch14-336":
        return None
    raise CheckpointError(
        f"{path / CONFIG} names the visual tower {str(tower)!r}, which lies neither inside nor beside the "
        "checkpoint; put the tower's directory there."
    )


def _tower_config(directory: Path | None) -> ClipConfig:
    """The sizes of the tower in a directory of CLIP's or its image tower's; without one CLIP-L/14-336's."""
    if directory is None:
        return CLIP_L_14_336
    found = read_json(directory / CONFIG)
    return ClipConfig.from_hf(found.get("vision_config", found))


def _generation_config(config: LlamaConfig) -> dict[str, Any]:
    return {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}


def _preprocessor_config(processor: str, config: ClipConfig) -> dict[str, Any]:
    """CLIP's recipe for a tower's image size."""
    return {
        "image_processor_type": processor,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": config.image_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": config.image_size, "width": config.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
