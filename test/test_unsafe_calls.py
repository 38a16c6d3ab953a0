"""Nothing in the package runs what comes from outside."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "evspec_ros"
FORBIDDEN = {
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "os.system",
    "marshal.loads",
}
TRUSTING = {"trust_remote_code", "allow_pickle", "shell"}


def _calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_file_runs_what_it_reads(path: Path) -> None:
    """No pickle, no evaluated text, no shell, no code of a checkpoint's."""
    for call in _calls(path):
        assert ast.unparse(call.func) not in FORBIDDEN
        if ast.unparse(call.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(call)
        trusting = [word for word in call.keywords if word.arg in TRUSTING]
        assert all(isinstance(word.value, ast.Constant) and not word.value.value for word in trusting)
