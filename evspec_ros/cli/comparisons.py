"""`evspec bench peers` and `evspec bench project`: beside what others do, and on other machines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evspec_ros.choices import PRECISIONS
from evspec_ros.cli.options import (
    HEADS,
    add_models,
    add_pair,
    add_verb,
    count,
    models,
    own_checkpoint,
    print_json,
    probability,
)
from evspec_ros.errors import EvspecError

_THIS = "this"
_DEVICES = ("orin_agx_64gb", "orin_nx_16gb", "desktop", _THIS)


def add_comparisons(benches: Any) -> None:
    """Add both."""
    peers = add_verb(
        benches, "peers", _bench_peers, "compare with transformers and published drafters, in one run"
    )
    add_pair(peers)
    peers.add_argument(
        "--streams", type=count, default=6, help="simulated, of fifteen windows each; default: %(default)s"
    )
    peers.add_argument(
        "--recording", type=Path, action="append", default=[], help="with frames, instead; may be given again"
    )
    peers.add_argument(
        "--peer", action="append", default=[], help="such as 'evspec none'; may be given again; default: all"
    )
    peers.add_argument("--max-new-tokens", type=count, default=80, help="default: %(default)s")
    peers.add_argument("--threads", type=count, help="of the networks; default: torch's")
    peers.add_argument("--no-memory", action="store_true", help="leave out what each takes by itself")

    project = add_verb(
        benches, "project", _bench_project, "project what descriptions take on a machine, by its roofs"
    )
    project.add_argument("--device", choices=_DEVICES, default="orin_agx_64gb", help="default: %(default)s")
    project.add_argument("--precision", choices=PRECISIONS, help="default: float16, of this machine float32")
    add_models(project, "a directory; without any the published 7B sizes, for this machine the package's own")
    project.add_argument(
        "--acceptance", type=_shares, help="by position in a draft, as in 0.9,0.8; the last one goes on"
    )
    project.add_argument("--run", type=Path, help="of `evspec eval`, whose measured acceptance is taken")
    project.add_argument("--tokens", type=count, default=80, help="of a text; default: %(default)s")
    project.add_argument("--threads", type=count, help="of this machine's processor; default: torch's")
    project.add_argument("--no-check", action="store_true", help="measure nothing on this machine")


def _shares(text: str) -> tuple[float, ...]:
    return tuple(map(probability, text.split(",")))


def _bench_peers(options: argparse.Namespace) -> None:
    import torch

    from evspec_ros.evaluation.peer_race import print_peers, race_visibly
    from evspec_ros.evaluation.peers import PeerModels

    if options.threads:
        torch.set_num_threads(options.threads)
    target, event_model, _ = models(options)
    heads = {kind: own_checkpoint(f"tiny_{kind}") for kind in HEADS}
    report = race_visibly(
        PeerModels(target, event_model, heads, options.max_new_tokens),
        options.streams,
        options.recording,
        options.peer,
        memory=not options.no_memory,
    )
    if options.json:
        print_json(report.as_dict())
    else:
        print_peers(report)


def _bench_project(options: argparse.Namespace) -> None:
    from evspec_ros.doctor import read_sizes
    from evspec_ros.evaluation.projection import ACCEPTANCE, ROOFS, project
    from evspec_ros.evaluation.projection_check import check_here, check_published, print_projection
    from evspec_ros.evaluation.roofs import this_machine

    here = options.device == _THIS
    precision = options.precision or ("float32" if here else "float16")
    if here and precision != "float32":
        raise EvspecError("This machine's roofs are measured in float32; leave --precision out.")
    own = models(options, head="block") if here else None
    sizes = read_sizes(*(own or (options.target, options.event_model, options.draft_head)))
    acceptance = options.acceptance or (_acceptance_of(options.run) if options.run else ACCEPTANCE)
    measured = here or not options.no_check
    this = this_machine(options.threads) if measured else None
    roof = this if here and this else ROOFS[options.device]
    found = project(roof, sizes, precision, acceptance, options.tokens)
    checked = check_published()
    if this is not None and not options.no_check:
        target, event_model, block = (
            own_checkpoint(f"tiny_{kind}") for kind in ("video_llava", "eventgpt", "block")
        )
        checked += check_here(target, event_model, block, this)
    if options.json:
        print_json(found.as_dict() | {"checked": [one.as_dict() for one in checked]})
    else:
        print_projection(found, checked)


def _acceptance_of(run: Path) -> tuple[float, ...]:
    """What a run measured, by position."""
    from evspec_ros.evaluation.replay.store import RunFolder
    from evspec_ros.evaluation.replay.summary import summarise

    shares = summarise(RunFolder.opened(run))["total"].get("acceptance_by_position")
    if not shares:
        raise EvspecError(f"The run {run} drafted nothing, so it tells no acceptance.")
    return tuple(shares)
