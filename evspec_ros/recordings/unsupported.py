"""Formats that are known and not read: what is told of them, and what to do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import h5py

ECF_FILTER = 0x8ECF  # HDF5's number of Metavision's codec
_COMPRESSED = "a packed file, which is not supported as it is; unpack it and name the recording in it"
_VIDEO = "a video, which holds no events and is not supported; put its frames into a bag beside the events"
_AEDAT = (
    "in iniVation's AEDAT 1 to 3, of which only AEDAT 4 is supported; convert it with DV or dv-processing"
)
_ES = "an Event Stream (.es), which is not supported; convert it to .csv with the package faery"
_MATLAB = "a MATLAB file, which is not supported; write t, x, y and p as .npy or .csv"
_FORMATS: tuple[tuple[bytes, str], ...] = (  # patterns of a file's first bytes
    (rb"#!AER-DAT[123]", _AEDAT),
    (rb"Event Stream", _ES),
    (rb"MATLAB 5\.0 MAT-file", _MATLAB),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf\x27\x1c|Rar!|.{257}ustar", _COMPRESSED),
    (rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI |\x00\x00\x01\xba", _VIDEO),
)
# HDF5 layouts of event recordings by a dataset that tells them; the first that is there counts.
_LAYOUTS: tuple[tuple[str, str], ...] = (
    ("CD/events", "Metavision's own layout"),
    ("prophesee/left/t", "M3ED's layout"),
    ("prophesee/right/t", "M3ED's layout"),
    ("davis/left/events", "MVSEC's layout"),
    ("dvs/data", "DDD17's layout"),
    ("events/ts", "the layout of E-VID and rpg_e2vid's tools"),
    ("events/xs", "the layout of E-VID and rpg_e2vid's tools"),
    ("data", "RVT's layout of event representations"),
    ("events/t", "RVT's layout (events without ms_to_idx)"),
    ("events", "v2e's layout"),
)
_TIPS = "write the events as a DSEC file (events/t, x, y, p and ms_to_idx), as .npy or as .csv"
_METAVISION_TIP = "convert it to .raw or .dat with metavision_file_to_dat"


def why_unsupported(start: bytes) -> str:
    """What a file that begins so is, if it is known and not read: "a video, which ..."; "" otherwise."""
    return next((told for pattern, told in _FORMATS if re.match(pattern, start, re.DOTALL)), "")


def unsupported_layout(file: h5py.File) -> str:
    """What an HDF5 file is that is not DSEC's: its layout, where it is known, and what to do."""
    import h5py

    for name, layout in _LAYOUTS:
        dataset = file.get(name)
        if isinstance(dataset, h5py.Dataset):
            codec = " compressed with Metavision's ECF codec" if _is_ecf(dataset) else ""
            tip = _METAVISION_TIP if name.startswith("CD/") else _TIPS
            return f"HDF5 in {layout} ({name}{codec}), which is not supported, only DSEC's is; {tip}"
    found: list[str] = []
    file.visititems(lambda name, one: found.append(name) if isinstance(one, h5py.Dataset) else None)
    held = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    return f"HDF5 in a layout that is not supported, only DSEC's is; it holds {held or 'nothing'}; {_TIPS}"


def _is_ecf(dataset: h5py.Dataset) -> bool:
    filters = dataset.id.get_create_plist()
    return any(filters.get_filter(k)[0] == ECF_FILTER for k in range(filters.get_nfilters()))
