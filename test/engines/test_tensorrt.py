"""TensorRT: every network is compiled by the real library, and what goes wrong is said in one sentence.

TensorRT for RTX compiles without a GPU; where its wheel is not installed, these tests are skipped and say so.
Running a plan needs a GPU that the library supports.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from evspec_ros import cli
from evspec_ros.engines import networks, plans, tensorrt_library
from evspec_ros.engines.export import export
from evspec_ros.engines.export import graph as onnx_graph
from evspec_ros.engines.networks import Network
from evspec_ros.engines.onnx_runtime import OnnxEngine
from evspec_ros.engines.plans import Order, PlanCache, digest
from evspec_ros.engines.tensorrt_library import RTX, find_library, obstacle, parse_capability
from evspec_ros.errors import EngineError
from evspec_ros.evaluation.engine_builds import bench_builds
from evspec_ros.evaluation.engine_check import compare
from evspec_ros.networks.checkpoints import load_draft_head, load_eventgpt, load_video_llava
from evspec_ros.networks.clip import CLIP_L_14_336
from evspec_ros.simulation.recorded_scene import record_scene

library = find_library()
if library is None or library.__name__ != RTX:
    pytest.skip(
        "needs TensorRT for RTX, which is not installed: pip install 'evspec_ros[tensorrt]'",
        allow_module_level=True,
    )

from evspec_ros.engines import tensorrt  # noqa: E402 (it needs the library)
from evspec_ros.engines.tensorrt import Recipe, TensorRtEngine, build  # noqa: E402

MODELS = Path(__file__).parents[2] / "models"
CAPABILITIES = ((8, 6), (8, 9), (12, 0))
TINY = ("encode_events", "decoder_rows", "block", "eagle", "eagle3")


@pytest.fixture(scope="module")
def tiny() -> dict[str, Network]:
    """The networks of the tiny pair, the levels of both eagle heads among them."""
    event_model = load_eventgpt(MODELS / "tiny_eventgpt")
    target = load_video_llava(MODELS / "tiny_video_llava")
    block, eagle, eagle3 = (load_draft_head(MODELS / f"tiny_{kind}") for kind in ("block", "eagle", "eagle3"))
    return {
        "encode_events": networks.encode_events(event_model),
        "decoder_rows": networks.decoder_rows(event_model.decoder, event_model.lm_head),
        "block": networks.block(block),
        "eagle": networks.head_level(eagle, target.decoder.norm, target.lm_head),
        "eagle3": networks.head_level(eagle3, target.decoder.norm, target.lm_head),
    }


class _Double(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((4,), factor))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x * self.factor,)


def double(factor: float = 2.0) -> Network:
    """A network that is compiled in no time."""
    profile = {"x": ((1, 4), (2, 4), (8, 4))}
    return Network("double", _Double(factor), {"x": torch.ones(2, 4)}, ("y",), {"x": {0: "N"}}, (profile,))


def order(network: Network | None = None, **settings: Any) -> Order:
    """For one capability, unless others are named."""
    return Order(network or double(), **{"precision": "float32", "capabilities": ((8, 9),), **settings})


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    """An empty one."""
    return PlanCache(tmp_path / "plans")


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[Path]:
    """The small network as an ONNX file."""
    export(double(), tmp_path / "double.onnx")
    return tmp_path / "double.onnx"


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_every_network_of_the_tiny_pair_is_compiled(
    tiny: dict[str, Network], cache: PlanCache, name: str, precision: str
) -> None:
    """By the real TensorRT for RTX, for 8.6, 8.9 and 12.0 in one plan."""
    found = cache.get(Order(tiny[name], precision, CAPABILITIES))
    assert found.build_s is not None
    assert found.capabilities == ("8.6", "8.9", "12.0")
    weights = sum(each.numel() for each in tiny[name].module.parameters())
    assert found.path is not None
    assert found.path.stat().st_size == len(found.plan) > weights


def test_int8_graphs_are_calibrated_and_compiled(
    cache: PlanCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a recording's windows: as ONNX files, which are checked, and as plans."""
    record_scene(tmp_path / "scene", 7, 2.0)
    command = ["export", "--int8", str(tmp_path / "scene"), "--json"]
    assert cli.main([*command, "--out", str(tmp_path / "onnx")]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["network"]: row["precision"] for row in rows} == dict.fromkeys(
        ("encode_events", "decoder_rows", "eagle3_level", "block"), "int8"
    )
    for row in rows:
        kinds = {
            weight.data_type == onnx.TensorProto.INT8
            for weight in onnx.load(row["path"]).graph.initializer
            if len(weight.dims) > 1 and math.prod(weight.dims) > 1000
        }
        assert True in kinds
    compile_it = [*command, "--backend", "tensorrt", "--compute-capability", "8.9"]
    compile_it += ["--out", str(cache.directory)]
    assert cli.main(compile_it) == 0
    assert {row["precision"] for row in json.loads(capsys.readouterr().out)["rows"]} == {"float32, int8"}
    assert [entry.int8 for entry in cache.entries()] == [True] * 4
    assert cli.main([*command, "--out", str(tmp_path / "onnx"), "--precision", "bfloat16"]) == 1
    assert "calibrates no bfloat16 graph" in capsys.readouterr().err


def test_an_int8_plan_is_kept_and_asked_for(tiny: dict[str, Network], cache: PlanCache) -> None:
    """It serves whoever has no samples; where there is none, one sentence says how it is made."""
    network = tiny["encode_events"]
    wanted = order(network, int8=True)
    with pytest.raises(EngineError, match=r"no int8 plan of encode_events .*--int8 RECORDING\), or choose"):
        cache.get(wanted)
    made = cache.get(replace(wanted, calibration=[network.inputs]))
    assert cache.get(wanted).path == made.path
    assert cache.get(order(network)).path != made.path


@pytest.mark.slow
def test_full_width_networks_are_compiled() -> None:
    """4,096 wide, in float16: the event encoder, EventGPT's rows, the block head, the eagle3 level; a plan
    holds the weights, and the estimate of the memory that building takes is not exceeded.
    """
    tower = replace(CLIP_L_14_336, num_hidden_layers=2, image_size=112)
    rows = bench_builds(1, CAPABILITIES, tower)
    assert [row.network for row in rows] == ["encode_events", "decoder_rows", "block", "eagle3_level"]
    assert all(row.plan_mb > 90 for row in rows)
    for row in rows:
        estimated = (tensorrt.BASE_BYTES + tensorrt.BYTES_A_BYTE * row.plan_mb * 2**20) / 2**20
        assert row.memory_mb is not None
        assert row.memory_mb < estimated


def test_the_command_compiles_the_pair_for_named_gpus(
    cache: PlanCache, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row a network; a second call compiles nothing, and the doctor lists what there is and for whom."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.directory))
    command = ["export", "--backend", "tensorrt", "--precision", "float16", "--json"]
    command += ["--compute-capability", "8.6", "--compute-capability", "8.9"]
    for compiled in (True, False):
        assert cli.main(command) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert len(rows) == 4
        assert all((row["build_s"] is not None) == compiled for row in rows)
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["plans"]
    assert {plan["network"] for plan in found} == {row["network"] for row in rows}
    assert all(plan["capabilities"] == ["8.6", "8.9"] for plan in found)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--compute-capability", "9.0"], "does not compile for compute capability 9.0 here, only for 7.5"),
        ([], "name one by --compute-capability"),
        (["--check", "--compute-capability", "8.9"], "cannot run encode_events here: torch sees no GPU"),
    ],
)
def test_the_command_says_what_it_cannot_do(
    arguments: list[str], told: str, cache: PlanCache, capsys: pytest.CaptureFixture[str]
) -> None:
    """An H100's capability, none at all, plans to be run without a GPU."""
    command = ["export", "--backend", "tensorrt", "--out", str(cache.directory), *arguments]
    assert cli.main(command) == 1
    assert told in " ".join(capsys.readouterr().err.split())


def test_the_command_says_that_tensorrt_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what to install."""
    monkeypatch.setattr(tensorrt_library, "find_library", lambda: None)
    assert cli.main(["export", "--backend", "tensorrt", "--compute-capability", "8.9"]) == 1
    assert "TensorRT is not installed: install it (pip install" in capsys.readouterr().err


def test_a_plan_is_compared_with_torch(tiny: dict[str, Network]) -> None:
    """As with another engine, ONNX Runtime: the same numbers, and times of both; wrong weights are seen."""
    found = compare(tiny["block"], OnnxEngine(onnx_graph(tiny["block"]), 1))
    assert found.difference < 1e-4
    assert min(found.ms, found.torch_ms) > 0
    assert compare(double(2.0), OnnxEngine(onnx_graph(double(3.0)), 1)).difference == pytest.approx(0.5)


def test_progress_runs_from_the_beginning_to_the_end(graph: Path) -> None:
    """It is told often, never runs backwards by much and ends near 1."""
    shares: list[float] = []
    build(Recipe(graph, double().profiles, ((8, 9),)), shares.append)
    assert len(shares) > 10
    assert shares[0] < 0.2
    assert 0.6 < shares[-1] <= 1


def test_an_interruption_ends_a_build(graph: Path) -> None:
    """What the report raises comes out of `build`, and the next one is compiled."""

    def stop(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(Recipe(graph, double().profiles, ((8, 9),)), stop)
    assert len(build(Recipe(graph, double().profiles, ((8, 9),)))) > 0


@pytest.mark.parametrize(("domain", "operator"), [("com.microsoft", "GroupQueryAttention"), ("", "Unique")])
def test_an_operator_that_tensorrt_does_not_know_ends_the_build(
    tmp_path: Path, domain: str, operator: str
) -> None:
    """In one sentence with the operator's name: ONNX Runtime's own one, and a standard one."""
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    made = helper.make_graph([node], "foreign", sides[:1], sides[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(made, opset_imports=opsets), tmp_path / "foreign.onnx")
    with pytest.raises(EngineError, match=rf"cannot read .*{operator}.*export it again") as caught:
        build(Recipe(tmp_path / "foreign.onnx", (), ((8, 9),)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no graph at all", None])
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Empty, of another kind, missing."""
    file = tmp_path / "some.onnx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(EngineError, match=r"some\.onnx.*export it again"):
        build(Recipe(file, (), ((8, 9),)))


def test_missing_weights_are_named(graph: Path) -> None:
    """Of a graph whose weights lie beside it."""
    onnx.save(onnx.load(graph), graph, save_as_external_data=True, location="w.data", size_threshold=0)
    assert tensorrt.graph_files(graph) == [graph, graph.with_name("w.data")]
    graph.with_name("w.data").unlink()
    with pytest.raises(EngineError, match=r"w\.data, which is not there"):
        build(Recipe(graph, double().profiles, ((8, 9),)))


@pytest.mark.parametrize("shapes", [((1, 3), (1, 3), (1, 3)), ((4, 4), (1, 4), (8, 4))])
def test_shapes_of_another_model_are_refused(graph: Path, shapes: Any) -> None:
    """Another width; a usual shape below the least."""
    with pytest.raises(EngineError, match=r"double\.onnx"):
        build(Recipe(graph, ({"x": shapes},), ((8, 9),)))


@pytest.mark.parametrize("capability", [(9, 0), (8, 7), (6, 1)])
def test_a_gpu_that_tensorrt_for_rtx_does_not_support_is_refused(graph: Path, capability: Any) -> None:
    """H100 and H200, Jetson Orin, a GTX 1080: with the ones that it does support."""
    with pytest.raises(EngineError, match=r"does not compile .*8\.6, 8\.9, 12\.0"):
        build(Recipe(graph, double().profiles, (capability,)))


def test_without_a_gpu_a_capability_has_to_be_named(graph: Path) -> None:
    """And an engine whose weights are exchanged cannot be compiled at all."""
    with pytest.raises(EngineError, match="no GPU here to compile for: name one by --compute-capability"):
        build(Recipe(graph, double().profiles))
    with pytest.raises(EngineError, match="exchanged"):
        build(Recipe(graph, double().profiles, ((8, 9),), refittable=True))


def test_too_little_memory_is_said_before_the_build(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much it takes and how much there is."""
    monkeypatch.setattr(tensorrt, "free_bytes", lambda _: 300 * 2**20)
    with pytest.raises(EngineError, match=r"takes about 0\.5 GiB of memory and 0\.3 GiB are free"):
        build(Recipe(graph, double().profiles, ((8, 9),)))


def test_a_plan_does_not_run_where_there_is_no_gpu(cache: PlanCache) -> None:
    """One sentence that names another way."""
    plan = cache.get(order()).plan
    with pytest.raises(EngineError, match=r"cannot run double here: torch sees no GPU; set another backend"):
        TensorRtEngine(plan, "double")


@pytest.mark.parametrize("broken", [slice(0, 100), slice(1, None), slice(0, 0)])
def test_a_plan_that_does_not_load_is_refused(
    cache: PlanCache, monkeypatch: pytest.MonkeyPatch, broken: slice
) -> None:
    """As on a machine with a GPU: truncated, shifted, empty. Here even a whole one does not load."""
    plan = cache.get(order()).plan
    monkeypatch.setattr(tensorrt, "require_running", lambda _: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(EngineError, match=r"does not load on this GPU: .*; build it again"):
        TensorRtEngine(plan[broken], "double")


@pytest.mark.parametrize(
    ("installed", "capability", "why"),
    [
        (False, None, "TensorRT is not installed"),
        (True, None, "torch sees no GPU"),
        (True, (9, 0), "TensorRT for RTX does not run on NVIDIA H100 (compute capability 9.0), only on 7.5"),
        (True, (8, 9), None),
    ],
)
def test_why_tensorrt_cannot_run_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, installed: bool, capability: Any, why: str | None
) -> None:
    """No library, no GPU, one that is not supported; none of these."""
    monkeypatch.setattr(tensorrt_library, "find_library", lambda: library if installed else None)
    monkeypatch.setattr(tensorrt_library, "gpu", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100")
    found = obstacle()
    assert found == why or (found is not None and why is not None and found.startswith(why))


@pytest.mark.parametrize("text", ["", "8", "86", "sm_86", "8.6.1", "a.b"])
def test_what_is_no_capability_is_refused(text: str) -> None:
    """8.6 is one."""
    assert parse_capability("8.6") == (8, 6)
    with pytest.raises(ValueError, match=r"no compute capability such as 8\.6"):
        parse_capability(text)


def test_a_second_start_compiles_nothing(cache: PlanCache) -> None:
    """The same plan from the same place; a new process would find it, too."""
    first, second = cache.get(order()), PlanCache(cache.directory).get(order())
    assert first.build_s is not None
    assert second.build_s is None
    assert (second.path, bytes(second.plan)) == (first.path, bytes(first.plan))


def test_a_plan_for_several_gpus_serves_each_of_them(cache: PlanCache) -> None:
    """And a GPU that it was not compiled for gets one of its own."""
    cache.get(order(capabilities=((8, 6), (8, 9))))
    assert cache.get(order(capabilities=((8, 9),))).build_s is None
    assert cache.get(order(capabilities=((8, 9), (12, 0)))).build_s is not None


@pytest.mark.parametrize(
    "other",
    [
        order(double(3.0)),
        order(precision="float16"),
        order(workspace=2**20),
        order(replace(double(), profiles=({"x": ((1, 4), (1, 4), (4, 4))},))),
        order(capabilities=((7, 5),)),
    ],
    ids=["weights", "precision", "memory limit", "profile", "GPU"],
)
def test_another_order_is_another_plan(cache: PlanCache, other: Order) -> None:
    """Each part of what a plan depends on is part of what it is known by."""
    cache.get(order())
    assert cache.get(other).build_s is not None
    assert cache.get(order()).build_s is None
    assert len(cache.entries()) == 2


def test_a_plan_of_another_version_is_not_run(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays for those who have that version."""
    cache.get(order())
    monkeypatch.setattr(tensorrt, "library", lambda: "tensorrt_rtx 1.8.0")
    assert cache.get(order()).build_s is not None
    assert {entry.library for entry in cache.entries()} == {
        f"{RTX} {library.__version__}",
        "tensorrt_rtx 1.8.0",
    }


def test_other_code_of_the_graphs_is_another_plan(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of the last version of the package is stale."""
    before = digest(double(), "float32")
    monkeypatch.setattr(plans, "_code", lambda: b"another version")
    assert digest(double(), "float32") != before


def test_weights_are_what_they_are_in_the_precision_of_the_graph() -> None:
    """A model that was loaded in float16 finds the plan of one that was loaded in float32."""
    half = replace(double(), module=double().module.half(), inputs={"x": torch.ones(2, 4).half()})
    assert digest(half, "float16") == digest(double(), "float16")


@pytest.mark.parametrize("damage", ["truncated", "changed", "foreign", "no page", "broken page"])
def test_a_damaged_plan_is_compiled_anew(
    cache: PlanCache, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Truncated, one byte changed, that of another network under this name, a page lost or broken."""
    first = cache.get(order())
    assert first.path is not None
    content, page = first.path.read_bytes(), first.path.with_suffix(".json")
    if damage == "truncated":
        first.path.write_bytes(content[:-1])
    elif damage == "changed":
        first.path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "foreign":
        other = cache.get(order(double(3.0)))
        assert other.path is not None
        other.path.replace(first.path)
        other.path.with_suffix(".json").replace(page)
    elif damage == "no page":
        page.unlink()
    else:
        page.write_text(page.read_text()[:40])
    again = cache.get(order())
    assert again.build_s is not None
    assert cache.get(order()).build_s is None


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With one sentence; the plan is there all the same."""
    (tmp_path / "file").write_text("no folder")
    found = PlanCache(tmp_path / "file" / "plans").get(order())
    assert len(found.plan) > 0
    assert found.path is None
    (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert "cannot be written (Not a directory)" in record.getMessage()


def _build(directory: Path, found: Any) -> None:
    delivered = PlanCache(directory).get(order())
    found.put((delivered.build_s is not None, bytes(delivered.plan)))


def test_processes_that_want_the_same_plan_compile_it_once(tmp_path: Path) -> None:
    """Two at once: one compiles, the other waits and takes it."""
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    workers = [context.Process(target=_build, args=(tmp_path / "plans", found)) for _ in range(2)]
    for worker in workers:
        worker.start()
    results = [found.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(compiled for compiled, _ in results) == [False, True]
    assert results[0][1] == results[1][1]
    assert not list((tmp_path / "plans").glob("*.part"))


def test_the_cache_tells_what_is_in_it_and_for_whom(cache: PlanCache) -> None:
    """Without reading a plan; what is of no use here, and why."""
    cache.get(order(capabilities=((8, 6), (8, 9))))
    (entry,) = cache.entries()
    assert (entry.network, entry.precision, entry.capabilities) == ("double", "float32", ("8.6", "8.9"))
    assert entry.obstacle() == "there is no GPU"
    assert json.dumps(entry.as_dict())
    with entry.path.open("ab") as file:
        file.write(b"more")
    (entry,) = cache.entries()
    assert entry.obstacle() == "damaged; it will be built again"
    assert PlanCache(cache.directory / "nowhere").entries() == []
