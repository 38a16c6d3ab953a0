"""The whole pipeline, on the checkpoints in models/."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated_cuda import EmulatedCuda

from evspec_ros.describer import SceneDescriber
from evspec_ros.description import Limits
from evspec_ros.errors import CheckpointError, GenerationError
from evspec_ros.events.types import Events
from evspec_ros.frames.buffer import FrameBuffer, kept_seconds
from evspec_ros.frames.types import Frame
from evspec_ros.loading import load_describer
from evspec_ros.networks import memory
from evspec_ros.networks.checkpoints import load_draft_head, save_draft_head
from evspec_ros.networks.devices import compute_device
from evspec_ros.networks.draft_head import Eagle3Head
from evspec_ros.networks.tiny import TINY_CLIP
from evspec_ros.simulation.samples import sample_scene
from evspec_ros.sizes import FRAMES
from evspec_ros.speculative import DRAFTERS

MODELS = Path(__file__).parents[1] / "models"
TARGET, EVENT_MODEL, HEAD = (MODELS / f"tiny_{name}" for name in ("video_llava", "eventgpt", "eagle3"))


@pytest.fixture(scope="module", params=["none", "combined"])
def describer(request: pytest.FixtureRequest) -> SceneDescriber:
    """One describer per drafter."""
    return load_describer(TARGET, EVENT_MODEL, HEAD, drafter=request.param)


@pytest.fixture(scope="module")
def eagle() -> SceneDescriber:
    """The default describer."""
    return load_describer(TARGET, EVENT_MODEL, HEAD)


@pytest.fixture(scope="module")
def plain() -> SceneDescriber:
    """The target alone."""
    return load_describer(TARGET, None, None, drafter="none")


def _window(index: int) -> tuple[Events, list[Frame]]:
    """A held-out scene's last 50 ms of events and its frames."""
    _, camera, times = sample_scene("held_out", index)
    frames = [Frame(round((1 + time) * 1e9), camera.image(time)) for time in times]
    return camera.events(0.0), frames


def test_drafting_changes_nothing_but_the_time(eagle: SceneDescriber, plain: SceneDescriber) -> None:
    """With the trained head the text is token for token the target's own, in fewer passes of it."""
    drafted, alone = [], []
    for index in range(10):
        events, frames = _window(index)
        drafted.append(eagle.describe(events, frames, stamp_ns=1))
        alone.append(plain.describe(events, frames, stamp_ns=1))
    assert [d.tokens for d in drafted] == [d.tokens for d in alone]
    assert [d.text for d in drafted] == [d.text for d in alone]
    passes = [sum(d.statistics.target_passes for d in group) for group in (drafted, alone)]
    assert passes[0] < passes[1] / 2
    assert all(d.lossless for d in drafted)


def test_a_description_says_what_it_cost(describer: SceneDescriber) -> None:
    """Every stage has its time, the stages fit into the total, and all of it is JSON."""
    events, frames = _window(0)
    found = describer.describe(events, frames, stamp_ns=1_500_000_000, window_ms=50.0)
    stages = found.latency_ms
    assert {
        "render",
        "event_preprocess",
        "event_features",
        "event_model",
        "event_hidden",
        "event_wait",
        "preprocess",
        "encode_frames",
        "prefill",
        "draft",
        "verify",
        "decode",
    } < set(stages)
    parts = sum(stages[n] for n in ("preprocess", "encode_frames", "event_wait", "prefill", "decode"))
    assert parts <= stages["total"] <= parts * 1.5 + 20
    assert stages["draft"] + stages["verify"] <= stages["decode"]
    record = json.loads(json.dumps(found.as_dict()))
    assert record["stamp"] == 1.5
    assert record["tokens"] == len(found.tokens)
    assert found.stamp_ns == 1_500_000_000


def test_text_grows_while_it_is_written(describer: SceneDescriber) -> None:
    """Each call brings the text so far; the last one is the description."""
    events, frames = _window(1)
    written: list[str] = []
    found = describer.describe(events, frames, stamp_ns=0, on_text=written.append)
    assert len(written) == found.statistics.target_passes + 1
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(written))
    assert written[-1] == found.text


def test_a_quiet_event_camera_is_described_all_the_same(describer: SceneDescriber) -> None:
    """No events is a window like any other."""
    _, frames = _window(2)
    assert describer.describe(Events.empty(640, 480), frames, stamp_ns=0).text


def test_the_target_never_sees_the_events(eagle: SceneDescriber) -> None:
    """Events of another scene change the drafts at most."""
    events, frames = _window(3)
    others, _ = _window(4)
    assert (
        eagle.describe(events, frames, stamp_ns=0).tokens == eagle.describe(others, frames, stamp_ns=0).tokens
    )


def test_a_later_window_uses_what_was_computed_for_an_earlier_one() -> None:
    """Frames that both have are encoded once, frames before the first new one are not even read again, and
    the text is the one that a describer without a past writes.
    """
    past, fresh = (load_describer(TARGET, EVENT_MODEL, HEAD) for _ in range(2))
    events, frames = _window(8)
    first = past.describe(events, [*frames[:6], frames[5], frames[5]], stamp_ns=0)
    later = past.describe(events, frames, stamp_ns=0)
    asked = past.describe(events, frames, stamp_ns=0, prompt="What moves?")
    assert [d.reused_frames for d in (first, later, asked)] == [0, 6, 8]
    tokens = TINY_CLIP.tokens
    rows = later.statistics.prompt_rows - FRAMES * tokens  # of text
    assert 6 * tokens < later.statistics.reused_rows < 6 * tokens + rows
    assert FRAMES * tokens < asked.statistics.reused_rows < asked.statistics.prompt_rows
    alone = fresh.describe(events, frames, stamp_ns=0)
    assert (alone.reused_frames, alone.statistics.reused_rows) == (0, 0)
    assert later.tokens == alone.tokens


@pytest.mark.parametrize(("apart_ms", "new"), [(50, (0, 1)), (100, (0, 1)), (143, (1, 1)), (286, (2, 2))])
def test_of_a_running_stream_seven_frames_of_eight_were_encoded_before(
    apart_ms: int, new: tuple[int, int], plain: SceneDescriber
) -> None:
    """Windows up to 143 ms apart have one new frame at most, those two such steps apart two."""
    camera = [Frame(k * 33_333_333, np.full((8, 8, 3), k, np.uint8)) for k in range(90)]
    seen = FrameBuffer(kept_seconds(1.0), 256)
    reused, stop_ns = [], 1_200_000_000
    for frame in camera:
        while frame.stamp_ns > stop_ns:
            frames = seen.sample(stop_ns, 1.0)
            found = plain.describe(
                Events.empty(8, 8), frames, stamp_ns=stop_ns, limits=Limits(max_new_tokens=1)
            )
            reused.append(found.reused_frames)
            stop_ns += apart_ms * 1_000_000
        seen.append(frame)
    assert {FRAMES - count for count in reused[1:]} <= set(range(new[0], new[1] + 1))
    assert FRAMES - new[1] in reused


def test_no_frame_is_refused(describer: SceneDescriber) -> None:
    """There is nothing to describe."""
    with pytest.raises(GenerationError, match="no frame"):
        describer.describe(Events.empty(10, 10), [], stamp_ns=0)


def test_limits_are_kept(eagle: SceneDescriber) -> None:
    """max_new_tokens is exact, and one seed gives one sampled text."""
    events, frames = _window(5)
    assert len(eagle.describe(events, frames, stamp_ns=0, limits=Limits(max_new_tokens=7)).tokens) == 7
    warm = Limits(temperature=5.0, seed=3)  # at lower ones the target is sure enough for four equal texts
    texts = []
    for seed in (3, 3, 3, 4, 5, 6):
        eagle.forget_stream()  # what is remembered decides how much is left to chance
        limits = replace(warm, seed=seed)
        texts.append(eagle.describe(events, frames, stamp_ns=0, limits=limits).tokens)
    # the first may read its prompt, which the others find read: sums of other shapes round otherwise
    assert texts[1] == texts[2]
    assert len(set(texts[2:])) > 1


def test_timing_a_step_changes_no_text(eagle: SceneDescriber) -> None:
    """The next window is described as it is without."""
    events, frames = _window(8)
    eagle.warm_up()
    first = eagle.describe(events, frames, stamp_ns=0)
    eagle.forget_stream()
    again = eagle.describe(events, frames, stamp_ns=0)
    eagle.time_step(again)
    eagle.forget_stream()
    assert eagle.describe(events, frames, stamp_ns=0).tokens == first.tokens


def test_a_prompt_too_long_is_refused(eagle: SceneDescriber) -> None:
    """One sentence, and the next window is described."""
    events, frames = _window(6)
    with pytest.raises(GenerationError, match="positions"):
        eagle.describe(events, frames, stamp_ns=0, prompt="why " * 1000)
    assert eagle.describe(events, frames, stamp_ns=0).text


def test_warming_up_describes_a_blank_window(describer: SceneDescriber) -> None:
    """It needs nothing and leaves nothing behind."""
    events, frames = _window(7)
    before = describer.describe(events, frames, stamp_ns=0).tokens
    describer.warm_up()
    assert describer.describe(events, frames, stamp_ns=0).tokens == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"target": MODELS / "nowhere"}, "There is no checkpoint directory"),
        ({"target": EVENT_MODEL}, "not a Video-LLaVA"),
        ({"event_model": TARGET}, "not a EventGPT"),
        ({"device": "abacus"}, "no device 'abacus'"),
        ({"dtype": "float12"}, "no precision 'float12'"),
        ({"kv_dtype": "int4"}, "no precision 'int4' of the key/value cache"),
    ],
)
def test_checkpoints_that_cannot_be_used_are_refused(changes: dict[str, object], sentence: str) -> None:
    """One sentence each."""
    arguments = {"target": TARGET, "event_model": EVENT_MODEL, "draft_head": HEAD, **changes}
    with pytest.raises(CheckpointError, match=sentence):
        load_describer(**arguments)  # type: ignore[arg-type]


def test_a_cuda_device_without_a_gpu_is_refused() -> None:
    """Before anything is loaded."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(CheckpointError, match="sees no GPU"):
        load_describer(TARGET, EVENT_MODEL, HEAD, device="cuda")


@pytest.mark.parametrize("name", ["mps", "meta", "xpu", "cpu:1", "cuda:x", "cuda:-1", "", "CPU", "hpu:0"])
def test_what_is_no_device_of_the_networks_is_refused(name: str) -> None:
    """Also what torch knows, but nothing here runs on."""
    with pytest.raises(CheckpointError, match=f"no device {name!r} .* choose cpu, cuda or cuda:N"):
        compute_device(name)


def test_a_gpu_beyond_those_that_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the last one that there is; the ones before are taken."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [compute_device(name).index for name in ("cpu", "cuda", "cuda:1")] == [None, None, 1]
    with pytest.raises(CheckpointError, match="cuda:99 was asked for and torch sees GPUs up to cuda:1"):
        compute_device("cuda:99")


HEADS = ("block", "eagle", "eagle3", "eventgpt_adapter", "feature")
SAYING = ("block", "eagle3")  # heads that say tokens themselves, out of features of several layers
MISFITS = [
    *(
        (kind, {"event_size": 7}, "made for event features of 7 values and the event model gives")
        for kind in HEADS
    ),
    *((kind, {"hidden_size": 40}, "made for features of 40 values") for kind in HEADS if kind not in SAYING),
    *(
        (kind, changes, sentence)
        for kind in SAYING
        for changes, sentence in (
            ({"target_size": 40}, "made for features of 40 values"),
            ({"layers": [2, 99]}, r"reads layer 99 of the target, which has 0 \(its embeddings\) to 10"),
            ({"layers": [-1]}, "reads layer -1"),
            ({"layers": []}, "reads no layer"),
            ({"vocab_size": 5000, "tokens": []}, "says 5000 tokens and the target"),
            ({"tokens": [3, 100_000]}, "lists tokens twice or beyond"),
            ({"layers": ["2"]}, "entry layers .* instead of a list of whole numbers"),
        )
    ),
    (
        "block",
        {"target_size": 40, "event_size": 7, "vocab_size": 5000},
        "40 values.*5000 tokens.* of 7 values",
    ),
    ("block", {"block": 0}, "a block of 0 rows"),
    ("block", {"num_layers": 4}, "and 4 layers, and a block head has .* one to three"),
    ("block", {"causal": 1}, "entry causal .* instead of true or false"),
    ("block", {"head_dim": 5}, "heads of 5 values"),
    ("block", {"num_heads": 0}, "cannot share 0 keys"),
    ("eagle", {"num_heads": "4"}, "entry num_heads .* instead of a whole number"),
    ("eagle", {"num_kv_heads": 3}, "cannot share 3 keys"),
    ("eagle3", {"head_dim": 5}, "heads of 5 values"),
    ("eagle", {"kind": "eagle3"}, "has no entry"),
]


@pytest.mark.parametrize(("kind", "changes", "sentence"), MISFITS)
def test_a_head_that_does_not_fit_is_refused_before_weights_are_read(
    kind: str, changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    """Every kind of head, in a sentence that says in what it differs; the directory here has no weights."""
    config = json.loads((MODELS / f"tiny_{kind}" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load_describer(TARGET, EVENT_MODEL, tmp_path, drafter=kind)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("fault", ["cut", "of another size", "of another vocabulary"])
def test_a_block_head_whose_weights_are_not_its_config_s_is_refused(fault: str, tmp_path: Path) -> None:
    """In one sentence that names the directory; as little as a head that was saved half."""
    shutil.copytree(MODELS / "tiny_block", tmp_path / "head")
    weights, config = tmp_path / "head" / "model.safetensors", tmp_path / "head" / "config.json"
    changes = {"of another size": {"hidden_size": 64}, "of another vocabulary": {"tokens": [3, 4, 5]}}
    if fault in changes:
        config.write_text(json.dumps({**json.loads(config.read_text()), **changes[fault]}))
    else:
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=str(tmp_path / "head")) as caught:
        load_describer(TARGET, EVENT_MODEL, tmp_path / "head", drafter="block")
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_a_head_of_another_kind_is_refused() -> None:
    """With the kind that the drafter needs."""
    with pytest.raises(
        CheckpointError, match="of kind 'eagle3' and the drafter 'eagle' needs one of kind 'eagle'"
    ):
        load_describer(TARGET, EVENT_MODEL, HEAD, drafter="eagle")


def test_a_text_ends_where_generation_config_ends_it(tmp_path: Path, plain: SceneDescriber) -> None:
    """Any of a list of tokens; here the fifth of what the target would write besides."""
    events, frames = _window(0)
    tokens = plain.describe(events, frames, stamp_ns=0).tokens
    end = next(place for place in range(4, len(tokens)) if tokens[place] not in tokens[:place])
    shutil.copytree(TARGET, tmp_path / "target")
    ends = {"eos_token_id": [2, tokens[end]]}
    (tmp_path / "target" / "generation_config.json").write_text(json.dumps(ends))
    found = load_describer(tmp_path / "target", EVENT_MODEL, HEAD).describe(events, frames, stamp_ns=0)
    assert found.tokens == tokens[: end + 1]


def test_more_tokens_than_there_are_positions_are_refused_when_they_are_asked_for(
    plain: SceneDescriber,
) -> None:
    """To the token: as many as `require_room` lets through can be described, one more cannot."""
    events, frames = _window(0)
    question = "What moves?"
    with pytest.raises(GenerationError, match=r"max_new_tokens is 2048 and \d+ is the most that fits"):
        plain.require_room(("Short.", question), Limits(max_new_tokens=2048))
    rows = plain.describe(events, frames, prompt=question, stamp_ns=0).statistics.prompt_rows
    most = 1024 - rows - 40
    plain.require_room((question,), Limits(max_new_tokens=most))
    with pytest.raises(GenerationError, match=f"and {most} is the most"):
        plain.require_room((question,), Limits(max_new_tokens=most + 1))
    with pytest.raises(GenerationError, match=r"and 0 is the most .* shorten the prompt"):
        plain.require_room(("word " * 2000,), Limits(max_new_tokens=1))


def test_a_head_made_for_another_event_model_is_refused(tmp_path: Path) -> None:
    """Its event features have another width."""
    config = replace(load_draft_head(HEAD).config, event_size=7)
    save_draft_head(Eagle3Head(config), tmp_path / "head")
    with pytest.raises(CheckpointError, match="event features of 7 values"):
        load_describer(TARGET, EVENT_MODEL, tmp_path / "head", drafter="combined")


@pytest.mark.parametrize(
    ("dtype", "exact_half", "acceptance", "equality"),
    [
        ("float32", False, "exact", "exact"),
        ("bfloat16", False, "exact", "up to rounding"),
        ("bfloat16", True, "exact", "exact"),
        ("float32", False, "typical", "lossy"),
    ],
)
def test_a_description_says_how_it_equals_the_target_s_own(
    dtype: str, exact_half: bool, acceptance: str, equality: str
) -> None:
    """In half precision exact where passes have one shape."""
    describer = load_describer(TARGET, None, None, drafter="none", dtype=dtype, exact_half=exact_half)
    events, frames = _window(0)
    limits = Limits(max_new_tokens=3, acceptance=acceptance)
    found = describer.describe(events, frames, stamp_ns=0, limits=limits)
    assert found.equality == found.as_dict()["equality"] == equality
    assert found.lossless == (equality != "lossy")


@pytest.mark.parametrize(("tree_size", "equality"), [(1, "exact"), (12, "up to rounding")])
def test_a_branched_draft_is_exact_up_to_rounding(tree_size: int, equality: str) -> None:
    """Also where all passes have one shape; a chain, here of one token, is exact there."""
    describer = load_describer(
        TARGET, EVENT_MODEL, HEAD, drafter="eagle3", overlap="off", dtype="bfloat16", exact_half=True
    )
    describer.warm_up()
    describer._pace.costs = None  # measured ones may keep drafts short
    limits = Limits(max_new_tokens=12, tree_size=tree_size)
    found = describer.describe(*_window(0), stamp_ns=0, limits=limits)
    assert found.statistics.drafted > 0
    assert found.equality == equality


@pytest.mark.parametrize(("dtype", "kv_dtype"), [("float32", "int8"), ("int8", "auto"), ("int4", "float16")])
def test_drafting_is_lossless_in_every_precision(dtype: str, kv_dtype: str) -> None:
    """The text is that of the same target alone: the same weights, the same cache."""
    if dtype != "float32":
        pytest.importorskip("torchao", reason="int8 and int4 need torchao")
    drafted, alone = (
        load_describer(TARGET, EVENT_MODEL, HEAD, drafter=drafter, dtype=dtype, kv_dtype=kv_dtype)
        for drafter in ("eagle3", "none")
    )
    for index in range(3):
        events, frames = _window(index)
        found = drafted.describe(events, frames, stamp_ns=0)
        assert found.tokens == alone.describe(events, frames, stamp_ns=0).tokens
        assert found.lossless


def test_too_little_memory_is_refused_before_weights_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In one sentence; the directory here has a config and no weights."""
    (tmp_path / "config.json").write_bytes((TARGET / "config.json").read_bytes())
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1000)
    with pytest.raises(CheckpointError, match=r"^The networks need about .* fits\.$"):
        load_describer(tmp_path, None, None, drafter="none")


def test_a_target_with_the_tokenizer_of_another_is_refused(tmp_path: Path) -> None:
    """The event model's tokenizer knows no <video>: found when loading, not in the first prompt."""
    shutil.copytree(TARGET, tmp_path / "target")
    for file in EVENT_MODEL.glob("*token*.json"):
        shutil.copy(file, tmp_path / "target")
    with pytest.raises(CheckpointError, match="has no id for '<video>'"):
        load_describer(tmp_path / "target", None, None, drafter="none")


def test_an_unknown_drafter_is_refused() -> None:
    """The error lists those that there are."""
    with pytest.raises(GenerationError, match="choose one of auto, none, prompt_lookup"):
        load_describer(TARGET, EVENT_MODEL, HEAD, drafter="oracle")


def test_frames_of_any_size_are_read(describer: SceneDescriber) -> None:
    """Whatever the camera sends is resized as CLIP does."""
    image = np.zeros((480, 640, 3), np.uint8)
    assert describer.describe(Events.empty(346, 260), [Frame(0, image)] * FRAMES, stamp_ns=0).text


QUESTIONS = ("Describe the scene.", "Is there a person?", "What moves?")


@pytest.mark.parametrize("drafter", ["combined", "eagle", "none"])
def test_several_questions_are_answered_as_each_alone(drafter: str, plain: SceneDescriber) -> None:
    """Token for token; the window's frames are encoded once for all of them."""
    head = MODELS / ("tiny_eagle" if drafter == "eagle" else "tiny_eagle3")
    asked = load_describer(TARGET, EVENT_MODEL, head, drafter=drafter)
    for index in range(3):
        events, frames = _window(index)
        found = asked.describe_all(events, frames, prompts=QUESTIONS, stamp_ns=1)
        assert [answer.prompt for answer in found] == list(QUESTIONS)
        for answer in found:
            alone = plain.describe(events, frames, prompt=answer.prompt, stamp_ns=1)
            assert answer.tokens == alone.tokens
            assert answer.lossless
        assert found[0].statistics.reused_rows < FRAMES
        assert found[1].statistics.reused_rows > 8 * TINY_CLIP.tokens


@pytest.mark.parametrize("drafter", [name for name, kind in DRAFTERS.items() if kind.reads_events])
def test_events_read_beside_the_prefill_change_no_text(drafter: str, plain: SceneDescriber) -> None:
    """With overlap and pooled event tokens; the latencies say what the event model did and what was
    hidden.
    """
    kinds = DRAFTERS[drafter].head_kinds
    head = MODELS / f"tiny_{kinds[0]}" if kinds else None
    beside = load_describer(TARGET, EVENT_MODEL, head, drafter=drafter, overlap="on", event_pooling=2)
    hidden_ms = []
    for index in range(3):
        events, frames = _window(index)
        found = beside.describe(events, frames, stamp_ns=1)
        assert found.tokens == plain.describe(events, frames, stamp_ns=1).tokens
        stages = found.latency_ms
        hidden_ms.append(stages["event_hidden"])
        assert 0 <= stages["event_hidden"] <= stages["event_model"]
        assert stages["render"] + stages["event_features"] <= stages["event_model"]
        assert found.prefill_slowdown > 0.2
    assert max(hidden_ms) > 0  # where a core was free for the event model


def test_events_read_in_a_stream_of_their_own_change_no_text(
    plain: SceneDescriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a GPU with emulated streams: pixels are prepared by torch, stages timed by events, nothing
    waits for the whole device.
    """
    windows = [_window(index) for index in range(3)]
    expected = [plain.describe(events, frames, stamp_ns=1).tokens for events, frames in windows]
    EmulatedCuda(monkeypatch)
    beside = load_describer(TARGET, EVENT_MODEL, HEAD, overlap="on")
    for (events, frames), tokens in zip(windows, expected, strict=True):
        found = beside.describe(events, frames, stamp_ns=1)
        assert found.tokens == tokens
        stages = found.latency_ms
        assert min(stages["render"], stages["event_preprocess"], stages["event_features"]) > 0
        assert stages["event_hidden"] + stages["event_wait"] >= stages["event_model"] > 0


def test_the_slowdown_of_a_prefill_is_one_number_for_all_questions() -> None:
    """It compares with what the rows that were computed take alone, few or many: about 1, not the 54 of a
    second question that was taken to have read its own few rows in the whole prefill's time.
    """
    beside = load_describer(TARGET, EVENT_MODEL, HEAD, overlap="on")
    events, frames = _window(0)
    told = []
    for prompts in (QUESTIONS[:2], QUESTIONS[1:], QUESTIONS, QUESTIONS):
        found = beside.describe_all(events, frames, prompts=prompts, stamp_ns=1)
        assert len({answer.prefill_slowdown for answer in found}) == 1
        told.append(found[0].prefill_slowdown)
    assert sorted(told)[1] < 8
    alone = load_describer(TARGET, EVENT_MODEL, HEAD, overlap="off")
    found = alone.describe_all(events, frames, prompts=QUESTIONS, stamp_ns=1)
    assert {answer.prefill_slowdown for answer in found} == {1.0}


def test_a_repeated_window_costs_one_verification_until_the_stream_ends() -> None:
    """The default drafter remembers what it said, and forgets it where time jumps."""
    eagle = load_describer(TARGET, EVENT_MODEL, HEAD)
    eagle.warm_up()
    eagle._pace.costs = None  # on a busy machine a pass may seem to cost more than a whole text is worth
    events, frames = _window(4)
    first = eagle.describe(events, frames, stamp_ns=1)
    again = eagle.describe(events, frames, stamp_ns=2)
    eagle.forget_stream()
    anew = eagle.describe(events, frames, stamp_ns=3)
    assert first.tokens == again.tokens == anew.tokens
    assert again.statistics.target_passes == 1
    assert anew.statistics.target_passes == first.statistics.target_passes > 1


def test_tokens_of_another_vocabulary_are_no_drafts(tmp_path: Path) -> None:
    """A drafter that hands them over is refused with what differs; one that reads features alone is not."""
    shutil.copytree(EVENT_MODEL, tmp_path / "events")
    tokenizer = tmp_path / "events" / "tokenizer.json"
    vocabulary = json.loads(tokenizer.read_text(encoding="utf-8"))
    words = vocabulary["model"]["vocab"]
    one, other = (word for word in words if words[word] in (300, 301))
    words[one], words[other] = words[other], words[one]
    tokenizer.write_text(json.dumps(vocabulary), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"hands no tokens over.*differ in their vocabulary"):
        load_describer(TARGET, tmp_path / "events", None, drafter="eventgpt")
    load_describer(TARGET, tmp_path / "events", HEAD, drafter="eagle3")
    combined = load_describer(TARGET, tmp_path / "events", HEAD, drafter="combined", overlap="on")
    assert "differ in their vocabulary" in combined.left_out
    events, frames = _window(0)
    found = combined.describe(events, frames, stamp_ns=0, limits=Limits(max_new_tokens=8))
    assert found.drafter == "combined without eventgpt"
    alone = load_describer(TARGET, tmp_path / "events", HEAD, drafter="combined", overlap="off")
    assert (alone.drafter, alone.left_out) == ("combined", "")
