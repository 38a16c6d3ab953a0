"""`engines/tensorrt.py` against the typed API of TensorRT 10.3, 10.13 and 11.4, without any of them.

Only the API of TensorRT is typed in this check; the rest of the module is checked with the whole package.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

VERSIONS = ("10.3.0", "10.13.3.9", "11.4.0.106")
MODULE = Path(__file__).parents[2] / "evspec_ros" / "engines" / "tensorrt.py"
TOOL = Path(__file__).parents[3] / "shared" / "tools" / "tensorrt-stubs"
SETTINGS = """
[mypy]
strict = True
follow_imports = skip
ignore_missing_imports = True
warn_unused_ignores = False
disallow_subclassing_any = False
[mypy-tensorrt.*]
follow_imports = silent
ignore_errors = True
"""
MISUSES = {
    "a flag that TensorRT 11 removed": ("BuilderFlag.REFIT)", "BuilderFlag.FP16)", {"11.4.0.106"}),
    "a misspelt method": ("execute_async_v3", "execute_async_v4", {*VERSIONS}),
    "an argument too many": (".create_execution_context()", ".create_execution_context(1, 2)", {*VERSIONS}),
    "a removed creation flag": ("Flag.STRONGLY_TYPED", "Flag.EXPLICIT_BATCH", {"11.4.0.106"}),
}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stubs of every version, in a folder each."""
    if not TOOL.is_file():
        pytest.skip("needs ../shared/tools/tensorrt-stubs, which is not beside this checkout")
    folder = tmp_path_factory.mktemp("stubs")
    made = subprocess.run([TOOL, folder], capture_output=True, text=True, check=False)
    if made.returncode or not all((folder / version).is_dir() for version in VERSIONS):
        pytest.skip(f"needs PyPI, nm and gcc, to fetch TensorRT's bindings: {made.stderr.strip()[-300:]}")
    return folder


def _check(module: Path, stubs: Path, version: str) -> subprocess.CompletedProcess[str]:
    settings = stubs / "mypy.ini"
    settings.write_text(SETTINGS, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        settings,
        "--cache-dir",
        stubs / f"of-{version}",
        module,
    ]
    environment = {**os.environ, "MYPYPATH": str(stubs / version)}
    return subprocess.run(command, env=environment, cwd=stubs, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_module_fits_every_version(stubs: Path, version: str) -> None:
    """Every class, method, flag and argument that it uses is there."""
    found = _check(MODULE, stubs, version)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("misuse", MISUSES)
def test_a_misuse_is_found(stubs: Path, tmp_path: Path, misuse: str) -> None:
    """In the versions whose API it is no part of, and in no other."""
    right, wrong, versions = MISUSES[misuse]
    text = MODULE.read_text(encoding="utf-8")
    assert right in text
    (tmp_path / "misused.py").write_text(text.replace(right, wrong), encoding="utf-8")
    found = {version for version in VERSIONS if _check(tmp_path / "misused.py", stubs, version).returncode}
    assert found == versions
