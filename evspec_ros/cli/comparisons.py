"""`evspec bench peers` and `evspec bench project`: beside what others do, and on other machines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evspec_ros.cli.options import HEADS, add_pair, add_verb, count, models, own_checkpoint, print_json


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
