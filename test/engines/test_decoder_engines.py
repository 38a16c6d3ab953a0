"""Every engine against transformers' whole model on the same weights, and texts written through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from emulated_capture import EmulatedPool
from emulated_cuda import EmulatedCuda
from torch import Tensor, nn
from transformers import LlamaConfig as HfLlamaConfig
from transformers import LlamaForCausalLM

from evspec_ros.engines import cuda_graphs
from evspec_ros.engines.cuda_graphs import GraphedDecoder, key_bucket
from evspec_ros.engines.decoder import DecoderEngine, DecoderPass, Rows, TorchDecoder
from evspec_ros.engines.networks import decoder_rows
from evspec_ros.engines.onnx_decoder import OnnxDecoder
from evspec_ros.engines.selection import choose_engine
from evspec_ros.errors import EngineError, GenerationError
from evspec_ros.networks import attention
from evspec_ros.networks.draft_head import Eagle3Config, Eagle3Head, EagleConfig, EagleHead
from evspec_ros.networks.kernels import Kernels, using
from evspec_ros.networks.llama import KVCache, LlamaConfig, LlamaDecoder
from evspec_ros.speculative import (
    DecoderTarget,
    DraftLimits,
    DraftModels,
    DraftTree,
    NoDrafter,
    Prompt,
    generate,
    make_drafter,
)
from evspec_ros.speculative.sampling import Sampling

TOLERANCE = 1e-4
VOCABULARY, PREFIX = 60, 11
# The parent's row of each row of a tree, -1: the prefix's last row.
PARENTS = (-1, 0, 0, 1, 1, 2, 4)


class EmulatedGraphs(GraphedDecoder):
    """GraphedDecoder on the CPU; whatever an earlier pass gave, over however many rows, is overwritten."""

    def __init__(self, decoder: LlamaDecoder, lm_head: nn.Module) -> None:
        self.pool = EmulatedPool()
        super().__init__(decoder, lm_head, self.pool)

    def run(self, rows: Rows, cache: KVCache, layers: tuple[int, ...]) -> DecoderPass:
        """As on a GPU, after what could be left of other passes is spoilt."""
        self.pool.spoil()
        return super().run(rows, cache, layers)

    def describe(self) -> str:
        """For tests."""
        return "emulated"


ENGINES = {
    "torch": TorchDecoder,
    "onnxruntime": OnnxDecoder,
    "graphed": EmulatedGraphs,
}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """Networks this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def _networks(num_kv_heads: int = 4, head_dim: int = 16) -> tuple[LlamaDecoder, nn.Linear]:
    """Weights so large that every part shows in the logits, norms that change something."""
    config = LlamaConfig(
        VOCABULARY, 64, 96, 3, 4, num_kv_heads, head_dim, max_positions=128, rms_norm_eps=1e-5
    )  # fmt: skip
    torch.manual_seed(5)
    decoder, lm_head = LlamaDecoder(config).eval(), nn.Linear(64, VOCABULARY, bias=False)
    for parameter in (*decoder.parameters(), lm_head.weight):
        with torch.no_grad():
            if parameter.dim() == 2:
                parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
            else:
                parameter.uniform_(0.5, 1.5)
    return decoder, lm_head


class Pair:
    """A decoder behind an engine, and transformers with its weights; the prefix is read already."""

    def __init__(self, engine: str, num_kv_heads: int, head_dim: int, capacity: int = 40) -> None:
        self.decoder, self.lm_head = _networks(num_kv_heads, head_dim)
        self.engine: DecoderEngine = ENGINES[engine](self.decoder, self.lm_head)
        self.theirs = LlamaForCausalLM(HfLlamaConfig(**self.decoder.config.to_hf())).eval()
        self.theirs.model.load_state_dict(self.decoder.state_dict())
        self.theirs.lm_head.load_state_dict(self.lm_head.state_dict())
        self.cache = KVCache(self.decoder.config, capacity)
        self.prefix = torch.arange(PREFIX) * 7 % VOCABULARY
        self.engine.read(self.decoder.embed(self.prefix), self.cache, ())

    def expected(self, ids: Tensor) -> Tensor:
        """Their logits [T, V] of a whole sequence, without a cache."""
        return self.theirs(input_ids=ids[None], use_cache=False).logits[0]

    def run(self, rows: Rows, layers: tuple[int, ...] = ()) -> DecoderPass:
        """A pass, its output kept."""
        found = self.engine.run(rows, self.cache, layers)
        return DecoderPass(found.logits.clone(), tuple(feature.clone() for feature in found.features))


@pytest.fixture(
    params=[(engine, *sizes) for engine in ENGINES for sizes in ((4, 16), (2, 16), (4, 32))],
    ids=lambda values: "-".join(map(str, values)),
)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Each engine with as many key/value heads as heads, with fewer, and with heads wider than the rest."""
    return Pair(*request.param)


def _assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= TOLERANCE


def _path(row: int) -> list[int]:
    return [*_path(PARENTS[row]), row] if row >= 0 else []


def _tree_rows(ids: Tensor) -> Rows:
    depths = torch.tensor([len(_path(row)) - 1 for row in range(len(PARENTS))])
    visible = torch.zeros(len(PARENTS), len(PARENTS), dtype=torch.bool)
    for row in range(len(PARENTS)):
        visible[row, _path(row)] = True
    return Rows(ids, depths, visible)


def test_steps_and_blocks_equal_transformers(pair: Pair) -> None:
    """Behind a prefix: one row, five rows, one row, and a second time five give the whole sequence's
    logits.
    """
    ids = torch.arange(12) * 11 % VOCABULARY
    found = [pair.run(Rows(part)).logits for part in ids.split([1, 5, 1, 5])]
    _assert_equal(torch.cat(found), pair.expected(torch.cat((pair.prefix, ids)))[PREFIX:])


def test_a_prompt_read_in_parts_has_transformers_logits_and_the_modules_features(pair: Pair) -> None:
    """Of its last row; what was given of the first part is not overwritten by the second."""
    ids = torch.arange(15) * 11 % VOCABULARY
    parts = [pair.engine.read(pair.decoder.embed(part), pair.cache, (0, 1, 3)) for part in ids.split([9, 6])]
    whole = torch.cat((pair.prefix, ids))
    _assert_equal(parts[0].logits, pair.expected(whole[:-6])[-1:])
    _assert_equal(parts[1].logits, pair.expected(whole)[-1:])
    modules = pair.decoder(pair.decoder.embed(whole)[None], layers=(0, 1, 3)).features
    for layer, expected in enumerate(modules):
        _assert_equal(torch.cat([part.features[layer] for part in parts]), expected[0, PREFIX:])


def test_every_row_of_a_tree_equals_transformers_on_its_path(pair: Pair) -> None:
    """A node's logits are those at the end of its own path; another pass before it leaves no trace."""
    ids = torch.tensor([3, 14, 15, 9, 26, 5, 35])
    pair.run(Rows(ids.flip(0)))  # other rows in the same memory
    pair.cache.truncate(PREFIX)
    found = pair.run(_tree_rows(ids)).logits
    for row in range(len(PARENTS)):
        expected = pair.expected(torch.cat((pair.prefix, ids[_path(row)])))[-1]
        _assert_equal(found[row], expected)


def test_kept_rows_are_the_prefix_of_what_follows(pair: Pair) -> None:
    """After a tree only the path 0, 2, 5 is kept; the next block sees it and nothing else."""
    ids, following = torch.tensor([3, 14, 15, 9, 26, 5, 35]), torch.tensor([8, 9, 7])
    pair.run(_tree_rows(ids))
    pair.cache.keep(torch.tensor([0, 2, 5]))
    found = pair.run(Rows(following)).logits
    _assert_equal(found, pair.expected(torch.cat((pair.prefix, ids[[0, 2, 5]], following)))[-3:])


@pytest.mark.parametrize("forgotten_by", ["truncate", "keep"])
def test_forgotten_rows_may_have_held_nan(pair: Pair, forgotten_by: str) -> None:
    """A drafted row whose values were too large leaves nothing behind, in shorter passes that follow either:
    for an engine that reads the whole capacity, nothing times NaN would be NaN.
    """
    ids = torch.tensor([3, 14, 15, 9, 26, 5, 35])
    pair.run(Rows(ids))
    for memory in (pair.cache.k, pair.cache.v):
        memory[:, :, :, PREFIX + 1 : pair.cache.length] = float("nan")  # as such a pass leaves them
    if forgotten_by == "truncate":
        pair.cache.truncate(PREFIX + 1)
    else:
        pair.cache.keep(torch.tensor([0]))
    found = [pair.run(Rows(part)).logits for part in (ids[1:2], ids[2:5])]
    _assert_equal(torch.cat(found), pair.expected(torch.cat((pair.prefix, ids[:5])))[PREFIX + 1 :])


def test_features_are_what_enters_the_layers(pair: Pair) -> None:
    """Of any layers in any order, as the modules give them, the last layer's output before the norm too."""
    rows, layers = Rows(torch.tensor([4, 8, 2])), (3, 0, 2)
    found = pair.run(rows, layers).features
    pair.cache.truncate(PREFIX)
    expected = TorchDecoder(pair.decoder, pair.lm_head).run(rows, pair.cache, layers).features
    for ours, theirs in zip(found, expected, strict=True):
        _assert_equal(ours, theirs)
    pair.cache.truncate(PREFIX)
    assert len(pair.run(rows).features) == 0


def test_another_cache_can_take_the_place_of_the_first(pair: Pair) -> None:
    """An engine follows the cache that it is given, also to a larger one."""
    ids = torch.tensor([5, 6])
    expected = pair.run(Rows(ids)).logits
    pair.cache = KVCache(pair.decoder.config, 90)
    pair.decoder(pair.decoder.embed(pair.prefix)[None], pair.cache)
    _assert_equal(pair.run(Rows(ids)).logits, expected)


def test_a_full_cache_is_refused(pair: Pair) -> None:
    """Rows that do not fit leave the cache as it was."""
    with pytest.raises(GenerationError, match="holds 40 positions, 11 are taken and 30 more"):
        pair.run(Rows(torch.zeros(30, dtype=torch.int64)))
    assert pair.cache.length == PREFIX


class TreesAroundTheText(NoDrafter):
    """Drafts trees in which the right token has wrong siblings with children of their own."""

    name = "around"
    layers = (3,)

    def __init__(self, text: list[int], right_in_a_row: int) -> None:
        self._text, self._right, self._read = text, right_in_a_row, 0

    def start(self, *_: object) -> None:
        """The first token is there."""
        self._read = 1

    def propose(self, limits: DraftLimits, *_: object) -> DraftTree:
        """Right tokens, the last of them wrong, each after a wrong sibling that has a child."""
        tokens: list[int] = []
        parents: list[int] = []
        right = -1
        for place, token in enumerate(self._text[self._read :][: limits.n_max]):
            wrong = (token + 1) % VOCABULARY
            tokens += [wrong, wrong, token if place < self._right else (token + 2) % VOCABULARY]
            parents += [right, len(tokens) - 3, right]
            right = len(tokens) - 1
        return DraftTree.from_parents(tokens, parents, [0.5] * len(tokens))

    def accept(self, tokens: list[int], features: tuple[Tensor, ...]) -> None:
        """A feature per token."""
        assert features[0].shape == (len(tokens), 64)
        self._read += len(tokens)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "torch"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_texts_are_those_of_plain_decoding_with_the_modules(engine: str, temperature: float) -> None:
    """Greedy: token for token, with no drafter and with trees of changing sizes. Sampled: with no drafter
    and one seed.
    """
    networks = _networks()
    plain = DecoderTarget(*networks, (), str)
    other = DecoderTarget(*networks, (), str, engine=ENGINES[engine](*networks))
    random = torch.Generator().manual_seed(1)
    for rows in (9, 12, 30):  # a longer prompt needs a larger cache
        prompt = Prompt(torch.randn(1, rows, 64, generator=random))
        settings = {"max_new_tokens": 30, "temperature": temperature, "seed": 3}
        text = generate(plain, NoDrafter(), prompt, **settings).tokens
        assert generate(other, NoDrafter(), prompt, **settings).tokens == text
        for right in (0, 2, 4) if temperature == 0.0 else ():
            drafted = generate(
                other,
                TreesAroundTheText(list(text), right),
                prompt,
                limits=DraftLimits(4, 12),
                **settings,
            )
            assert drafted.tokens == text
            assert drafted.statistics.mean_accepted_length > (0.9 if right == 0 else 2.0)


def _head(kind: str, size: int) -> EagleHead | Eagle3Head | None:
    """What a drafter of that kind drafts with."""
    if kind == "suffix":
        return None
    if kind == "eagle":
        return EagleHead(EagleConfig(size, 96, 4, 4, 16, 24, 128))
    layers = (3,) if kind == "combined" else (0, 2, 3)
    return Eagle3Head(Eagle3Config(size, layers, VOCABULARY, size, 96, 4, 16, 24, 128))


@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize("kind", ["eagle", "eagle3", "suffix", "combined"])
def test_what_the_next_pass_overwrites_is_not_read_any_more(
    kind: str, unseen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafters that keep features from pass to pass draft through captured passes what they draft through the
    modules, token for token. The last text begins as the one before it, which alone
    is followed for a while, and the head reads later what the passes gave. unseen: drafts grow as on a GPU.
    """
    if unseen:
        EmulatedCuda(monkeypatch)
    decoder, lm_head = _networks()
    size = decoder.config.hidden_size
    torch.manual_seed(2)
    head = _head(kind, size)
    found = []
    for engine in ("torch", "graphed"):
        target = DecoderTarget(decoder, lm_head, (), str, engine=ENGINES[engine](decoder, lm_head))
        drafter = make_drafter(kind, target, DraftModels(head))
        propose, trees = drafter.propose, []
        drafter.propose = lambda *given: (trees.append(propose(*given)), trees[-1])[1]  # type: ignore[method-assign] # noqa: B023
        random = torch.Generator().manual_seed(1)
        prompts = [torch.randn(1, rows, size, generator=random) for rows in (9, 12)]
        prompts.append(prompts[-1] + 0.05 * torch.randn(1, 12, size, generator=random))
        for prompt in prompts:
            made = generate(target, drafter, Prompt(prompt), max_new_tokens=30, limits=DraftLimits(4, 8))
            found.append((made.tokens, [tree.tokens.tolist() for tree in trees]))
    assert found[:3] == found[3:]
    same = [one == other for one, other in zip(found[1][0], found[2][0], strict=True)]
    assert same.index(False) > 6


LONG = 640  # rows of a cache that several buckets of keys lie in


def _long_networks() -> tuple[LlamaDecoder, nn.Linear]:
    torch.manual_seed(6)
    config = LlamaConfig(VOCABULARY, 64, 96, 2, 4, 2, 16, max_positions=LONG)
    return LlamaDecoder(config).eval(), nn.Linear(64, VOCABULARY, bias=False)


def _long(kv_dtype: torch.dtype = torch.float32) -> tuple[EmulatedGraphs, TorchDecoder, KVCache, KVCache]:
    """Captured passes and the modules, each with a long cache of its own."""
    networks = _long_networks()
    caches = [KVCache(networks[0].config, LONG, dtype=kv_dtype) for _ in range(2)]
    return EmulatedGraphs(*networks), TorchDecoder(*networks), caches[0], caches[1]


def _tree_or_chain(count: int, random: np.random.Generator) -> Rows:
    """So many rows of any tree below their first."""
    parents = [int(random.integers(0, row)) for row in range(1, count)]
    tree = DraftTree.from_parents([1] * (count - 1), [one - 1 for one in parents], [0.5] * (count - 1))
    ids = torch.from_numpy(random.integers(0, VOCABULARY, count))
    return Rows(ids, torch.from_numpy(tree.row_depths()), torch.from_numpy(tree.ancestors()))


@pytest.fixture(autouse=True)
def _large_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where keys are read in parts, there are as many as on an H100."""
    monkeypatch.setattr(attention, "_multiprocessors", lambda _: 132)


# As on a processor, and as on a large GPU with Triton.
KERNELS = pytest.mark.parametrize("kernels", [None, Kernels("aot_eager", split=True)], ids=["plain", "fused"])


@KERNELS
@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.float16, torch.int8])
def test_padded_passes_equal_the_modules_whatever_the_rows_and_keys(
    kv_dtype: torch.dtype, kernels: Kernels | None
) -> None:
    """Any number of rows up to 64, and more, at prefixes on both sides of a bucket's end, up to the last row
    of the cache; what lies in the cache beyond a bucket may be NaN.
    """
    graphs, modules, ours, theirs = _long(kv_dtype)
    random = np.random.default_rng(3)
    for prefix, count in ((250, 5), (255, 1), (256, 2), (300, 33), (508, 8), (575, 65), (576, 64), (639, 1)):
        prompt = torch.from_numpy(random.standard_normal((prefix, 64), np.float32))
        rows = _tree_or_chain(count, random)
        found = []
        for engine, cache in ((graphs, ours), (modules, theirs)):
            cache.truncate(0)
            engine.read(prompt, cache, ())
            beyond = [memory[..., key_bucket(prefix + count, LONG) :, :] for memory in (cache.k, cache.v)]
            for memory in beyond if kv_dtype.is_floating_point else ():
                memory.fill_(float("nan"))
            with using(kernels) if kernels and engine is graphs else nullcontext():
                found.append(engine.run(rows, cache, (1,)))
            for memory in beyond:
                memory.zero_()
        assert found[0].logits.shape == (count, VOCABULARY)
        torch.testing.assert_close(found[0].logits, found[1].logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[0].features, found[1].features, atol=1e-4, rtol=1e-4)
        assert ours.length == theirs.length == prefix + count


def test_all_graphs_are_captured_before_the_first_pass_and_leave_the_cache_as_it_was() -> None:
    """Each number of rows for each number of keys that may follow; passes for fewer layers need no others,
    and neither do texts behind a prompt in the same cache.
    """
    graphs, _, cache, _ = _long()
    graphs.read(torch.randn(300, 64), cache, ())
    before = cache.k.clone()
    graphs.prepare(cache, (0, 2))
    assert (before == cache.k)[..., :300, :].all()
    assert cache.length == 300
    assert len(graphs.pool.graphs) == 5 * 2  # 512 and 640 keys
    for count in (1, 7, 30, 64, 3):
        graphs.run(Rows(torch.zeros(count, dtype=torch.int64)), cache, (2,))
    cache.truncate(280)
    graphs.prepare(cache, ())
    graphs.run(Rows(torch.zeros(2, dtype=torch.int64)), cache, ())
    assert len(graphs.pool.graphs) == 10


def test_a_larger_cache_has_its_graphs_before_its_text_goes_on() -> None:
    """A longer prompt needs one: nothing is captured in mid-text, behind neither prompt."""
    networks = _long_networks()
    engine = EmulatedGraphs(*networks)
    target = DecoderTarget(*networks, (), str, engine=engine)
    drafter = TreesAroundTheText([3] * 20, 0)
    drafter.layers = (2,)
    captured: list[int] = []
    for rows in (20, 200):
        prompt = Prompt(torch.randn(1, rows, 64))
        target.prefill([prompt.embeddings], 20, (2,))
        captured.append(len(engine.pool.graphs))
        generate(target, drafter, prompt, max_new_tokens=8, limits=DraftLimits(3, 9))
        captured.append(len(engine.pool.graphs))
    assert captured[0] == captured[1] < captured[2] == captured[3]


def test_sampling_through_an_engine_keeps_the_target_s_distribution() -> None:
    """Logits of one tree lead to the same probabilities whichever engine made them."""
    pairs = [Pair(engine, 4, 16) for engine in ENGINES]
    rows = _tree_rows(torch.tensor([3, 14, 15, 9, 26, 5, 35]))
    sampling = Sampling(0.8, 0.95, 20)
    first, *others = (sampling.probabilities(pair.run(rows).logits).numpy() for pair in pairs)
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-5)


def test_auto_takes_onnx_runtime_for_float32_on_the_cpu_and_says_why() -> None:
    """Half precision stays with the modules, and so do weights that somebody else packed."""
    decoder, lm_head = _networks()
    assert str(choose_engine(decoder, lm_head)).startswith("ONNX Runtime")
    assert "asked for" in str(choose_engine(decoder, lm_head, "torch"))
    packed = nn.Sequential(lm_head)
    assert "packed in another way" in str(choose_engine(decoder, packed))
    assert "heads of 16" in str(choose_engine(*_networks(head_dim=8)))
    half = choose_engine(decoder.bfloat16(), lm_head.bfloat16())
    assert str(half) == f"torch {torch.__version__} on cpu (its precision is bfloat16, not float32)"


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("onnxruntime", "cannot run this decoder: its precision is float16"),
        ("cuda_graphs", "CUDA graphs need a GPU"),
        ("abacus", "no backend 'abacus'; choose one of auto, torch"),
    ],
)
def test_an_engine_that_cannot_run_the_decoder_is_refused(backend: str, message: str) -> None:
    """One sentence says what to do."""
    decoder, lm_head = _networks()
    with pytest.raises(EngineError, match=message):
        choose_engine(decoder.half(), lm_head.half(), backend)


def test_auto_takes_captured_graphs_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """For any precision of weights and cache."""
    decoder, lm_head = _networks()
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda _: True))
    monkeypatch.setattr(cuda_graphs, "graph_pool", lambda _: EmulatedPool())
    chosen = choose_engine(decoder.half(), lm_head.half(), kv_dtype=torch.int8)
    assert chosen.engine.backend == "cuda_graphs"
    assert "fastest on a GPU" in chosen.reason


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_passes_of_one_shape_compute_a_row_alone_as_in_a_draft(
    dtype: torch.dtype, kernels: Kernels | None
) -> None:
    """With exact_half, bit for bit in half precision: row after row as in one pass of all, whose keys lie
    where the single rows' lie; whatever the number of rows.
    """
    decoder, lm_head = (network.to(dtype) for network in _long_networks())
    engine = choose_engine(decoder, lm_head, exact_half=True).engine
    assert engine.same_rows
    prompt, ids = torch.randn(250, 64, dtype=dtype), torch.arange(20) * 7 % VOCABULARY
    caches = [KVCache(decoder.config, LONG, dtype=dtype) for _ in range(3)]
    for cache in caches:
        engine.read(prompt, cache, ())
    with using(kernels) if kernels else nullcontext():
        together = engine.run(Rows(ids), caches[0], ()).logits
        in_parts = [engine.run(Rows(part), caches[1], ()).logits for part in ids.split(7)]
        alone = [engine.run(Rows(one), caches[2], ()).logits for one in ids.split(1)]
    assert torch.equal(torch.cat(in_parts), together)
    assert torch.equal(torch.cat(alone), together)


def test_exact_half_changes_nothing_in_float32() -> None:
    """There texts are exact anyway."""
    assert not choose_engine(*_networks(), exact_half=True).engine.same_rows


def test_a_network_whose_mask_is_infinite_reads_its_keys_whole() -> None:
    """Also where their number could be split: the rows see nothing of the first half."""
    network = decoder_rows(*_long_networks())
    held, rows = 251, 5
    inputs = {name: torch.randn(1, 2, held, 16) for name in network.inputs}
    mask = torch.zeros(rows, held + rows)
    mask[:, :128] = -torch.inf
    inputs |= {"embeddings": torch.randn(1, rows, 64), "positions": torch.arange(rows), "mask": mask}
    expected = network.run(inputs)["logits"]
    with using(Kernels(None, split=True)):
        assert torch.equal(network.run(inputs)["logits"], expected)


@pytest.mark.gpu
@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.float16, torch.int8])
def test_captured_passes_on_a_gpu_equal_the_modules_on_the_cpu(kv_dtype: torch.dtype) -> None:
    """Behind prefixes on both sides of a bucket's end; trees of any size, real graphs in one pool."""
    _, modules, _, theirs = _long(kv_dtype)
    networks = tuple(network.cuda() for network in _long_networks())
    graphs, ours = GraphedDecoder(*networks), KVCache(networks[0].config, LONG, dtype=kv_dtype, device="cuda")
    random = np.random.default_rng(3)
    for prefix, count in ((250, 5), (255, 1), (300, 33), (508, 8), (576, 64)):
        prompt = torch.from_numpy(random.standard_normal((prefix, 64), np.float32))
        rows, found = _tree_or_chain(count, random), []
        for engine, cache, place in ((graphs, ours, "cuda"), (modules, theirs, "cpu")):
            cache.truncate(0)
            engine.read(prompt.to(place), cache, ())
            engine.prepare(cache, (1,))
            found.append(engine.run(rows, cache, (1,)).logits.cpu())
        torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["eagle", "eagle2", "eagle3", "suffix", "combined"])
def test_drafted_texts_on_a_gpu_are_plain_ones_of_the_cpu(kind: str) -> None:
    """In float32, through captured graphs of target and head, text after text."""
    networks = _networks()
    random = torch.Generator().manual_seed(1)
    prompts = [torch.randn(1, rows, 64, generator=random) for rows in (9, 12, 30)]
    settings = {"max_new_tokens": 30, "limits": DraftLimits(4, 12)}
    alone = DecoderTarget(*networks, (), str)
    texts = [generate(alone, NoDrafter(), Prompt(prompt), **settings).tokens for prompt in prompts]
    decoder, lm_head = (network.cuda() for network in networks)
    target = DecoderTarget(decoder, lm_head, (), str, engine=choose_engine(decoder, lm_head).engine)
    head = _head("eagle" if kind == "eagle2" else kind, 64)
    drafter = make_drafter(kind, target, DraftModels(None if head is None else head.cuda()))
    for prompt, text in zip(prompts, texts, strict=True):
        assert generate(target, drafter, Prompt(prompt.cuda()), **settings).tokens == text


def test_cuda_graphs_refuse_a_decoder_on_the_cpu() -> None:
    """Before anything is captured."""
    with pytest.raises(EngineError, match="set device to cuda"):
        GraphedDecoder(*_networks())
