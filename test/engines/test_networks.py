"""The drafter's networks: equal to the modules that they are made of, as functions and as ONNX files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from evspec_ros.cli import main
from evspec_ros.engines import export as export_module
from evspec_ros.engines.export import OPSET, check, export
from evspec_ros.engines.networks import (
    Network,
    block,
    decoder_rows,
    drafter_networks,
    encode_events,
    head_level,
)
from evspec_ros.engines.onnx_runtime import OnnxEngine
from evspec_ros.engines.protocol import Binding, require_bindings
from evspec_ros.errors import EngineError
from evspec_ros.networks.adapters import Adapter
from evspec_ros.networks.block_head import BlockConfig, BlockHead
from evspec_ros.networks.clip import ClipConfig
from evspec_ros.networks.draft_head import DraftHead, Eagle3Config, Eagle3Head, EagleConfig, EagleHead
from evspec_ros.networks.eventgpt import EventGpt, EventGptConfig
from evspec_ros.networks.llama import KVCache, LlamaConfig

TEXT = LlamaConfig(60, 32, 48, 3, 2, 1, 16, max_positions=64)  # with grouped keys and values
CLIP = ClipConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32,
    patch_size=16, projection_dim=32,
)  # fmt: skip
TOLERANCE = 1e-5


def _lively(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2)


@pytest.fixture(scope="module", name="model")
def _model() -> EventGpt:
    torch.manual_seed(0)
    model = EventGpt(EventGptConfig(TEXT, CLIP)).eval()
    _lively(model)
    return model


def _heads() -> list[DraftHead]:
    torch.manual_seed(1)
    heads: list[DraftHead] = [
        EagleHead(EagleConfig.for_target(TEXT, 32, 5)).eval(),
        Eagle3Head(Eagle3Config.for_target(TEXT, 32, 5)).eval(),
        Eagle3Head(replace(Eagle3Config.for_target(TEXT, 32, 5), tokens=tuple(range(3, 60, 4)))).eval(),
    ]
    for head in heads:
        _lively(head)
    return heads


def _block_head() -> BlockHead:
    torch.manual_seed(2)
    head = BlockHead(replace(BlockConfig.for_target(TEXT, 32, 5), block=4)).eval()
    _lively(head)
    return head


def _every_network(model: EventGpt) -> Iterator[Network]:
    yield encode_events(model)
    yield decoder_rows(model.decoder, model.lm_head, (1, 3))
    yield block(_block_head())
    yield from (head_level(head, model.decoder.norm, model.lm_head) for head in _heads())


def _beside(cache: KVCache, rows: int, visible: Tensor | None = None) -> dict[str, Tensor]:
    """Mask and memory of new rows behind what a cache holds; visible bool [T, W], None for causal ones."""
    mask = torch.full((rows, cache.capacity + rows), -torch.inf)
    mask[:, : cache.length] = 0
    if visible is None:
        visible = torch.ones(rows, rows, dtype=torch.bool).tril()
    mask[:, cache.capacity :].masked_fill_(visible, 0)
    memory = {f"past_{part}.{layer}": of_layer for part, of_all in (("k", cache.k), ("v", cache.v))
              for layer, of_layer in enumerate(of_all)}  # fmt: skip
    return {"mask": mask, **memory}


@torch.inference_mode()
def test_event_tokens_are_the_model_s(model: EventGpt) -> None:
    """`encode_events` is `EventGpt.encode_events`."""
    images = torch.randn(5, 3, 32, 32)
    found = encode_events(model).run({"images": images})["tokens"]
    torch.testing.assert_close(found, model.encode_events(images), rtol=0, atol=0)


@pytest.mark.parametrize("rows", [1, 4])
@torch.inference_mode()
def test_rows_are_the_decoder_s(model: EventGpt, rows: int) -> None:
    """A prompt and rows behind it: logits, features, and the keys and values that the cache would hold."""
    decoder, layers = model.decoder, (0, 2, 3)
    network = decoder_rows(decoder, model.lm_head, layers)
    cache, embeddings = KVCache(TEXT, 20), torch.randn(1, 7 + rows, 32)
    empty = KVCache(TEXT, 1)
    prompt = network.run({"embeddings": embeddings[:, :7], "positions": torch.arange(7), **_beside(empty, 7)})
    decoder(embeddings[:, :7], cache)
    torch.testing.assert_close(prompt["k"], cache.k[..., :7, :], rtol=0, atol=TOLERANCE)
    found = network.run(
        {"embeddings": embeddings[:, 7:], "positions": torch.arange(7, 7 + rows), **_beside(cache, rows)}
    )
    expected = decoder(embeddings[:, 7:], cache, layers=layers)
    logits = model.lm_head(expected.hidden[0])
    torch.testing.assert_close(found["logits"], logits, rtol=0, atol=TOLERANCE)
    for layer, feature in zip(layers, expected.features, strict=True):
        torch.testing.assert_close(found[f"feature.{layer}"], feature[0], rtol=0, atol=TOLERANCE)
    for name, memory in (("k", cache.k), ("v", cache.v)):
        torch.testing.assert_close(found[name], memory[..., 7 : 7 + rows, :], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("which", [0, 1, 2])
@torch.inference_mode()
def test_a_level_is_the_head_s(model: EventGpt, which: int) -> None:
    """Nodes of a tree, which do not see each other, behind a text."""
    head, (norm, lm_head) = _heads()[which], (model.decoder.norm, model.lm_head)
    size, rows = head.config.hidden_size, 3
    cache = head.new_cache(16)
    head(torch.randn(1, 6, 32), torch.randn(1, 6, size), None, cache)
    embeddings, carried = torch.randn(1, rows, 32), torch.randn(1, rows, size)
    visible, depths = torch.eye(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.int64)
    network = head_level(head, norm, lm_head)
    given = {"embeddings": embeddings, "carried": carried, "positions": 6 + depths}
    found = network.run(given | _beside(cache, rows, visible))
    output = head(embeddings, carried, None, cache, depths, visible)[0]
    own_norm, own_head = head.readout(norm, lm_head)
    torch.testing.assert_close(found["output"], output, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(found["logits"], own_head(own_norm(output)), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(found["k"][0], cache.k[0, :, :, 6:9], rtol=0, atol=TOLERANCE)
    spread = torch.softmax(found["logits"], -1)
    assert torch.equal(found["tokens"][:, 0], spread.argmax(-1))
    torch.testing.assert_close(found["probabilities"][:, 0], spread.amax(-1))


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_every_network_is_a_graph_of_standard_operators(
    model: EventGpt, precision: str, tmp_path: Path
) -> None:
    """Of ONNX's own operators and of no control flow, in an opset that TensorRT 10.3 knows; what it computes
    is what torch does, whose numbers it has in its own precision.
    """
    kinds = {"float32": 1, "float16": 10, "bfloat16": 16}
    for network in _every_network(model):
        path = tmp_path / f"{network.name}.onnx"
        export(network, path, precision)
        row = check(path, network)
        assert (row.network, row.precision) == (network.name, precision)
        graph = onnx.load(path)
        assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", OPSET)]
        assert not {"Loop", "If", "Scan"} & {node.op_type for node in graph.graph.node}
        assert kinds[precision] in {weight.data_type for weight in graph.graph.initializer}
        assert [one.name for one in graph.graph.input] == list(network.inputs)
        assert [one.name for one in graph.graph.output] == list(network.outputs)


@torch.inference_mode()
def test_a_graph_takes_other_numbers_of_rows(model: EventGpt, tmp_path: Path) -> None:
    """Rows and memory are open: a graph that was traced over three rows computes eleven."""
    network = decoder_rows(model.decoder, model.lm_head)
    export(network, tmp_path / "rows.onnx")
    cache = KVCache(TEXT, 30)
    model.decoder(torch.randn(1, 9, 32), cache)
    inputs = {"embeddings": torch.randn(1, 11, 32), "positions": torch.arange(9, 20), **_beside(cache, 11)}
    expected = network.run(inputs)
    found = {name: torch.empty(tensor.shape) for name, tensor in expected.items()}
    OnnxEngine(tmp_path / "rows.onnx", 1).bind(inputs, found).run()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=TOLERANCE)


def test_large_weights_lie_beside_the_graph(
    model: EventGpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit in one file of their own, which goes when the next export is small again."""
    network, path = encode_events(model), tmp_path / "encode_events.onnx"
    monkeypatch.setattr(export_module, "_LARGEST_FILE", 10_000)
    export(network, path)
    assert path.stat().st_size < 100_000 < (tmp_path / "encode_events.onnx.data").stat().st_size
    assert check(path, network).size > 100_000
    monkeypatch.undo()
    export(network, path)
    assert [file.name for file in tmp_path.iterdir()] == ["encode_events.onnx"]
    check(path, network)


def test_a_file_of_another_model_is_refused(model: EventGpt, tmp_path: Path) -> None:
    """One of other sizes by its shapes, one of other weights by its numbers, and what is no graph at all."""
    path = tmp_path / "block.onnx"
    head, other = _block_head(), BlockHead(replace(BlockConfig.for_target(TEXT, 32, 5), block=5)).eval()
    export(block(other), path)
    with pytest.raises(EngineError, match=r"features as float32 \[6, 9.\], .* at hand has float32 \[5, 9"):
        check(path, block(head))
    export(encode_events(model), path)
    with pytest.raises(EngineError, match="wants a tensor 'images'"):
        check(path, block(head))
    export(block(head), path)
    _lively(head)
    with pytest.raises(EngineError, match="does not compute what the model at hand does"):
        check(path, block(head))
    path.write_bytes(b"no graph")
    with pytest.raises(EngineError, match="no ONNX file that can be read"):
        check(path, block(head))
    with pytest.raises(EngineError, match="no ONNX file that can be read"):
        check(tmp_path / "missing.onnx", block(head))


def test_a_head_that_no_engine_runs_is_refused(model: EventGpt) -> None:
    """The adapters of the design paper."""
    adapter = Adapter.__new__(Adapter)
    with pytest.raises(EngineError, match="kind Adapter runs on torch alone"):
        drafter_networks(model, [adapter], model)  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_written_is_named(model: EventGpt, tmp_path: Path) -> None:
    """A file lies where the folder should be."""
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=r"file/x\.onnx cannot be written \("):
        export(encode_events(model), tmp_path / "file" / "x.onnx")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": torch.zeros(2, 3)}, "wants a tensor 'y', and those at hand are x;"),
        ({"x": torch.zeros(2, 3), "y": torch.zeros(3)}, r"wants y as float32 \[T\], .* has float32 \[3\]"),
        ({"x": torch.zeros(2, 4), "y": torch.zeros(2)}, r"wants x as float32 \[T, 3\]"),
        ({"x": torch.zeros(2, 3).half(), "y": torch.zeros(2)}, r"has float16 \[2, 3\]"),
        ({"x": torch.zeros(2, 3), "y": torch.zeros(2), "z": torch.zeros(2)}, "has no tensor 'z'"),
    ],
)
def test_bindings_are_checked(tensors: dict[str, Tensor], message: str) -> None:
    """Names, shapes, with a name in the place of a size meaning one size, and types."""
    expected = [Binding("x", torch.float32, ("T", 3)), Binding("y", torch.float32, ("T",))]
    with pytest.raises(EngineError, match=message):
        require_bindings("The graph", expected, [], tensors, {})


def test_the_package_s_networks_are_exported_and_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`evspec export --json` writes them, `--check` compares them, and a file that is missing fails."""
    assert main(["export", "--out", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    names = ["encode_events", "decoder_rows", "eagle3_level", "block"]
    assert [row["network"] for row in rows] == names
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(f"{name}.onnx" for name in names)
    assert all(row["difference"] < 1e-4 for row in rows)
    assert main(["export", "--out", str(tmp_path), "--check"]) == 0
    assert "eagle3_level" in capsys.readouterr().out
    (tmp_path / "block.onnx").unlink()
    assert main(["export", "--out", str(tmp_path), "--check", "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "block.onnx is no ONNX file that can be read" in err
