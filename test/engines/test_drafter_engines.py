"""What runs the drafter: every engine drafts what torch drafts, and which one is taken is said with why."""

from __future__ import annotations

import json
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from evspec_ros.cli import main
from evspec_ros.engines import drafter as drafter_module
from evspec_ros.engines import onnx_runtime, plans, tensorrt_library
from evspec_ros.engines.block import EngineBlock, TorchBlock
from evspec_ros.engines.decoder import Rows, TorchDecoder
from evspec_ros.engines.draft_head import TorchDraftHead
from evspec_ros.engines.drafter import EventEncoder, drafter_engines
from evspec_ros.engines.export import graph
from evspec_ros.engines.networks import Network, block, decoder_rows, encode_events
from evspec_ros.engines.onnx_runtime import OnnxEngine
from evspec_ros.engines.plans import Delivered, Order
from evspec_ros.engines.rows import LevelHead, RowsDecoder, RowsNetwork
from evspec_ros.engines.torch_engine import TorchEngine
from evspec_ros.errors import EngineError
from evspec_ros.events.rendering import render_event_images
from evspec_ros.events.types import Events
from evspec_ros.frames.clip import ClipPreprocessor
from evspec_ros.frames.types import Frame
from evspec_ros.loading import load_describer
from evspec_ros.networks.block_head import BlockConfig, BlockHead
from evspec_ros.networks.checkpoints import (
    load_draft_head,
    load_eventgpt,
    load_preprocessor_config,
    load_video_llava,
)
from evspec_ros.networks.draft_head import DraftHead, Eagle3Config, Eagle3Head
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.llama import KVCache
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.simulation.samples import sample_scene
from evspec_ros.speculative.eventgpt import EventWriter

MODELS = Path(__file__).parents[2] / "models"
TARGET, EVENT_MODEL = MODELS / "tiny_video_llava", MODELS / "tiny_eventgpt"
TOLERANCE = 1e-4


def _onnx(network: Network) -> OnnxEngine:
    return OnnxEngine(graph(network), 1)


ENGINES = {"torch": TorchEngine, "onnxruntime": _onnx}


@pytest.fixture(scope="module", name="model")
def _model() -> EventGpt:
    return load_eventgpt(EVENT_MODEL)


@pytest.fixture(scope="module", name="target")
def _target() -> VideoLlava:
    return load_video_llava(TARGET)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ENGINES)
@torch.inference_mode()
def test_events_are_encoded_as_by_the_model(model: EventGpt, name: str) -> None:
    """Window after window; what an earlier one gave is not overwritten."""
    network = encode_events(model)
    encoder = EventEncoder(network, ENGINES[name](network))
    windows = [_random(*network.inputs["images"].shape, seed=seed) for seed in range(3)]
    for found, images in zip([encoder.encode(window) for window in windows], windows, strict=True):
        torch.testing.assert_close(found, model.encode_events(images), rtol=0, atol=TOLERANCE)


@pytest.fixture(params=[False, True], ids=["as many rows", "padded as on a GPU"])
def _rows_are_padded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowsNetwork, "_captures", request.param)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.usefixtures("_rows_are_padded")
@torch.inference_mode()
def test_rows_on_a_cache_are_the_decoder_s(model: EventGpt, name: str) -> None:
    """A prompt, a step, a tree whose branch is kept, rows behind it: logits, features and the cache."""
    size, layers = model.config.text.hidden_size, (2, 4)
    engines = (
        TorchDecoder(model.decoder, model.lm_head),
        RowsDecoder("test", model.decoder, model.lm_head, ENGINES[name]),
    )
    caches = [KVCache(model.config.text, 48) for _ in engines]
    prompt, visible = _random(12, size), torch.eye(3, dtype=torch.bool)
    visible[:, 0] = True
    tree = Rows(torch.tensor([7, 8, 9]), torch.tensor([0, 1, 1]), visible)
    for step in ("prompt", Rows(torch.tensor([5])), tree, "keep", Rows(torch.tensor([3, 4])), "back",
                 Rows(torch.tensor([6]))):  # fmt: skip
        if step == "keep":
            for cache in caches:
                cache.keep(torch.tensor([0, 2]))
            continue
        if step == "back":
            for cache in caches:
                cache.truncate(cache.length - 1)
            continue
        theirs, ours = (
            engine.run(step, cache, layers) if isinstance(step, Rows) else engine.read(prompt, cache, layers)
            for engine, cache in zip(engines, caches, strict=True)
        )
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=TOLERANCE)
        for one, other in zip(ours.features, theirs.features, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)
    length = caches[0].length
    assert length == caches[1].length == 12 + 1 + 2 + 1 + 1
    for one, other in ((caches[1].k, caches[0].k), (caches[1].v, caches[0].v)):
        torch.testing.assert_close(one[..., :length, :], other[..., :length, :], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@pytest.mark.usefixtures("_rows_are_padded")
@torch.inference_mode()
def test_levels_on_a_cache_are_the_head_s(target: VideoLlava, name: str, kind: str) -> None:
    """A text, then levels of a tree over it, each of which sees its ancestors alone."""
    head = load_draft_head(MODELS / f"tiny_{kind}")
    assert isinstance(head, DraftHead)
    engines = (
        TorchDraftHead(head, target.decoder, target.lm_head),
        LevelHead(head, target.decoder, target.lm_head, ENGINES[name]),
    )
    caches = [engine.new_cache(64) for engine in engines]
    size, width = head.config.hidden_size, target.config.text.hidden_size
    layers = len(head.feature_layers(target.config.text.num_layers))
    for engine, cache in zip(engines, caches, strict=True):
        engine.read_prompt(_random(1, 6, width), _random(6, layers * width), _random(22, 192), cache)
        engine.read([5, 6, 7], _random(3, layers * width), cache)
    levels = (
        ([8, 9], torch.zeros(2, dtype=torch.int64), torch.eye(2, dtype=torch.bool)),
        ([10], torch.tensor([-1]), torch.tensor([[False, True, True]])),
    )
    for ids, depths, visible in levels:
        carried = _random(len(ids), size, seed=1)
        theirs, ours = (
            engine.run(ids, carried, cache, depths, visible)
            for engine, cache in zip(engines, caches, strict=True)
        )
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(ours.output, theirs.output, rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=0, atol=TOLERANCE)
    (last,) = engines[1].run_chain(4, _random(1, size), caches[1])
    assert last.tokens.shape[0] == 1


@torch.inference_mode()
def test_a_block_runs_on_any_engine(target: VideoLlava) -> None:
    """On torch by the protocol as by the module itself."""
    head = load_draft_head(MODELS / "tiny_block")
    assert isinstance(head, BlockHead)
    engine = TorchEngine(block(head))
    engines = TorchBlock(head, target.decoder), EngineBlock(head, target.decoder, lambda _: engine)
    rows, events = _random(9, 3 * target.config.text.hidden_size), _random(22, 192)
    said = []
    for one in engines:
        cache = one.new_cache(100)
        one.read(rows[:5], events, cache)
        one.run(rows[5:7], 4, cache)
        said.append(one.run(rows[7:], 9, cache))
    np.testing.assert_array_equal(said[0].tokens, said[1].tokens)
    torch.testing.assert_close(said[0].logits, said[1].logits, rtol=0, atol=TOLERANCE)


def test_an_engine_of_another_network_is_refused(model: EventGpt, target: VideoLlava) -> None:
    """When it is made, before the first window."""
    other = decoder_rows(target.decoder, target.lm_head)
    with pytest.raises(EngineError, match=r"wants a tensor 'past_k\.4'.* export it again"):
        RowsDecoder("test", model.decoder, model.lm_head, lambda _: _onnx(other)).describe()
    head = load_draft_head(MODELS / "tiny_block")
    assert isinstance(head, BlockHead)
    with pytest.raises(EngineError, match=r"wants a tensor 'images'"):
        EngineBlock(head, target.decoder, lambda _: _onnx(encode_events(model)))


def test_heads_that_an_operator_does_not_take_run_all_the_same(target: VideoLlava) -> None:
    """Eight values a head, by the standard graph; a block head of few positions, by torch."""
    engines = drafter_engines("onnxruntime", (target.lm_head,))
    narrow = Eagle3Config.for_target(replace(target.config.text, head_dim=8, num_heads=32), 192, 22)
    assert isinstance(engines.head(Eagle3Head(narrow), target.decoder, target.lm_head), LevelHead)
    short = replace(BlockConfig.for_target(target.config.text, 192, 22), max_positions=20)
    assert type(engines.block(BlockHead(short), target.decoder)) is TorchBlock


@torch.inference_mode()
def test_the_event_model_writes_the_same_tokens(model: EventGpt) -> None:
    """On held-out scenes: encoder, prompt and steps by torch and by ONNX Runtime, token for token."""
    texts: dict[str, list[list[int]]] = {}
    for backend in ("torch", "onnxruntime"):
        engines = drafter_engines(backend, (model,))
        encoder, writer = engines.encoder(model), EventWriter(model, engines=engines)
        for index in range(6):
            events = encoder.encode(_pixels(index))
            writer.read_prompt(((1, 300), (310, 320, 330)), events)
            while len(writer.tokens) < 24:
                writer.append([writer.next_tokens[-1][0]])
            texts.setdefault(backend, []).append(list(writer.tokens))
    assert texts["torch"] == texts["onnxruntime"]
    assert len({tuple(text) for text in texts["torch"]}) > 1


def _window(index: int) -> tuple[Events, list[Frame]]:
    """A held-out scene's last 50 ms of events and its frames."""
    _, camera, times = sample_scene("held_out", index)
    return camera.events(0.0), [Frame(round((1 + time) * 1e9), camera.image(time)) for time in times]


def _pixels(index: int) -> Tensor:
    """A held-out scene's images as the event model reads them."""
    read = ClipPreprocessor.from_config(load_preprocessor_config(EVENT_MODEL))
    return torch.from_numpy(read(list(render_event_images(_window(index)[0]))))


@pytest.mark.parametrize(("drafter", "head"), [("combined", "eagle3"), ("block", "block"), ("eventgpt", "")])
def test_descriptions_and_drafts_do_not_depend_on_the_engine(drafter: str, head: str) -> None:
    """On held-out scenes the same texts, as ever, and in float32 the same tokens drafted and accepted."""
    path = MODELS / f"tiny_{head}" if head else None
    describers = [
        load_describer(TARGET, EVENT_MODEL, path, drafter=drafter, overlap="off", drafter_backend=backend)
        for backend in ("torch", "onnxruntime")
    ]
    assert [describer.drafting.split()[0] for describer in describers] == ["torch", "onnxruntime"]
    for describer in describers:
        describer.warm_up()
        describer._pace.costs = None  # measured ones decide how much is drafted, and differ
    for index in range(3):
        events, frames = _window(index)
        one, other = (describer.describe(events, frames, stamp_ns=0) for describer in describers)
        assert one.tokens == other.tokens
        for name in ("drafted", "accepted", "drafted_by_position", "accepted_by_position"):
            assert getattr(one.statistics, name) == getattr(other.statistics, name)


def test_the_choice_is_made_and_said(model: EventGpt, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU in float32 ONNX Runtime, else torch; what cannot run here is refused when asked for."""
    assert str(drafter_engines("auto", (model, None))) == "onnxruntime (faster than torch on the CPU)"
    assert str(drafter_engines("torch", (model,))) == "torch (asked for)"
    assert str(drafter_engines("auto", (None,))) == "torch (nothing has to be run)"
    half = load_eventgpt(EVENT_MODEL, torch.bfloat16)
    assert str(drafter_engines("auto", (half,))) == "torch (the precision is bfloat16, not float32)"
    with pytest.raises(EngineError, match="no drafter_backend 'abacus'; choose one of auto, torch, onnx"):
        drafter_engines("abacus", (model,))
    with pytest.raises(EngineError, match="tensorrt cannot run here: the networks are not on a GPU; set it"):
        drafter_engines("tensorrt", (model,))
    with pytest.raises(EngineError, match="onnxruntime cannot run here: the precision is bfloat16"):
        drafter_engines("onnxruntime", (half,))
    monkeypatch.setattr(drafter_module, "_LARGEST_GRAPH", 1000)
    assert "holds at most 2 GB" in drafter_engines("auto", (model,)).reason


def test_what_tensorrt_does_not_compile_runs_in_torch(
    model: EventGpt, caplog: pytest.LogCaptureFixture
) -> None:
    """With a sentence that says why, unless TensorRT was asked for by name. Here it cannot run anything."""
    if torch.cuda.is_available():
        pytest.skip("TensorRT may run here, and this test is about where it does not")
    images = encode_events(model).inputs["images"]
    chosen = drafter_module.DrafterEngines("tensorrt", "the fastest on this GPU")
    tokens = chosen.encoder(model).encode(images)
    torch.testing.assert_close(tokens, model.encode_events(images), rtol=0, atol=TOLERANCE)
    (record,) = caplog.records
    assert record.getMessage().startswith("torch runs encode_events instead: TensorRT cannot run")
    with pytest.raises(EngineError, match="TensorRT cannot run encode_events here"):
        drafter_module.DrafterEngines("tensorrt", "asked for").encoder(model)


class _Compiled:
    """In the place of TensorRT's engine, which needs a GPU: ONNX Runtime on the graphs that it is given."""

    def __init__(self, plan: bytes, _: str) -> None:
        self.refits = 0
        self._engine = OnnxEngine(onnx.load_from_string(bytes(plan)), 1)

    def refit(self, graph: Path) -> None:
        self.refits += 1
        self._engine = OnnxEngine(graph, 1)

    def bind(self, inputs: Any, outputs: Any) -> Any:
        return self._engine.bind(inputs, outputs)

    def describe(self) -> str:
        return "compiled"


@pytest.fixture(name="built")
def _built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the networks that were compiled, into graphs as ONNX has them, in a cache of their own."""
    if tensorrt_library.find_library() is None:
        pytest.skip("needs TensorRT for RTX, which is not installed: pip install 'evspec_ros[tensorrt]'")
    from evspec_ros.engines import tensorrt

    names: list[str] = []

    def compiled(order: Order, _recipe: Any, _directory: Any, report: Any) -> Delivered:
        names.append(order.network.name)
        for share in (0.0, 0.5, 1.0):
            report(share)
        return Delivered(graph(order.network).SerializeToString(), ("8.9",), None, 1.0, None)

    monkeypatch.setattr(plans, "_compiled", compiled)
    monkeypatch.setattr(plans, "plan_directory", lambda: tmp_path)
    monkeypatch.setattr(plans, "require_running", lambda _: None)
    monkeypatch.setattr(tensorrt_library, "gpu", lambda: (8, 9))
    monkeypatch.setattr(tensorrt, "gpu", lambda: (8, 9))
    monkeypatch.setattr(tensorrt, "TensorRtEngine", _Compiled)
    return names


@pytest.mark.parametrize("kind", ["eagle3", "block"])
@torch.inference_mode()
def test_a_better_head_s_weights_go_into_the_plan(target: VideoLlava, built: list[str], kind: str) -> None:
    """A head that learns is compiled once, a restart with what it has learnt among it; each time the engine
    drafts with the weights at hand.
    """
    first, better = load_draft_head(MODELS / f"tiny_{kind}"), load_draft_head(MODELS / f"tiny_{kind}")
    for weight in better.parameters():
        weight.mul_(1.25)
    head = load_draft_head(MODELS / f"tiny_{kind}")
    for _ in range(2):
        engines = drafter_module.DrafterEngines("tensorrt", "asked for", learns=True)
        for weights in (first, better, better):
            head.load_state_dict(weights.state_dict())
            _require_same_drafts(engines, head, target)
    assert len(built) == 1
    ((engine, _),) = engines._refittable.values()
    assert engine.refits == 2  # the second start's for the plan in the cache, and the better head's


def _require_same_drafts(engines: drafter_module.DrafterEngines, head: Any, target: VideoLlava) -> None:
    """As torch's."""
    torch_engines = drafter_module.DrafterEngines("torch", "asked for")
    layers = len(head.feature_layers(target.config.text.num_layers))
    features = _random(3, layers * target.config.text.hidden_size)
    logits = []
    for each in (engines, torch_engines):
        if isinstance(head, BlockHead):
            drafts = each.block(head, target.decoder)
            logits.append(drafts.run(features, 7, drafts.new_cache(64)).logits.clone())
        else:
            levels = each.head(head, target.decoder, target.lm_head)
            logits.append(levels.read([5, 6, 7], features, levels.new_cache(64)).logits.clone())
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=TOLERANCE)


def test_compiling_is_told_with_the_time_left(
    model: EventGpt, built: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the log from the beginning on, and not at a start that finds the plan."""
    monkeypatch.setattr(drafter_module, "TOLD_EVERY_S", 0.0)
    caplog.set_level(logging.INFO, "evspec_ros")
    for _ in range(2):
        drafter_module.DrafterEngines("tensorrt", "asked for").encoder(model)
    told = [record.getMessage() for record in caplog.records]
    assert built == ["encode_events"]
    assert [re.sub(r"about \d+ s", "about N s", line) for line in told] == [
        "Compiling encode_events with TensorRT, which is done once: 0 %.",
        "Compiling encode_events with TensorRT, which is done once: 50 %, about N s left.",
        "Compiling encode_events with TensorRT, which is done once: 100 %, about N s left.",
    ]


def test_without_onnx_runtime_torch_does_all(model: EventGpt, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` says why; asked for by name, or for a graph, one sentence says what to install."""
    monkeypatch.setattr(onnx_runtime, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert str(drafter_engines("auto", (model,))).startswith("torch (onnxruntime cannot be imported: pip")
    described = load_describer(TARGET, EVENT_MODEL, MODELS / "tiny_eagle3")
    assert described.execution.startswith("torch ")
    with pytest.raises(EngineError, match="ONNX Runtime is not installed"):
        _onnx(encode_events(model))
    with pytest.raises(EngineError, match="drafter_backend onnxruntime cannot run here: onnxruntime cannot"):
        drafter_engines("onnxruntime", (model,))


def test_a_provider_that_is_missing_is_named(model: EventGpt) -> None:
    """Of an ONNX Runtime for the CPU alone."""
    with pytest.raises(EngineError, match="has no CUDAExecutionProvider"):
        OnnxEngine(graph(encode_events(model)), 1, provider="cuda")


def test_the_bench_tells_every_network(capsys: pytest.CaptureFixture[str]) -> None:
    """One row for each network and shape, as numbers and as a table."""
    assert main(["bench", "engines", "--repetitions", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["network"], row["shape"]) for row in rows] == [
        ("encode_events", "5x3x64x64"),
        ("decoder_rows", "T=640 C=1"),
        ("decoder_rows", "T=1 C=640"),
        ("eagle3_level", "T=4 C=640"),
        ("block", "C=640"),
    ]
    names = {"network", "shape", "backend", "precision", "ms", "torch_ms", "ratio", "build_s", "plan_mb"}
    assert all(set(row) == names and row["backend"] == "onnxruntime" for row in rows)
    assert all(row["ratio"] == pytest.approx(row["torch_ms"] / row["ms"]) for row in rows)
    assert main(["bench", "engines", "--repetitions", "1"]) == 0
    assert "encode_events" in capsys.readouterr().out
