"""What the verbs of `evspec` have in common: options, their types, and what is printed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from evspec_ros.choices import BACKENDS, CONDITIONS, MIXED, PLAIN
from evspec_ros.files import share_directory

if TYPE_CHECKING:
    from evspec_ros.recordings.recording import Wanted

RUN_HELP = "kept to go on from after an interruption; default: %(default)s"
DEVICE_HELP = "cpu, cuda or cuda:N; default: %(default)s"
OWN_MODELS = "default: the package's models/tiny_{}"
HEADS = {
    "block": "a draft head that says a block of tokens in one pass",
    "eagle": "a draft head of EAGLE's kind",
    "eagle3": "a draft head of EAGLE-3's kind",
    "eventgpt_adapter": "the adapter from the event model's features to the target's",
    "feature": "the design paper's adapter with its fusion",
}
messages = Console(stderr=True, highlight=False)


def add_verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str
) -> argparse.ArgumentParser:
    """Add the verb `name`, which `run` carries out; every verb knows --help and --json."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else on stdout"
    )
    parser.set_defaults(verb=run)
    return parser


def add_models(parser: argparse.ArgumentParser, default: str = OWN_MODELS, head: str = "eagle") -> None:
    """Options that name the three checkpoint directories."""
    add_pair(parser, default)
    parser.add_argument("--draft-head", type=Path, help=default.format(head))


def add_pair(parser: argparse.ArgumentParser, default: str = OWN_MODELS) -> None:
    """Options that name the target's and the event model's directories, where no head is read."""
    for option, name in (("target", "video_llava"), ("event-model", "eventgpt")):
        parser.add_argument(f"--{option}", type=Path, help=default.format(name))
    parser.set_defaults(draft_head=None)


def models(options: argparse.Namespace, head: str = "eagle") -> tuple[Path, Path, Path]:
    """The three checkpoint directories, the package's own where none was named."""
    named = options.target, options.event_model, options.draft_head
    own = ("tiny_video_llava", "tiny_eventgpt", f"tiny_{head}")
    target, event_model, draft_head = (
        path or own_checkpoint(name) for path, name in zip(named, own, strict=True)
    )
    return target, event_model, draft_head


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Options that choose where a bench computes, in which precision, and what runs the target's passes."""
    parser.add_argument("--device", default="cpu", help=DEVICE_HELP)
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="default: float32 on the CPU, float16 on a GPU",
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="default: %(default)s")


def placement(options: argparse.Namespace) -> tuple[str, str, str]:
    """Device, precision (the device's own where none was named) and backend."""
    gpu = options.device != "cpu"
    dtype = options.dtype or ("float16" if gpu else "float32")
    return options.device, dtype, options.backend


def own_checkpoint(name: str) -> Path:
    """One of the checkpoint directories that the package ships."""
    return share_directory() / "models" / name


def own_heads() -> list[Path]:
    """The draft heads that the package ships, one of each kind."""
    return [own_checkpoint(f"tiny_{kind}") for kind in HEADS]


def add_topics(parser: argparse.ArgumentParser) -> None:
    """Options that choose the topics of a bag."""
    parser.add_argument("--events", default="", metavar="TOPIC", help="of a bag; default: the busiest one")
    parser.add_argument(
        "--image", default="", metavar="TOPIC", help="of a bag; default: a colour camera's, the busiest one"
    )


def wanted(options: argparse.Namespace) -> Wanted:
    """What was chosen, of the options that a verb has."""
    from evspec_ros.recordings.recording import Wanted

    names = ("events", "image", "columns", "time_unit")
    return Wanted(*(getattr(options, name, "") for name in names))


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Options that tell how the numbers of a recording are to be read."""
    parser.add_argument(
        "--columns",
        default="",
        metavar="NAMES",
        help="of a text, in their order: t,x,y,p; any other name is passed over; default: told by its header "
        "or numbers",
    )
    parser.add_argument(
        "--time-unit",
        default="",
        choices=("s", "ms", "us", "ns"),
        help="of a text or an .npy file; default: told by its header or numbers",
    )


def add_condition(parser: argparse.ArgumentParser) -> None:
    """The option that chooses what makes simulated scenes hard to see."""
    parser.add_argument(
        "--condition",
        choices=(*CONDITIONS, MIXED),
        default=PLAIN,
        help="what makes simulated scenes hard to see; default: %(default)s",
    )


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given."""
    found = {name: getattr(options, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def print_json(value: dict[str, Any]) -> None:
    """One object on stdout."""
    json.dump(value, sys.stdout)
    sys.stdout.write("\n")


def capability(text: str) -> tuple[int, int]:
    """An option's type: a GPU's compute capability, such as 8.6."""
    from evspec_ros.engines.tensorrt_library import parse_capability

    try:
        return parse_capability(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive(text: str) -> float:
    """An option's type: above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def count(text: str) -> int:
    """An option's type: 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def whole(text: str) -> int:
    """An option's type: 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def probability(text: str) -> float:
    """An option's type: from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
