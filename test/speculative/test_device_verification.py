"""Acceptance where the target's logits are, beside the host's rules; the host waits for one tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from emulated_cuda import EmulatedCuda, replace_everywhere
from random_networks import (
    naive_text,
    random_drafter,
    random_event_model,
    random_head,
    random_prompts,
    random_target,
)
from speculative_fakes import ScriptedDrafter, excess, random_tree
from torch import Tensor, nn

from evspec_ros.engines.cuda_graphs import GraphedDecoder
from evspec_ros.engines.drafter import DrafterEngines
from evspec_ros.networks import devices
from evspec_ros.networks.llama import LlamaConfig, LlamaDecoder
from evspec_ros.speculative import (
    DRAFTERS,
    DecoderTarget,
    Drafter,
    DraftLimits,
    DraftModels,
    EventSide,
    Generation,
    NoDrafter,
    Prompt,
    generate,
    make_drafter,
)
from evspec_ros.speculative.device_tree import DeviceTree
from evspec_ros.speculative.sampling import NO_TOKEN, Sampling, draw, drawn, likeliest
from evspec_ros.speculative.tree import DraftTree
from evspec_ros.speculative.verification import (
    Acceptance,
    Judging,
    Verdict,
    verify,
    verify_greedy,
    verify_on_device,
)
from evspec_ros.training.observed import ObservedDrafter, Pupil, Written

GREEDY = Sampling()
DRAWS = 4000
LOSSY = [
    Acceptance("typical"),
    Acceptance("typical", 0.5, 0.9),
    Acceptance("cascade"),
    Acceptance("cascade", alpha=0.4),
]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _on_device(*given: Any) -> Verdict:
    """Of one tree alone."""
    (verdict,) = verify_on_device([Judging(*given)])
    return verdict


@pytest.mark.parametrize("seed", range(40))
def test_greedy_decides_what_the_host_decides(seed: int) -> None:
    """Any tree, siblings that are alike among them, of tokens that often agree."""
    random = np.random.default_rng(seed)
    size = int(random.integers(0, 20))
    parents = [int(random.integers(-1, node)) for node in range(size)]
    tree = DraftTree.from_parents(random.integers(0, 3, size).tolist(), parents, [0.5] * size)
    logits = torch.randn(size + 1, 3, generator=_generator(seed))
    logits[random.integers(size + 1)] = float("nan") if seed % 2 else 0.0
    verdict = _on_device(tree, logits, GREEDY, _generator())
    expected = verify_greedy(tree, likeliest(logits))
    assert (verdict.rows, verdict.tokens) == (expected.rows, expected.tokens)


@pytest.mark.parametrize("rule", LOSSY, ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_lossy_modes_decide_what_the_host_decides(seed: int, rule: Acceptance) -> None:
    """Greedily, on any tree, siblings that are alike among them; drawn nodes in a cascade as well."""
    random = np.random.default_rng(seed)
    size = int(random.integers(0, 20))
    parents = [int(random.integers(-1, node)) for node in range(size)]
    spread = torch.softmax(torch.randn(size, 4, generator=_generator(seed + 50)), -1) if seed % 2 else None
    tokens, chances = random.integers(0, 4, size).tolist(), random.random(size).tolist()
    tree = DraftTree.from_parents(tokens, parents, chances, spread)
    logits = 2 * torch.randn(size + 1, 4, generator=_generator(seed))
    verdict = _on_device(tree, logits, GREEDY, _generator(), rule)
    (expected,) = verify([Judging(tree, logits, GREEDY, _generator(), rule)])
    assert (verdict.rows, verdict.tokens) == (expected.rows, expected.tokens)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_a_cascade_draws_from_the_mixture_that_its_rule_makes(alpha: float) -> None:
    """The drafter's distribution where it stands, the target's where it does not."""
    for seed in range(4):
        p, q = (
            torch.softmax(1.5 * torch.randn(6, generator=_generator(seed + more)), -1) for more in (0, 50)
        )
        stands = float(q.max()) >= float(p.max()) - alpha * float((p - q).abs().sum()) / 2
        generator, counts, mode = _generator(seed), torch.zeros(6), Acceptance("cascade", alpha=alpha)
        for token in torch.multinomial(q, DRAWS // 8, True, generator=generator).tolist():
            tree = DraftTree.chain([token], [float(q[token])], q[None])
            found = _on_device(tree, p.log().repeat(2, 1), Sampling(1.0), generator, mode)
            counts[found.tokens[0]] += 1
        assert excess(counts, q if stands else p) < 5


def test_what_is_not_there_is_never_accepted() -> None:
    """Of a tree whose last nodes say what the target says, greedily, by chance and in the lossy modes."""
    tree = DraftTree.from_parents([1, 2, 3, 3], [-1, 0, 0, 1], [0.9] * 4)
    here = DeviceTree(**{**vars(DeviceTree.of(tree, torch.device("cpu"))), "known": None})
    here.there[2:] = False
    logits = torch.zeros(5, 5)
    logits[[0, 1, 2], [1, 3, 3]] = 60.0
    for sampling in (GREEDY, Sampling(1.0)):
        for mode in (Acceptance(), Acceptance("typical"), Acceptance("cascade")):
            verdict = _on_device(here, logits, sampling, _generator(), mode)
            assert len(verdict.tree) == 2
            assert (verdict.rows, verdict.tokens) == ([0, 1], [1, 3])


def _without_chance(p: Tensor, _: torch.Generator) -> DraftTree:
    """Three tokens behind the root, one of them said twice, and two behind the second."""
    del p
    return DraftTree.from_parents([2, 0, 2, 1, 3], [-1, -1, -1, 1, 1], [0.5] * 5)


def _chain(p: Tensor, generator: torch.Generator) -> DraftTree:
    """Drawn from other distributions than the target's."""
    spread = p.flip(-1)[:2].contiguous()
    tokens = [draw(row, generator) for row in spread]
    return DraftTree.chain(tokens, [0.5, 0.5], spread)


def _siblings(p: Tensor, generator: torch.Generator) -> DraftTree:
    """Three tokens drawn without replacement from another distribution than the target's, one more drawn
    behind the first two.
    """
    spread, tokens, q = p.flip(-1), list[int](), list[Tensor]()
    left = spread[0]
    for _ in range(3):
        q.append(left)
        tokens.append(draw(left, generator))
        left = left.index_fill(0, torch.tensor(tokens[-1:]), 0.0)
        left = left / left.sum()
    q += [spread[token] for token in tokens[:2]]
    tokens += [draw(one, generator) for one in q[3:]]
    return DraftTree.from_parents(tokens, [-1, -1, -1, 0, 1], [0.5] * 5, torch.stack(q))


@pytest.mark.parametrize("propose", [_without_chance, _chain, _siblings])
def test_what_is_sampled_is_distributed_as_the_target(
    propose: Callable[[Tensor, torch.Generator], DraftTree],
) -> None:
    """The first token, and the second one behind each first, of a target whose rows depend on the last token
    alone.
    """
    table = 1.5 * torch.randn(5, 5, generator=_generator(8))  # logits behind each token; 4: the root's
    p, generator, sampling = table.softmax(-1), _generator(1), Sampling(1.0)
    firsts: Counter[int] = Counter()
    seconds: dict[int, Counter[int]] = {token: Counter() for token in range(5)}
    for _ in range(DRAWS):
        tree = propose(p, generator)
        tokens = _on_device(tree, table[[4, *tree.tokens.tolist()]], sampling, generator).tokens
        firsts[tokens[0]] += 1
        if len(tokens) > 1:
            seconds[tokens[0]][tokens[1]] += 1
    assert excess(torch.tensor([firsts[token] for token in range(5)]), p[4]) < 4
    for first, counts in seconds.items():
        if counts.total() > 300:
            assert excess(torch.tensor([counts[token] for token in range(5)]), p[first]) < 4


def test_logits_that_are_not_finite_yield_no_token() -> None:
    """Where they decide; of a row beside the path they do not."""
    tree = DraftTree.from_parents([1, 2], [-1, -1], [0.5, 0.5])
    logits = torch.zeros(3, 4)
    logits[:, 1] = 60.0
    logits[2] = float("nan")
    assert _on_device(tree, logits, Sampling(1.0), _generator()).tokens == [1, 1]
    logits[1] = float("nan")
    assert _on_device(tree, logits, Sampling(1.0), _generator()).tokens == [1, NO_TOKEN]


def test_a_draw_lies_where_the_chance_says_and_never_where_there_is_none() -> None:
    """By the cumulated weights; the largest chance below one is the last token that has any."""
    weights = torch.tensor([[0.0, 2.0, 0.0, 6.0, 0.0]]).expand(4, -1)
    chances = torch.tensor([0.0, 0.2, 0.3, 1.0], dtype=torch.float64)
    assert drawn(weights, chances).tolist() == [1, 1, 3, 3]


LOOKS = {
    "item", "tolist", "cpu", "numpy", "nonzero", "argwhere", "masked_select", "unique", "equal",
    "__bool__", "__int__", "__float__", "__index__",
}  # fmt: skip


def _is_look(name: str, args: tuple[Any, ...]) -> bool:
    """Also a copy to the CPU, and an index that is a mask, whose true values torch counts first."""
    if name == "to":
        return "cpu" in args[1:]
    if name in ("__getitem__", "__setitem__"):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(one, Tensor) and one.dtype == torch.bool for one in index)
    return name in LOOKS


class OnDevice(torch.Tensor):
    """A tensor that says it is on a GPU; whatever is made of it does, too, and who looks at it is counted."""

    looks = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Looks alone lead to the host."""
        if func == torch.Tensor.is_cuda.__get__:
            return True
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
        if _is_look(getattr(func, "__name__", ""), args):
            OnDevice.looks += 1
            return found.as_subclass(torch.Tensor) if isinstance(found, torch.Tensor) else found
        return torch.utils._pytree.tree_map_only(torch.Tensor, lambda one: one.as_subclass(OnDevice), found)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often somebody looked since this was asked the last time."""
    OnDevice.looks = 0

    def since() -> int:
        found, OnDevice.looks = OnDevice.looks, 0
        return found

    replace_everywhere(monkeypatch, "uploaded", lambda values, _: values.as_subclass(OnDevice))
    EmulatedCuda(monkeypatch)
    return since


def test_the_fake_counts_looks(looks: Callable[[], int]) -> None:
    """And only those."""
    tensor = torch.ones(3).as_subclass(OnDevice)
    (tensor + 1)[:2].sum()
    assert looks() == 0
    assert float(tensor.sum()) == 3.0
    assert tensor[0].item() == 1.0
    if tensor[0] > 0:
        tensor.tolist()
    assert len(tensor[tensor > 0]) == len(tensor.to("cpu"))
    assert looks() == 6


@pytest.mark.parametrize("mode", ["exact", "typical", "cascade"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, 0.9, 20)])
@pytest.mark.parametrize(
    "tree",
    [
        random_tree(12, 4, range(9), np.random.default_rng(2)),
        DraftTree.chain([1, 2, 0], [0.5] * 3),
        DraftTree.from_parents([1, 2, 0], [-1, -1, 0], [0.5] * 3, torch.full((3, 9), 1 / 9)),
    ],
)
def test_the_host_waits_once_for_a_verdict(
    sampling: Sampling, tree: DraftTree, mode: str, looks: Callable[[], int]
) -> None:
    """Whatever decides, of whatever kind the tree is; for several texts in a pass as well."""
    logits = torch.randn(len(tree) + 1, 9).as_subclass(OnDevice)
    judging = Judging(tree, logits, sampling, _generator(), Acceptance(mode))
    verify([judging])
    assert looks() == 1
    verify([judging] * 3)
    assert looks() == 1


def test_what_is_fetched_together_is_what_it_was() -> None:
    """Whatever the types and shapes, none at all among them, after one wait."""
    tensors = [torch.tensor(7), torch.rand(2, 3), torch.tensor([True, False]), torch.zeros(0, 4)]
    OnDevice.looks = 0
    found = devices.fetched(*(tensor.as_subclass(OnDevice) for tensor in tensors))
    assert OnDevice.looks == 1
    for ours, tensor in zip(found, tensors, strict=True):
        np.testing.assert_array_equal(ours, tensor.numpy())
        assert ours.dtype == tensor.numpy().dtype


def _networks() -> tuple[LlamaDecoder, nn.Linear]:
    torch.manual_seed(4)
    config = LlamaConfig(40, 32, 48, 2, 4, 4, 8, max_positions=256)
    return LlamaDecoder(config).eval(), nn.Linear(32, 40, bias=False)


def _put_on_device(network: nn.Module) -> None:
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            on_device = parameter.detach().as_subclass(OnDevice)
            setattr(module, name, nn.Parameter(on_device, requires_grad=False))


class _Counting(ScriptedDrafter):
    """Trees around a text, and the looks between two proposals."""

    def __init__(self, text: tuple[int, ...], looks: Callable[[], int]) -> None:
        super().__init__(self._tree, layers=(0, 2))
        self._looks, self._known = looks, text
        self.counts: list[int] = []

    def _tree(self, history: list[int], limits: DraftLimits, *_: object) -> DraftTree:
        self.counts.append(self._looks())
        ahead = self._known[len(history) :][: min(4, limits.n_max)]
        tokens = [one for token in ahead for one in ((token + 1) % 40, token)]
        parents = [parent for level in range(len(ahead)) for parent in (2 * level - 1,) * 2]
        return DraftTree.from_parents(tokens, parents, [0.5] * len(tokens))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_host_waits_once_a_turn(temperature: float, looks: Callable[[], int]) -> None:
    """From a proposal to the next: ids, mask and kept rows go to the device without a look back, features and
    probabilities stay there. Greedily the text is that of the host's own way.
    """
    decoder, lm_head = _networks()
    prompt = Prompt(torch.randn(1, 9, 32))
    settings = {"max_new_tokens": 30, "temperature": temperature, "seed": 5}
    text = generate(DecoderTarget(decoder, lm_head, (), str), NoDrafter(), prompt, **settings).tokens
    _put_on_device(decoder)
    _put_on_device(lm_head)
    drafter = _Counting(text, looks)
    target = DecoderTarget(decoder, lm_head, (), str)
    found = generate(target, drafter, prompt, limits=DraftLimits(4, 8), **settings)
    assert len(drafter.counts) > 3
    assert set(drafter.counts[1:]) == {1}
    if temperature == 0.0:
        assert found.tokens == text


def _everything_on_device(name: str) -> tuple[DecoderTarget, Drafter]:
    """A target and a drafter, with all parameters of their networks there."""
    target = random_target()
    drafter = random_drafter(name, target, engines=DrafterEngines.like(target.engine))
    for network in (target.decoder, target.lm_head, *_networks_of(drafter)):
        _put_on_device(network)
    return target, drafter


def _networks_of(owner: object, depth: int = 4) -> Iterator[nn.Module]:
    """What a drafter holds, its parts' and engines' networks among it."""
    for held in vars(owner).values() if hasattr(owner, "__dict__") and depth > 0 else ():
        if isinstance(held, nn.Module):
            yield held
        elif type(held).__module__.startswith("evspec_ros."):
            yield from _networks_of(held, depth - 1)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("name", DRAFTERS)
def test_the_host_waits_once_a_turn_whatever_drafts(
    name: str, temperature: float, looks: Callable[[], int]
) -> None:
    """From the second proposal on, behind what is read once a text: a draft is grown, judged and kept, and
    the host looks at what was accepted. Greedily the text is the target's own.
    """
    prompt, text = random_prompts(2)[1], naive_text(random_target(), random_prompts(2)[1], 24)
    found = _counted(*_everything_on_device(name), looks, prompt, temperature)
    if temperature == 0.0:
        assert list(found.tokens) == text


def test_who_learns_from_a_text_waits_when_it_is_complete(looks: Callable[[], int]) -> None:
    """What is kept of it stays on the device until then."""
    target, drafter = _everything_on_device("block")
    kept: list[Callable[[], Written]] = []
    pupil = Pupil(random_head("block"), drafter.layers)
    prompt = random_prompts(2)[1]
    _counted(target, ObservedDrafter(drafter, pupil, kept.append), looks, prompt, 0.0)
    assert len(kept) == 1


def _counted(
    target: DecoderTarget, drafter: Any, looks: Callable[[], int], prompt: Prompt, temperature: float
) -> Generation:
    """A text of which each turn has one look, from the second on."""
    counts, propose = list[int](), drafter.propose
    drafter.propose = lambda *given: (counts.append(looks()), propose(*given))[1]
    settings: dict[str, Any] = {"max_new_tokens": 24, "temperature": temperature, "limits": DraftLimits(4, 7)}
    found = generate(target, drafter, prompt, **settings)
    assert len(counts) > 3
    assert set(counts[2:]) == {1}
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_turn_on_a_gpu_waits_for_the_verdict_alone(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything else in the loop is refused by torch if it waits; the text is the CPU's."""
    decoder, lm_head = _networks()
    prompt = Prompt(torch.randn(1, 9, 32))
    settings = {"max_new_tokens": 30, "temperature": temperature, "seed": 5}
    text = generate(DecoderTarget(decoder, lm_head, (), str), NoDrafter(), prompt, **settings).tokens
    decoder, lm_head = decoder.cuda(), lm_head.cuda()
    target = DecoderTarget(decoder, lm_head, (), str, engine=GraphedDecoder(decoder, lm_head))
    prompt = Prompt(prompt.embeddings.cuda())
    found = _strictly(target, _Counting(text, lambda: 0), prompt, monkeypatch, **settings)
    if temperature == 0.0:
        assert found.tokens == text


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("name", DRAFTERS)
def test_a_turn_on_a_gpu_waits_for_the_verdict_alone_whatever_drafts(
    name: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same of every drafter with its own networks, from its second draft on."""
    prompt, text = random_prompts(2)[1], naive_text(random_target(), random_prompts(2)[1], 24)
    events = prompt.events
    assert events is not None
    on_cpu = random_target()
    decoder, lm_head = on_cpu.decoder.cuda(), on_cpu.lm_head.cuda()
    target = DecoderTarget(decoder, lm_head, (), str, engine=GraphedDecoder(decoder, lm_head))
    kinds = DRAFTERS[name].head_kinds
    head = random_head(kinds[0]).cuda() if kinds else None
    drafter = make_drafter(name, target, DraftModels(head, random_event_model().cuda(), EventSide()))
    prompt = replace(prompt, embeddings=prompt.embeddings.cuda(), events=lambda: events().cuda())
    found = _strictly(target, drafter, prompt, monkeypatch, max_new_tokens=24, temperature=temperature)
    if temperature == 0.0:
        assert list(found.tokens) == text


def _strictly(
    target: DecoderTarget, drafter: Any, prompt: Prompt, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> Generation:
    """A text in which torch refuses every wait but that for a verdict, from the second draft on."""
    settings["limits"] = DraftLimits(4, 8)
    generate(target, drafter, prompt, **settings)  # captures
    drafter.forget()
    propose, mode = drafter.propose, ["default"]

    def strict(*given: Any) -> Any:
        torch.cuda.set_sync_debug_mode(mode[0])
        mode[0] = "error"
        return propose(*given)

    def waits(*tensors: Tensor) -> list[Any]:
        torch.cuda.set_sync_debug_mode("default")
        try:
            return devices.fetched(*tensors)
        finally:
            torch.cuda.set_sync_debug_mode(mode[0])

    def finish(_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    drafter.propose, drafter.finish = strict, finish
    monkeypatch.setattr("evspec_ros.speculative.verification.fetched", waits)
    try:
        return generate(target, drafter, prompt, **settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
