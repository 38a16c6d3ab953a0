"""The sizes of the tiny checkpoints that the project trains: the published architectures, scaled down."""

from __future__ import annotations

from evspec_ros.networks.clip import ClipConfig
from evspec_ros.networks.eventgpt import EventGptConfig
from evspec_ros.networks.llama import LlamaConfig
from evspec_ros.networks.video_llava import VideoLlavaConfig

TINY_CLIP = ClipConfig(
    hidden_size=192,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    image_size=64,
    patch_size=16,
    projection_dim=128,
)


def tiny_video_llava(vocab_size: int, image_token_id: int, video_token_id: int) -> VideoLlavaConfig:
    """About 9.8 million parameters: 10 layers of 256; one frame is 17 video tokens."""
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=688,
        num_layers=10,
        num_heads=4,
        num_kv_heads=4,
        head_dim=64,
        max_positions=1024,
        rms_norm_eps=1e-5,
    )
    return VideoLlavaConfig(text, TINY_CLIP, image_token_id, video_token_id)


def tiny_eventgpt(vocab_size: int) -> EventGptConfig:
    """About 4 million parameters: 4 layers of 192; the events are 22 tokens."""
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_layers=4,
        num_heads=3,
        num_kv_heads=3,
        head_dim=64,
        max_positions=1024,
        rms_norm_eps=1e-5,
    )
    return EventGptConfig(text, TINY_CLIP)
