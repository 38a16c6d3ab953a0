"""Tiny random models and a throwaway tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tokenizers
import torch
from random_models import CLIP, lively, llama_config, llama_style_tokenizer

from evspec_ros.networks.eventgpt import EventGpt, EventGptConfig
from evspec_ros.networks.video_llava import VideoLlava, VideoLlavaConfig


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> tokenizers.Tokenizer:
    """A tokenizer of about 330 tokens."""
    return llama_style_tokenizer()


@pytest.fixture(scope="session")
def video_llava() -> VideoLlava:
    """A random Video-LLaVA; its video token is 328."""
    model = VideoLlava(VideoLlavaConfig(llama_config(), CLIP, image_token_id=327, video_token_id=328)).eval()
    lively(model)
    return model


@pytest.fixture(scope="session")
def eventgpt() -> EventGpt:
    """A random EventGPT."""
    model = EventGpt(EventGptConfig(llama_config(), CLIP)).eval()
    lively(model)
    return model
