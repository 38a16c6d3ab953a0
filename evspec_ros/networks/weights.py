"""The files of a checkpoint: JSON objects and weights, read whole or refused, written atomically.

Weights are read from safetensors, or from torch's pickles through its weights-only loader alone, after every
problem with their keys was found: layer by layer, tensor by tensor, straight to the device and to the
precision in which they stay, so that a machine which can hold a model can load it, too. Files are written
beside their place and then renamed into it: a reader never meets half of one.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from evspec_ros.errors import CheckpointError
from evspec_ros.networks.products import lay_together

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ABANDONED_S = 3600.0  # nobody writes a file for so long
_PICKLE = "pytorch_model.bin"
_INDEX = ".index.json"  # behind the name of a file that is split into shards
_OLD_BUFFERS = (
    ".position_ids",
    ".rotary_emb.inv_freq",
)  # saved by early versions of transformers, never read
_OTHER_PICKLES = {".bin", ".pt", ".pth", ".pkl"}
_MEMINFO = Path("/proc/meminfo")
_LAYER = re.compile(r"(.*?\.\d+)\.")  # of a parameter's name: the layer to which it belongs
_PACKED = "decoder.layers."  # where the names of what a Packing is for begin

Device: TypeAlias = torch.device | str
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Part:
    """A directory that holds a model's weights, or some of them.

    `rename` maps a published key to a canonical parameter name; names that start with one of `unread` are
    skipped.
    """

    path: Path
    rename: Callable[[str], str] = str
    unread: tuple[str, ...] = ()


class Packing(Protocol):
    """How the projections of a decoder's layers are kept, where that is in fewer bits than they are computed
    with.
    """

    @property
    def precision(self) -> str:
        """Its name."""

    def bytes(self, linear: nn.Linear) -> int:
        """What a projection takes."""

    def pack(self, linear: nn.Linear) -> None:
        """Pack one that was read."""


@dataclass(frozen=True)
class _StoredTensor:
    """One published tensor: where it lies, under which key, and which parameter it is."""

    file: Path
    key: str
    name: str
    shape: tuple[int, ...]


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


def published_keys(path: Path) -> set[str]:
    """The keys of all weights in a checkpoint directory; raises CheckpointError as `load_weights`."""
    return {key for file in weight_files(path) for key in _shapes(file)}


def load_weights(
    model: Network,
    parts: Sequence[Part],
    dtype: torch.dtype,
    device: Device,
    packing: Packing | None = None,
) -> Network:
    """Fill a model that was built on the meta device and set it to evaluate.

    Beyond the model, the host and the device hold at most one of its layers as it is published and as it is
    computed with. Raises CheckpointError before a tensor is read: with every missing, unexpected, doubled and
    mis-shaped key, or with the memory that the weights need and the device has not; and for a tensor that
    holds NaN or an infinity.
    """
    places = _places(model)
    entries = [entry for part in parts for entry in _entries(part)]
    _require_keys(parts[0].path, entries, model, places)
    precision = str(dtype).removeprefix("torch.") if packing is None else packing.precision
    _require_memory(parts[0].path, _bytes(model, dtype, packing), precision, device)
    for module in model.modules():  # in no checkpoint, so never on the meta device
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    for (file, _), grouped in groupby(entries, key=_read_together):
        group = list(grouped)
        mapped = _mapped(file, [entry.key for entry in group])
        for entry in group:  # copied even where nothing changes, so that no model hangs on its files
            names = places[entry.name]
            owner = model.get_submodule(names[0].rpartition(".")[0])
            value = mapped.pop(entry.key).to(device)
            if packing is None and _laid_out(model, names[0], dtype, device):
                value = model.get_parameter(names[0]).data.copy_(value)
            else:
                value = value.to(dtype, copy=True)
                _put(model, names, value)
            _require_finite(entry, value)
            if packing is not None and entry.name.startswith(_PACKED) and isinstance(owner, nn.Linear):
                packing.pack(owner)
    return model.eval()


def _places(model: nn.Module) -> dict[str, list[str]]:
    """By canonical name, all names of a model's parameters; of tied ones those of the others as well."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {canonical(name): same for same in names.values() for name in same}


def _read_together(entry: _StoredTensor) -> tuple[Path, str]:
    """What entries that are mapped at once have in common: what was read of a file stays in memory until all
    of them are copied. Of a pickle, which has to be gone through each time, that is a layer.
    """
    layer = _LAYER.match(entry.name) if entry.file.suffix == ".bin" else None
    return entry.file, layer[1] if layer else entry.name


def _laid_out(model: nn.Module, name: str, dtype: torch.dtype, device: Device) -> bool:
    """Whether a parameter has its place beside others that are multiplied with it, which the first of them
    makes for all.
    """
    owner, _, _ = name.rpartition(".")
    parent, _, _ = owner.rpartition(".")
    together: Sequence[nn.Linear] = getattr(model.get_submodule(parent), "together", ())
    if not any(linear is model.get_submodule(owner) for linear in together):
        return False
    if together[0].weight.is_meta:
        lay_together(together, dtype, device)
    return True


def _put(model: nn.Module, names: Sequence[str], value: Tensor) -> None:
    """Let a tensor be the parameter of these names."""
    parameter = nn.Parameter(value, requires_grad=model.get_parameter(names[0]).requires_grad)
    for name in names:
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, parameter)


def _bytes(model: nn.Module, dtype: torch.dtype, packing: Packing | None) -> int:
    """What a model takes once it is loaded."""
    whole = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    if packing is None:
        return whole
    packed = [
        module
        for name, module in model.named_modules()
        if name.startswith(_PACKED) and isinstance(module, nn.Linear)
    ]
    return whole + sum(packing.bytes(linear) - linear.weight.numel() * dtype.itemsize for linear in packed)


def free_bytes(device: Device) -> int | None:
    """How many bytes a device can still hold; None where the system does not say."""
    place = torch.device(device)
    # An integrated GPU (Jetson) shares the host's memory, and CUDA takes cached files there for occupied.
    if place.type == "cuda" and not torch.cuda.get_device_properties(place).is_integrated:
        unused = torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)  # torch keeps it
        return int(torch.cuda.mem_get_info(place)[0]) + unused
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024 * kibibytes[0] if kibibytes else None


def weight_files(path: Path) -> list[Path]:
    """The files of a checkpoint's weights: one, or the shards of an index; safetensors before pickles."""
    for name in (WEIGHTS, _PICKLE):
        if (path / name).is_file():
            return [path / name]
        if (path / (name + _INDEX)).is_file():
            return _shards(path / (name + _INDEX))
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in _OTHER_PICKLES)
    if pickles:
        raise CheckpointError(
            f"The checkpoint {path} holds {', '.join(pickles)}, which may be pickles that run code when "
            f"read, but neither {WEIGHTS} nor {_PICKLE}; convert them to safetensors."
        )
    raise CheckpointError(
        f"The checkpoint {path} has neither {WEIGHTS} nor {_PICKLE} nor the {_INDEX} of either; "
        "fetch it again."
    )


def _shards(index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(n, str) for n in shards.values()):
        raise CheckpointError(f"{index} lists no weights; fetch the checkpoint again.")
    files = [index.parent / name for name in sorted(set(shards.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"The checkpoint {index.parent} lacks {', '.join(missing)}, which {index.name} lists; "
            "fetch it again."
        )
    return files


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors; CheckpointError where it is something else or cut off."""
    with _naming_damage(file):
        if file.suffix == ".bin":
            return {key: tuple(tensor.shape) for key, tensor in _mapped_pickle(file).items()}
        with _safetensors(file) as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118


def _mapped(file: Path, keys: Iterable[str]) -> dict[str, Tensor]:
    """A file's tensors, mapped into memory: their bytes are read where they are used, and not before."""
    with _naming_damage(file):
        if file.suffix == ".bin":
            return _mapped_pickle(file)
        with _safetensors(file) as opened:
            return {key: opened.get_tensor(key) for key in keys}


@contextmanager
def _naming_damage(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged or only half written ({error}); fetch or write the checkpoint again."
        ) from error


def _safetensors(file: Path) -> Any:
    """An open safetensors file, for `with`."""
    with file.open("rb") as stream:
        start = stream.read(9)  # of safetensors: the header's length as u64, then the header's brace
    if start[8:] != b"{" and start.startswith((b"\x80", b"PK\x03\x04")):
        raise CheckpointError(
            f"{file} is a pickle, which can run code when read, and not safetensors; convert the checkpoint."
        )
    return safe_open(file, "pt")


def _mapped_pickle(file: Path) -> dict[str, Tensor]:
    if torch.__version__ < "2.6":  # compared as versions, not as text
        raise CheckpointError(
            f"{file} is a pickle, and torch {torch.__version__} can be made to run code by one "
            "(CVE-2025-32434); install torch 2.6 or convert the checkpoint to safetensors."
        )
    try:
        tensors = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a broken pickle fails wherever its first wrong instruction leads
        raise CheckpointError(
            f"{file} is damaged, or a pickle of more than tensors, which can run code when read; "
            "fetch the checkpoint again or convert it to safetensors."
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items()
    ):
        raise CheckpointError(f"{file} holds no tensors by name; use a checkpoint of the model's weights.")
    return tensors


def _entries(part: Part) -> Iterator[_StoredTensor]:
    """What of a directory belongs to the model, in the order of its files."""
    for file in weight_files(part.path):
        for key, shape in _shapes(file).items():
            name = part.rename(key)
            if not name.startswith(part.unread) and not name.endswith(_OLD_BUFFERS):
                yield _StoredTensor(file, key, name, shape)


def _require_keys(
    path: Path, entries: Sequence[_StoredTensor], model: nn.Module, places: Mapping[str, list[str]]
) -> None:
    """Raise CheckpointError that lists everything in which the entries differ from the model's shapes."""
    problems = []
    for entry in entries:
        if entry.name not in places:
            problems.append(f"{entry.key} is unexpected")
            continue
        shape = tuple(model.get_parameter(places[entry.name][0]).shape)
        if entry.shape != shape:
            problems.append(f"{entry.key} has shape {entry.shape} instead of {shape}")
    found = Counter(entry.name for entry in entries)
    problems += [f"{name} is there {count} times" for name, count in found.items() if count > 1]
    problems += [
        f"{name} is missing"
        for name, same in places.items()
        if not any(canonical(one) in found for one in same)
    ]
    if problems:
        raise CheckpointError(
            f"The weights in {path} do not fit its {CONFIG}: {'; '.join(problems)}; "
            "use the files of one checkpoint."
        )


def _require_memory(path: Path, needed: int, precision: str, device: Device) -> None:
    free = free_bytes(device)
    if free is not None and needed > free:
        raise CheckpointError(
            f"The weights in {path} take {needed / 1e9:.2f} GB as {precision} and "
            f"{device} has {free / 1e9:.2f} GB free; choose a smaller precision or end what takes the memory."
        )


def _require_finite(entry: _StoredTensor, value: Tensor) -> None:
    """Raise CheckpointError for a tensor with NaN or an infinity; its two extremes tell of either."""
    if value.numel() and not bool(torch.stack(torch.aminmax(value)).isfinite().all()):
        raise CheckpointError(
            f"{entry.key} in {entry.file} holds values that are not finite (NaN or infinite) as "
            f"{str(value.dtype).removeprefix('torch.')}; fetch the checkpoint again, or choose float32 or "
            "bfloat16 where its values are too large for float16."
        )


def saved_state(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Parameters under their canonical names, as `dtype` on the CPU; tied ones under their first name."""
    return {
        canonical(name): parameter.detach().to("cpu", dtype).contiguous()
        for name, parameter in model.named_parameters()
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


def _remove_abandoned(file: Path) -> None:
    """Remove the temporary files of those who were killed while they wrote `file`."""
    for left in file.parent.glob(f".{file.name}.*"):
        with suppress(FileNotFoundError):  # another one removed it
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                left.unlink()


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A temporary file beside `file` that takes its place if the block succeeds and is removed if not."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(file)
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
