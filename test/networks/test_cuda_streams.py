"""Time in streams, emulated where there is no GPU."""

from __future__ import annotations

import time

import pytest
import torch
from emulated_cuda import EmulatedCuda

from evspec_ros.networks.cuda_streams import SideStream, Stages

DEVICE = torch.device("cpu")


def test_stages_of_a_stream_take_what_its_work_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host queues them at once; it waits when the times are read, and for this stream alone."""
    cuda, stages = EmulatedCuda(monkeypatch), Stages(DEVICE)
    stages.begin()
    started = time.perf_counter()
    for name, ms in (("render", 30.0), ("encode", 60.0)):
        cuda.main.work(ms)
        stages.lap(name)
    queued_ms = (time.perf_counter() - started) * 1e3
    assert stages.milliseconds() == {
        "render": pytest.approx(30, abs=queued_ms + 1),
        "encode": pytest.approx(60, abs=queued_ms + 1),
    }


def test_stages_that_never_began_have_no_times() -> None:
    """As those of events that nobody read; on a processor a stage is what passed by the clock."""
    stages = Stages(DEVICE)
    assert stages.milliseconds() == {}
    stages.begin()
    time.sleep(0.01)
    stages.lap("slept")
    assert stages.milliseconds()["slept"] >= 10


def test_a_side_stream_waits_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the main stream still has to do is not waited for; what was queued inside is done at the end."""
    cuda, side = EmulatedCuda(monkeypatch), SideStream()
    cuda.main.work(60_000)
    started = time.perf_counter()
    with side.on(DEVICE):
        assert cuda.current() is not cuda.main
        cuda.current().work(40)
    assert 40 <= (time.perf_counter() - started) * 1e3 < 30_000
    assert cuda.current() is cuda.main


@pytest.mark.gpu
def test_stages_on_a_gpu_take_what_its_work_takes() -> None:
    """The same of real streams: a large product beside another, timed without waiting for the device."""
    device = torch.device("cuda")
    large = torch.ones(4096, 4096, device=device)
    stages, side = Stages(device), SideStream()
    for _ in range(2):  # the first loads kernels
        stages.begin()
        for _ in range(50):
            large @ large
        stages.lap("products")
    with side.on(device):
        inside = Stages(device)
        inside.begin()
        large @ large
        inside.lap("product")
    assert stages.milliseconds()["products"] > inside.milliseconds()["product"] > 0
