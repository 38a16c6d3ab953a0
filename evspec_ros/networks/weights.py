"""The files of a checkpoint: JSON objects and safetensors, read whole or refused, written atomically.

Weights are read from safetensors alone, tensor by tensor onto the device, after every problem with their keys
was found. Files are written beside their place and then renamed into it: a reader never meets half of one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from evspec_ros.errors import CheckpointError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_OLD_BUFFERS = (
    ".position_ids",
    ".rotary_emb.inv_freq",
)  # saved by early versions of transformers, never read
_PICKLES = {".bin", ".pt", ".pth", ".pkl"}

Device: TypeAlias = torch.device | str
Network = TypeVar("Network", bound=nn.Module)


def canonical(name: str) -> str:
    """A parameter's name whatever the version of transformers: version 4 nests CLIP in `vision_model`."""
    return name.replace(".vision_model.", ".")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint; CheckpointError where it is missing or no object."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"The checkpoint {file.parent} has no {file.name}; point to the directory that holds the "
            "checkpoint's files, or fetch it again if it is incomplete."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read as JSON ({error}); fetch the checkpoint again."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds no JSON object; fetch the checkpoint again.")
    return value


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one, or the shards of its index."""
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / INDEX).is_file():
        shards = read_json(path / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(f"{path / INDEX} lists no weights; fetch the checkpoint again.")
        files = [path / str(name) for name in sorted(set(shards.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"The checkpoint {path} lacks {', '.join(missing)}, which {INDEX} lists; fetch it again."
            )
        return files
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"The checkpoint {path} holds its weights as pickles ({', '.join(pickles)}), which can run code "
            "when read; convert them to safetensors."
        )
    raise CheckpointError(f"The checkpoint {path} has no {WEIGHTS} and no {INDEX}; fetch it again.")


@contextmanager
def _opened(file: Path, device: Device) -> Iterator[Any]:
    """An open safetensors file; CheckpointError where it is something else or cut off."""
    with file.open("rb") as stream:
        start = stream.read(9)  # of safetensors: the header's length as u64, then the header's brace
    if start[8:] != b"{" and start.startswith((b"\x80", b"PK\x03\x04")):
        raise CheckpointError(
            f"{file} is a pickle, which can run code when read, and not safetensors; convert the checkpoint."
        )
    try:
        with safe_open(file, "pt", device=str(device)) as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged or only half written ({error}); fetch or write the checkpoint again."
        ) from error


def load_weights(
    model: Network,
    path: Path,
    rename: Callable[[str], str],
    unread: tuple[str, ...],
    dtype: torch.dtype,
    device: Device,
) -> Network:
    """Fill a model that was built on the meta device and set it to evaluate.

    `rename` maps a published key to a canonical parameter name; names that start with one of `unread` are
    skipped. Raises CheckpointError, with every missing, unexpected and mis-shaped key, before a tensor is
    read.
    """
    parameters = {canonical(name): name for name in model.state_dict()}
    shapes = {canonical(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    keys: dict[Path, dict[str, str]] = {}  # of each file: published key -> canonical name
    problems: list[str] = []
    for file in _weight_files(path):
        with _opened(file, "cpu") as opened:
            names = {key: rename(key) for key in opened.keys()}  # noqa: SIM118 - an open file is no mapping
            keys[file] = {
                key: name
                for key, name in names.items()
                if not name.startswith(unread) and not name.endswith(_OLD_BUFFERS)
            }
            for key, name in keys[file].items():
                shape = tuple(opened.get_slice(key).get_shape())
                if name not in shapes:
                    problems.append(f"{key} is unexpected")
                elif shape != shapes[name]:
                    problems.append(f"{key} has shape {shape} instead of {shapes[name]}")
    found = {name for names in keys.values() for name in names.values()}
    problems += [f"{name} is missing" for name in shapes if name not in found]
    if problems:
        raise CheckpointError(
            f"The weights in {path} do not fit its {CONFIG}: {'; '.join(problems)}; "
            "use the files of one checkpoint."
        )
    state: dict[str, Tensor] = {}
    for file, names in keys.items():
        with _opened(file, device) as opened:
            for key, name in names.items():
                state[parameters[name]] = opened.get_tensor(key).to(dtype)
    model.load_state_dict(state, assign=True)
    return model.to(device).eval()


def saved_state(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Parameters under their canonical names, as `dtype` on the CPU."""
    return {
        canonical(name): tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }


def write_directory(path: Path, tensors: dict[str, Tensor], files: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the weights, then the JSON `files` in their order; the last one makes the checkpoint complete.

    Raises CheckpointError where a file cannot be written; it is then as it was.
    """
    with _replacing(path / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    for name, content in files.items():
        write_json(path / name, content)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON object to its place in one step; CheckpointError where it cannot be written."""
    with _replacing(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A temporary file beside `file` that takes its place if the block succeeds and is removed if not."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} cannot be written ({error}); free space or choose another directory."
        ) from error
