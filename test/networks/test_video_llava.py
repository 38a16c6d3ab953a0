"""Our Video-LLaVA against transformers' on the same checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published_configs import VIDEO_LLAVA
from random_models import CLIP
from torch import Tensor
from transformers import VideoLlavaForConditionalGeneration

from evspec_ros.errors import CheckpointError, GenerationError
from evspec_ros.networks.checkpoints import save_video_llava
from evspec_ros.networks.llama import KVCache
from evspec_ros.networks.video_llava import VideoLlava, VideoLlavaConfig

TOLERANCE = 1e-4
FRAMES = 8  # some versions of transformers take any other number for images
BEFORE, AFTER = [1, 270, 271], [13, 280, 290, 300]
VIDEO = 328


@pytest.fixture(scope="module")
def theirs(
    video_llava: VideoLlava, tmp_path_factory: pytest.TempPathFactory
) -> VideoLlavaForConditionalGeneration:
    """Transformers' model, loaded from what we save."""
    path: Path = tmp_path_factory.mktemp("target")
    save_video_llava(video_llava, path, torch.float32)
    return VideoLlavaForConditionalGeneration.from_pretrained(path, torch_dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Random frames [F, 3, H, W]."""
    return torch.randn(
        FRAMES, 3, CLIP.image_size, CLIP.image_size, generator=torch.Generator().manual_seed(5)
    )


@pytest.fixture(autouse=True)
def _inference() -> object:
    with torch.inference_mode():
        yield


def prompt(video_llava: VideoLlava, pixels: Tensor) -> Tensor:
    """The embedded prompt [P, D]."""
    video = video_llava.encode_frames(pixels)
    return video_llava.embed_prompt(torch.tensor([*BEFORE, VIDEO, *AFTER]), video)


def expanded_ids() -> Tensor:
    """The prompt as transformers wants it: one video token for every embedding."""
    return torch.tensor([[*BEFORE, *[VIDEO] * (FRAMES * CLIP.tokens), *AFTER]])


def test_frames_equal_transformers_video_features(
    video_llava: VideoLlava, theirs: VideoLlavaForConditionalGeneration, pixels: Tensor
) -> None:
    """Tower and projector give transformers' embeddings, class tokens kept."""
    parts = getattr(theirs, "model", theirs)  # transformers 4 before 4.52 has no inner model
    features = parts.video_tower(pixels, output_hidden_states=True).hidden_states[-2]
    expected = parts.multi_modal_projector(features).flatten(0, 1)
    assert (video_llava.encode_frames(pixels) - expected).abs().max() <= TOLERANCE


def test_a_frame_does_not_depend_on_the_others(video_llava: VideoLlava, pixels: Tensor) -> None:
    """Frames encoded one by one give what they give together, so features can be cached per frame."""
    alone = torch.cat([video_llava.encode_frames(frame[None]) for frame in pixels])
    assert (alone - video_llava.encode_frames(pixels)).abs().max() <= 1e-5


def test_logits_equal_transformers(
    video_llava: VideoLlava, theirs: VideoLlavaForConditionalGeneration, pixels: Tensor
) -> None:
    """The whole model, frames and text, gives transformers' logits at every position."""
    expected = theirs(input_ids=expanded_ids(), pixel_values_videos=pixels[None]).logits[0]
    found = video_llava.lm_head(video_llava.decoder(prompt(video_llava, pixels)[None]).hidden)[0]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE


def test_greedy_text_equals_transformers(
    video_llava: VideoLlava, theirs: VideoLlavaForConditionalGeneration, pixels: Tensor
) -> None:
    """Prefill and one-token steps on the static cache pick the tokens of transformers' generate."""
    ids, count = expanded_ids(), 24
    expected = theirs.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values_videos=pixels[None],
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
    )[0, ids.shape[1] :].tolist()
    inputs = prompt(video_llava, pixels)[None]
    cache = KVCache(video_llava.config.text, inputs.shape[1] + count)
    tokens: list[int] = []
    for _ in range(count):
        hidden = video_llava.decoder(inputs, cache).hidden[:, -1]
        tokens.append(int(video_llava.lm_head(hidden).argmax()))
        inputs = video_llava.decoder.embed(torch.tensor([[tokens[-1]]]))
    assert tokens == expected
    assert len(set(tokens)) > 3  # not one token for ever


@pytest.mark.parametrize("videos", [0, 2])
def test_a_prompt_needs_exactly_one_video(video_llava: VideoLlava, videos: int) -> None:
    """A prompt without a place for the video, or with two, is refused."""
    ids = torch.tensor([*BEFORE, *[VIDEO] * videos])
    with pytest.raises(GenerationError, match=f"{videos} video tokens"):
        video_llava.embed_prompt(ids, torch.zeros(5, 64))


def test_a_config_survives_its_published_form(video_llava: VideoLlava) -> None:
    """Writing and reading config.json gives the same config."""
    assert VideoLlavaConfig.from_hf(video_llava.config.to_hf()) == video_llava.config


def test_the_published_config_of_7b_is_understood() -> None:
    """LanguageBind/Video-LLaVA-7B-hf leaves most entries out; they mean Vicuna-7B and CLIP-L/14."""
    config = VideoLlavaConfig.from_hf(VIDEO_LLAVA)
    assert (config.text.hidden_size, config.text.num_layers, config.text.head_dim) == (4096, 32, 128)
    assert (config.vision.tokens, config.vision_layers, config.video_token_id) == (257, 23, 32001)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"text_config": None}, "no section text_config"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act='relu'"),
        ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer"),
    ],
)
def test_another_architecture_is_refused(
    video_llava: VideoLlava, entry: dict[str, object], message: str
) -> None:
    """What is not implemented, or missing, is named."""
    with pytest.raises(CheckpointError, match=message):
        VideoLlavaConfig.from_hf({**video_llava.config.to_hf(), **entry})
