"""Recordings evaluated by the workers of a Ray cluster: `evspec eval --ray ADDRESS`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from evspec_ros.describer import SceneDescriber
from evspec_ros.errors import EvspecError
from evspec_ros.evaluation.replay.plan import ReplayPlan
from evspec_ros.evaluation.replay.run import evaluate_recording
from evspec_ros.evaluation.replay.store import Finished, RecordingId, Row, RunFolder
from evspec_ros.recordings.recording import Wanted

LOCAL = "local"  # the address of a cluster that is started on this machine, for this run
ATTEMPTS = 5  # at a recording whose worker is lost
OBJECT_STORE_BYTES = 100_000_000  # of a cluster of our own, whose tasks hand lines over and nothing else
_ALONE = {  # read when Ray is imported: its makers are told nothing, and no other machine reaches the cluster
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # of any system, by its name of others than Linux
}


def evaluate_on_fleet(
    paths: Sequence[Path],
    plan: ReplayPlan,
    folder: RunFolder,
    wanted: Wanted,
    address: str,
    report: Callable[[str, int], None] = lambda *_: None,
) -> None:
    """A task for each recording that the folder does not hold yet; every worker has to see recordings and
    checkpoints under the same paths. A recording is kept when its task has ended, as a whole: one whose
    worker was lost runs again and counts once. Raises EvspecError where Ray is missing or cannot be reached,
    and, behind all others, for recordings whose worker was lost again and again.
    """
    done = folder.finished()
    todo = {one.key: one for one in map(RecordingId.of, paths) if one.key not in done}
    lost = []
    ray = _ray(address)
    try:
        _join(ray, address)
        task = ray.remote(num_cpus=1, max_retries=ATTEMPTS)(evaluate_whole)
        running = {task.remote(one, plan, wanted, folder.rows(one.key)): one for one in todo.values()}
        while running:
            (ended,), _ = ray.wait(list(running), num_returns=1)
            identity = running.pop(ended)
            try:
                rows, finished = ray.get(ended)
            except ray.exceptions.RayError as error:
                lost.append(f"{identity.path} ({str(error).splitlines()[0]})")
                continue
            folder.append(identity.key, rows)
            folder.finish(finished)
            report(identity.path, finished.windows)
    finally:
        ray.shutdown()
    if lost:
        raise EvspecError(f"The workers of some recordings were lost, run it again: {', '.join(lost)}.")


def evaluate_whole(
    identity: RecordingId, plan: ReplayPlan, wanted: Wanted, before: Sequence[Row]
) -> tuple[list[Row], Finished]:
    """All lines of a recording that are not there yet, in a worker, which keeps its describer."""
    rows: list[Row] = []
    finished = evaluate_recording(identity, plan, _describer(plan), wanted, before, rows.extend)
    return rows, finished


@lru_cache(maxsize=1)
def _describer(plan: ReplayPlan) -> SceneDescriber:
    return plan.load()


def _join(ray: Any, address: str) -> None:
    own = {"object_store_memory": OBJECT_STORE_BYTES} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EvspecError(
            f"No Ray cluster answers at {address} ({error}); start one, or say local."
        ) from error


def _ray(address: str) -> Any:
    if address == LOCAL:
        os.environ.update(_ALONE)
    try:
        import ray
    except ImportError as error:
        raise EvspecError("Evaluating on many machines needs Ray: pip install ray.") from error
    return ray
