"""How much memory loading takes: the model in its final size and one layer, whatever the precision."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_models import CLIP
from safetensors.torch import load_file, save_file

from evspec_ros.choices import PRECISIONS
from evspec_ros.networks.checkpoints import save_video_llava
from evspec_ros.networks.llama import LlamaConfig
from evspec_ros.networks.quantisation import weight_bytes
from evspec_ros.networks.video_llava import VideoLlava, VideoLlavaConfig

WIDTH, INNER, LAYERS = 1024, 4096, 10
LAYER = 4 * WIDTH**2 + 3 * WIDTH * INNER  # weights of one, 16.8 million; all are 335 MB in float16
SLACK = 40e6  # what libraries allocate when they are first used, and all that is no layer

# Each precision in a process of its own, which begins as a copy of one that has imported everything.
SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from torchao import quantization
from evspec_ros.networks.checkpoints import load_video_llava
from evspec_ros.networks.quantisation import load_in

def kibibytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

load_in("int8", load_video_llava, Path(sys.argv[2]), torch.device("cpu"))
for precision in sys.argv[3:]:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        before = kibibytes("VmRSS:")
        model = load_in(precision, load_video_llava, Path(sys.argv[1]), torch.device("cpu"))
        print(json.dumps([precision, kibibytes("VmHWM:") - before]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target of ten wide layers in one file of float16."""
    text = LlamaConfig(
        vocab_size=333,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_layers=LAYERS,
        num_heads=8,
        num_kv_heads=8,
        head_dim=128,
        max_positions=64,
    )
    with torch.device("meta"):
        model = VideoLlava(VideoLlavaConfig(text, CLIP, image_token_id=327, video_token_id=328))
    model = model.half().to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    path = tmp_path_factory.mktemp("whole")
    save_video_llava(model, path)
    return path


@pytest.fixture(scope="module")
def shards(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same over three files, in which a layer's tensors do not lie together."""
    path = tmp_path_factory.mktemp("shards")
    tensors = load_file(whole / "model.safetensors")
    names = [f"model-{index + 1:05}-of-00003.safetensors" for index in range(3)]
    placed = {key: names[index % 3] for index, key in enumerate(tensors)}
    for name in names:
        save_file({key: tensors[key] for key in tensors if placed[key] == name}, path / name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    (path / "config.json").write_text((whole / "config.json").read_text())
    return path


def final_bytes(precision: str) -> int:
    """What the layers take once they are loaded."""
    shapes = [(WIDTH, WIDTH)] * 4 + [(INNER, WIDTH)] * 2 + [(WIDTH, INNER)]
    return LAYERS * sum(weight_bytes(*shape, precision, torch.device("cpu")) for shape in shapes)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("layout", ["whole", "shards"])
def test_loading_never_takes_more_than_the_final_size_and_one_layer(
    layout: str, request: pytest.FixtureRequest
) -> None:
    """The highest resident memory of a process, mapped files counted: a layer as it is published, in float16,
    and as it is computed with.
    """
    pytest.importorskip("torchao")
    path = request.getfixturevalue(layout)
    tiny = Path(__file__).parents[2] / "models" / "tiny_video_llava"
    command = [sys.executable, "-c", SCRIPT, str(path), str(tiny), *PRECISIONS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peaks = dict(json.loads(line) for line in done.stdout.splitlines())
    assert list(peaks) == list(PRECISIONS)
    for precision, kibibytes in peaks.items():
        computed = 2 if precision in ("float16", "bfloat16") else 4
        allowed = final_bytes(precision) + LAYER * (2 + computed) + SLACK
        assert kibibytes * 1024 <= allowed, precision
