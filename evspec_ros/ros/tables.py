"""The table of parameters in docs/node.md: `python -m evspec_ros.ros.tables` prints it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evspec_ros.ros.parameters import ROWS, Settings


def parameter_table() -> str:
    """A row for each parameter, in Markdown; * for those that may change while the node runs."""
    defaults = Settings()
    lines = ["| parameter | default | what |", "|---|---|---|"]
    for name, row in ROWS.items():
        text = row.description.replace("|", "\\|")
        live = " *" if row.live else ""
        lines.append(f"| `{name}`{live} | {_shown(getattr(defaults, name))} | {text} |")
    return "\n".join(lines)


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, str) and Path(default).is_absolute():
        return f"the package's `{Path(default).name}`"
    return f"`{default}`" if default != "" else ""


if __name__ == "__main__":
    print(parameter_table())
