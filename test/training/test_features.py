"""Features on disk: what is written, what is refused, and what an interruption leaves."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_pair import noise_scenes, random_pair
from safetensors.torch import load_file, save_file

from evspec_ros.errors import TrainingError
from evspec_ros.frames.clip import ClipPreprocessor
from evspec_ros.recordings import open_recording
from evspec_ros.simulation.recorded_scene import record_scene
from evspec_ros.training.draft_heads import HeadPlan, needed_features, split
from evspec_ros.training.features import Computed, FeaturePlan, FeatureShards, answer, extract
from evspec_ros.training.recorded_windows import RecordedWindows

PAIR = random_pair()
PLAN = FeaturePlan.for_pair(PAIR, layers=(1,), max_new_tokens=8, shard=3)


def _extract(path: Path, count: int = 8, plan: FeaturePlan = PLAN) -> FeatureShards:
    return extract(PAIR, noise_scenes, path, plan, count, "noise")


def test_shards_hold_what_the_models_said(tmp_path: Path) -> None:
    """Eight scenes in shards of three: features in half precision, tokens exact, texts beside them."""
    shards = _extract(tmp_path)
    assert [len(shards[index].tokens) for index in range(len(shards))] == [3, 3, 2]
    found, computed = FeatureShards.open(tmp_path, PAIR)[1], answer(PAIR, noise_scenes(3, 6), PLAN)
    assert torch.equal(found.tokens, computed.tokens)
    assert torch.equal(found.lengths, computed.lengths)
    for name in ("prompt", "features", "events", "event_features"):
        torch.testing.assert_close(getattr(found, name), getattr(computed, name).half().float())
    texts = list(shards.texts())
    assert len(texts) == 8
    assert texts[3] == str(found.tokens[0, : found.lengths[0]].tolist())


def test_the_disk_use_is_predicted(tmp_path: Path) -> None:
    """From above, and closely where every answer is as long as it may be."""
    object.__setattr__(PAIR.target.config.text, "end_tokens", (1000,))  # never said
    shards = _extract(tmp_path)
    object.__setattr__(PAIR.target.config.text, "end_tokens", (2,))
    written = sum(sum(value.nbytes for value in load_file(path).values()) for path in shards.paths)
    assert written == 8 * PLAN.scene_bytes(PAIR)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """A billion scenes fit on none."""
    with pytest.raises(TrainingError, match="GB free"):
        _extract(tmp_path / "new", 10**12)
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fills_up_leaves_no_shard(tmp_path: Path) -> None:
    """The system itself refuses to write on (here for the size of a file); with room again it goes on."""
    _extract(tmp_path).paths[1].unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(TrainingError, match=r"00000003\.safetensors cannot be written .* free space"):
            _extract(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len([*tmp_path.iterdir()]) == 3  # two shards and the manifest
    with pytest.raises(TrainingError, match="1 of 3 shards"):
        FeatureShards.open(tmp_path, PAIR)
    _extract(tmp_path)
    assert len(FeatureShards.open(tmp_path, PAIR)) == 3


def test_an_interrupted_extraction_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    """What was there is not computed again, and the result is the same."""
    whole = _extract(tmp_path / "whole")
    asked: list[int] = []

    def scenes(start: int, stop: int) -> object:
        asked.append(start)
        if asked == [0, 3]:
            raise KeyboardInterrupt
        return noise_scenes(start, stop)

    with pytest.raises(KeyboardInterrupt):
        extract(PAIR, scenes, tmp_path / "parts", PLAN, 8, "noise")  # type: ignore[arg-type]
    parts = extract(PAIR, scenes, tmp_path / "parts", PLAN, 8, "noise")  # type: ignore[arg-type]
    assert asked == [0, 3, 3, 6]
    for one, other in zip(whole.paths, parts.paths, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_a_shard_that_was_cut_off_is_named(tmp_path: Path) -> None:
    """On reading, and on going on with the extraction."""
    shards = _extract(tmp_path)
    shards.paths[1].write_bytes(shards.paths[1].read_bytes()[:-100])
    for use in (lambda: shards[1], lambda: _extract(tmp_path)):
        with pytest.raises(TrainingError, match=r"00000003\.safetensors is damaged or only half written"):
            use()


def test_features_of_another_pair_are_refused(tmp_path: Path) -> None:
    """Told by the models' weights, not by their paths."""
    _extract(tmp_path)
    with pytest.raises(TrainingError, match="another target and another event_model"):
        FeatureShards.open(tmp_path, random_pair(seed=1))


def test_wrong_dimensions_are_refused(tmp_path: Path) -> None:
    """A shard of fewer layers than the manifest says."""
    shards = _extract(tmp_path)
    tensors = load_file(shards.paths[0])
    save_file({**tensors, "features": tensors["features"][..., :32].contiguous()}, shards.paths[0])
    with pytest.raises(
        TrainingError, match=r"holds features \(3, 51, 32\) and features\.json says \(3, 51, 64\)"
    ):
        shards[0]


def test_a_directory_of_another_plan_is_refused(tmp_path: Path) -> None:
    """Shards of two plans would not fit together."""
    _extract(tmp_path)
    with pytest.raises(TrainingError, match=r"begun with another plan or other models \(plan differ\)"):
        _extract(tmp_path, plan=replace(PLAN, max_new_tokens=9))


def test_a_manifest_that_is_none_is_refused(tmp_path: Path) -> None:
    """Missing, damaged and of another version."""
    with pytest.raises(TrainingError, match=r"has no features\.json"):
        FeatureShards.open(tmp_path, PAIR)
    for text, what in (
        ("{", "damaged"),
        ("[]", "damaged"),
        (json.dumps(PAIR.fingerprints), "another version"),
    ):
        (tmp_path / "features.json").write_text(text)
        with pytest.raises(TrainingError, match=what):
            FeatureShards.open(tmp_path, PAIR)


@pytest.mark.parametrize("kind", ["eagle", "eagle3", "feature"])
def test_a_head_learns_from_features_what_it_would_compute(kind: str, tmp_path: Path) -> None:
    """Of all layers and rows that were kept, those that it reads; the last tenth of the shards is held
    out.
    """
    plan = HeadPlan(kind, max_new_tokens=8, batch=3)
    kept = FeaturePlan.for_pair(PAIR, layers=range(4), max_new_tokens=8, shard=3)
    wanted = needed_features(PAIR, plan)
    training, tests = split(_extract(tmp_path, plan=kept), wanted)
    assert (len(training), len(tests)) == (2, 1)
    computed = Computed(PAIR, noise_scenes, wanted, 8)
    for found, expected in ((training[1], computed[1]), (tests[0], computed[2])):
        for name, value in vars(expected).items():
            rounded = value.half().float() if value.is_floating_point() else value
            torch.testing.assert_close(getattr(found, name), rounded, atol=2e-3, rtol=2e-3)


def test_a_head_refuses_features_that_lack_what_it_reads(tmp_path: Path) -> None:
    """EAGLE-3's reads low layers, EAGLE's all rows of the prompt, and one shard cannot be held out."""
    kept = FeaturePlan.for_pair(PAIR, context=2, max_new_tokens=8, shard=3)
    shards = _extract(tmp_path, plan=kept)
    for kind in ("eagle", "eagle3"):
        with pytest.raises(TrainingError, match="extract them for it"):
            split(shards, needed_features(PAIR, HeadPlan(kind, max_new_tokens=8)))
    with pytest.raises(TrainingError, match="one shard"):
        split(replace(shards, scenes=3), needed_features(PAIR, HeadPlan("feature", max_new_tokens=8)))


def test_a_layer_that_no_model_has_is_refused() -> None:
    """Counted from 0 to the number of layers."""
    with pytest.raises(TrainingError, match="target has no layer 4"):
        FeaturePlan.for_pair(PAIR, layers=(4,))


def test_windows_of_recordings_are_what_a_describer_would_see(tmp_path: Path) -> None:
    """Two recordings one after the other; each window's events and frames are those of direct reading,
    whatever the order in which windows are asked for.
    """
    for seed in (1, 2):
        record_scene(tmp_path / str(seed), seed, 1.6)
    preprocessor = ClipPreprocessor(32)
    windows = RecordedWindows([tmp_path / "1", tmp_path / "2"], 0.5, preprocessor, preprocessor)
    assert len(windows) == 8
    recording = open_recording(tmp_path / "2")
    (window,) = [w for w in list(windows.windows())[4:] if w.stop_ns == 1_000_000_000]
    events = list(recording.events(window.stop_ns - 50_000_000, window.stop_ns))
    assert np.array_equal(window.events.t, np.concatenate([part.t for part in events]))
    stamps = [frame.stamp_ns for frame in recording.frames(0, window.stop_ns + 1)]
    last = (stamps[-1] - stamps[0]) * 7 // 1_000_000_000
    wanted = [stamps[0] + (last - 7 + k) * 1_000_000_000 // 7 for k in range(8)]
    assert [frame.stamp_ns for frame in window.frames] == [
        min(stamps, key=lambda stamp: abs(stamp - at)) for at in wanted
    ]
    later, first = windows(5, 7), windows(0, 8)
    assert torch.equal(later.frames, first.frames[5:7])
    assert torch.equal(later.events, first.events[5:7])
    assert first.events.shape == (8, 5, 3, 32, 32)


def test_a_recording_without_frames_is_refused(shared_data: Path) -> None:
    """The target would see nothing."""
    path = shared_data / "EventGPT" / "sample1.npy"
    with pytest.raises(TrainingError, match="has no frames"):
        len(RecordedWindows([path], 0.5, ClipPreprocessor(32), ClipPreprocessor(32)))
