"""Our decoder against transformers' on the same weights."""

from __future__ import annotations

import random as random_module
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import lively, llama_config
from torch import Tensor
from transformers import LlamaConfig as HfLlamaConfig
from transformers import LlamaModel

from evspec_ros.errors import CheckpointError, GenerationError
from evspec_ros.networks.llama import KVCache, LlamaConfig, LlamaDecoder, dequantise_rows, quantise_rows

TOLERANCE = 1e-4
# A tree behind a prefix, row by row its parent's row (-1: the prefix's last token):
#
#   0 ── 1 ── 3
#   │    └─── 4 ── 6
#   └─── 2 ── 5
PARENTS = (-1, 0, 0, 1, 1, 2, 4)


def path_to(row: int) -> list[int]:
    """The rows from the root of the tree to `row`, itself included."""
    return [*path_to(PARENTS[row]), row] if row >= 0 else []


def tree_mask() -> Tensor:
    """True where a row may see another: its ancestors and itself."""
    mask = torch.zeros(len(PARENTS), len(PARENTS), dtype=torch.bool)
    for row in range(len(PARENTS)):
        mask[row, path_to(row)] = True
    return mask


def tree_positions(prefix: int) -> Tensor:
    """Prefix length + depth."""
    return torch.tensor([prefix + len(path_to(row)) - 1 for row in range(len(PARENTS))])


@pytest.fixture(scope="module", params=[4, 2, 1], ids=["multi-head", "grouped", "multi-query"])
def pair(request: pytest.FixtureRequest) -> tuple[LlamaDecoder, LlamaModel]:
    """Our decoder and transformers' with one set of weights."""
    config = llama_config(request.param)
    ours = LlamaDecoder(config).eval()
    lively(ours)
    theirs = LlamaModel(HfLlamaConfig(**config.to_hf())).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.fixture(autouse=True)
def _inference() -> object:
    with torch.inference_mode():
        yield


def embeddings(rows: int, batch: int = 1) -> Tensor:
    """Random inputs [batch, rows, 64]."""
    return torch.randn(batch, rows, 64, generator=torch.Generator().manual_seed(3))


def reference(model: LlamaModel, inputs: Tensor) -> Tensor:
    """Their hidden states for whole sequences without a cache."""
    return model(inputs_embeds=inputs, use_cache=False).last_hidden_state


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    """Equal within the tolerance, element by element."""
    assert (ours - theirs).abs().max() <= TOLERANCE


def test_the_models_under_test_are_not_degenerate(pair: tuple[LlamaDecoder, LlamaModel]) -> None:
    """A row's output depends on every row before it by far more than the tolerance."""
    ours, _ = pair
    inputs = embeddings(20)
    changed = inputs.clone()
    changed[0, 0] += 1.0
    difference = (ours(inputs).hidden - ours(changed).hidden).abs().amax(-1)[0]
    assert (difference > 100 * TOLERANCE).all()


@pytest.mark.parametrize("batch", [1, 3])
def test_prefill_equals_transformers(pair: tuple[LlamaDecoder, LlamaModel], batch: int) -> None:
    """Whole sequences, with and without a cache, give transformers' hidden states."""
    ours, theirs = pair
    inputs = embeddings(33, batch)
    expected = reference(theirs, inputs)
    assert_equal(ours(inputs).hidden, expected)
    assert_equal(ours(inputs, KVCache(ours.config, 40, batch)).hidden, expected)


def test_one_token_steps_equal_transformers(pair: tuple[LlamaDecoder, LlamaModel]) -> None:
    """A prefill and then a step per token give the hidden states of the whole sequence."""
    ours, theirs = pair
    inputs = embeddings(20)
    cache = KVCache(ours.config, 20)
    rows = [ours(inputs[:, :12], cache).hidden]
    rows += [ours(inputs[:, index : index + 1], cache).hidden for index in range(12, 20)]
    assert cache.length == 20
    assert_equal(torch.cat(rows, 1), reference(theirs, inputs))


def test_a_cached_prefix_is_seen_by_a_causal_block(pair: tuple[LlamaDecoder, LlamaModel]) -> None:
    """Blocks of several rows behind a prefix give the hidden states of the whole sequence."""
    ours, theirs = pair
    inputs = embeddings(30)
    cache = KVCache(ours.config, 64)
    blocks = [ours(inputs[:, start:stop], cache).hidden for start, stop in ((0, 9), (9, 17), (17, 30))]
    assert_equal(torch.cat(blocks, 1), reference(theirs, inputs))


def test_truncating_the_cache_forgets_what_was_written(pair: tuple[LlamaDecoder, LlamaModel]) -> None:
    """After a rollback other rows can follow the shorter prefix."""
    ours, theirs = pair
    inputs = embeddings(16)
    cache = KVCache(ours.config, 16)
    ours(inputs[:, :10], cache)
    ours(embeddings(6) * 3, cache)
    cache.truncate(10)
    assert_equal(ours(inputs[:, 10:], cache).hidden, reference(theirs, inputs)[:, 10:])


def test_every_row_of_a_tree_equals_transformers_on_its_path(pair: tuple[LlamaDecoder, LlamaModel]) -> None:
    """One pass over a tree gives each node what transformers gives at the end of the node's own path."""
    ours, theirs = pair
    prefix, nodes = embeddings(11), embeddings(len(PARENTS) + 11)[:, 11:]
    cache = KVCache(ours.config, 32)
    ours(prefix, cache)
    verified = ours(nodes, cache, tree_positions(11), tree_mask()).hidden
    for row in range(len(PARENTS)):
        sequence = torch.cat((prefix, nodes[:, path_to(row)]), 1)
        assert_equal(verified[:, row], reference(theirs, sequence)[:, -1])


def test_a_tree_of_prompts_without_a_cache_equals_transformers(pair: tuple[LlamaDecoder, LlamaModel]) -> None:
    """The mask and the positions are honoured on an empty cache, too."""
    ours, theirs = pair
    nodes = embeddings(len(PARENTS))
    verified = ours(nodes, None, tree_positions(0), tree_mask()).hidden
    for row in range(len(PARENTS)):
        assert_equal(verified[:, row], reference(theirs, nodes[:, path_to(row)])[:, -1])


def test_kept_rows_continue_as_if_they_alone_had_been_read(pair: tuple[LlamaDecoder, LlamaModel]) -> None:
    """Gathering an accepted path (here rows 0, 1, 4, 6) leaves the cache of the plain sequence."""
    ours, theirs = pair
    prefix, nodes, last = embeddings(9), embeddings(len(PARENTS) + 9)[:, 9:], embeddings(1) * 0.5
    accepted = path_to(6)
    cache = KVCache(ours.config, 32)
    ours(prefix, cache)
    ours(nodes, cache, tree_positions(9), tree_mask())
    cache.keep(torch.tensor(accepted))
    assert cache.length == 9 + len(accepted)
    sequence = torch.cat((prefix, nodes[:, accepted], last), 1)
    assert_equal(ours(last, cache).hidden[:, 0], reference(theirs, sequence)[:, -1])


def test_features_are_the_hidden_states_that_enter_layers(pair: tuple[LlamaDecoder, LlamaModel]) -> None:
    """Index i is transformers' hidden_states[i]; num_layers is the last output, not yet normed."""
    ours, theirs = pair
    inputs = embeddings(8)
    captured: list[Tensor] = []
    hook = theirs.norm.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    states = theirs(inputs_embeds=inputs, output_hidden_states=True, use_cache=False).hidden_states
    hook.remove()
    output = ours(inputs, layers=(2, 0, 3))
    assert_equal(output.features[0], states[2])
    assert torch.equal(output.features[1], inputs)
    assert_equal(output.features[2], captured[0])
    assert_equal(ours.norm(output.features[2]), output.hidden)


def test_gradients_equal_transformers(pair: tuple[LlamaDecoder, LlamaModel]) -> None:
    """The decoder trains as transformers' does: gradients of every parameter agree."""
    ours, theirs = pair
    inputs = embeddings(7, 2).clone()
    with torch.inference_mode(False), torch.enable_grad():
        inputs = inputs.clone()
        ours(inputs).hidden.sin().sum().backward()
        reference(theirs, inputs).sin().sum().backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if name != "embed_tokens.weight":
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-3, rtol=1e-3)
    ours.zero_grad()
    theirs.zero_grad()


def test_autocast_to_bfloat16_stays_near_float32(pair: tuple[LlamaDecoder, LlamaModel]) -> None:
    """Mixed precision runs without a cast by the caller and within bfloat16's accuracy."""
    ours, _ = pair
    inputs = embeddings(12, 2)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ours(inputs).hidden
    assert (mixed.float() - ours(inputs).hidden).abs().mean() < 0.03


def test_a_half_precision_decoder_and_cache_stay_near_float32() -> None:
    """Weights and cache in bfloat16 give nearly the same hidden states, tree masks included."""
    config = llama_config()
    ours = LlamaDecoder(config).eval()
    lively(ours)
    nodes = embeddings(len(PARENTS))
    expected = ours(nodes, None, tree_positions(0), tree_mask()).hidden
    half = LlamaDecoder(config).eval().to(torch.bfloat16)
    half.load_state_dict(ours.state_dict())
    cache = KVCache(config, 16, dtype=torch.bfloat16)
    found = half(nodes.bfloat16(), cache, tree_positions(0), tree_mask()).hidden
    assert (found.float() - expected).abs().mean() < 0.05


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    exponent=st.floats(-20, 4),
    dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
)
def test_an_int8_row_is_within_half_a_scale(seed: int, exponent: float, dtype: torch.dtype) -> None:
    """Whatever its magnitude and dtype, zeros included, and the scale is the largest magnitude / 127."""
    x = (torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(seed)) * 10**exponent).to(dtype)
    x[0, 0] = 0
    rows, scales = quantise_rows(x)
    assert rows.dtype == torch.int8
    assert rows.shape == x.shape
    torch.testing.assert_close(scales, (x.float().abs().amax(-1, True) / 127).clamp(min=1.2e-38))
    assert ((x.float() - dequantise_rows(rows, scales, torch.float32)).abs() <= scales * 0.5001).all()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.int8, 0.04)], ids=["float16", "int8"]
)
def test_a_smaller_cache_stays_near_float32(
    dtype: torch.dtype, tolerance: float, pair: tuple[LlamaDecoder, LlamaModel]
) -> None:
    """A prefill, a tree, its accepted path and a step: mean |difference| of hidden states of magnitude 1,
    float16 within 2e-3 and int8 within 0.04; `keep` moves the scales with their rows.
    """
    ours, _ = pair
    prefix, nodes, last = embeddings(9), embeddings(len(PARENTS) + 9)[:, 9:] * 3, embeddings(1) * 0.5
    nodes[:, 0] *= 100  # a wrong scale would show
    results = []
    for cache in (KVCache(ours.config, 32), KVCache(ours.config, 32, dtype=dtype)):
        rows = [ours(prefix, cache).hidden, ours(nodes, cache, tree_positions(9), tree_mask()).hidden]
        cache.keep(torch.tensor(path_to(6)[1:]))
        results.append(torch.cat((*rows, ours(last, cache).hidden), 1))
    exact, found = results
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().mean() <= tolerance
    assert (found - exact)[:, -1].abs().mean() <= tolerance


def test_an_int8_cache_reads_alike_in_blocks_and_in_steps(pair: tuple[LlamaDecoder, LlamaModel]) -> None:
    """Rows read at once see each other as rounded as rows read one by one do."""
    ours, _ = pair
    inputs = embeddings(20)
    whole = ours(inputs, KVCache(ours.config, 20, dtype=torch.int8)).hidden
    cache = KVCache(ours.config, 20, dtype=torch.int8)
    steps = [ours(inputs[:, index : index + 1], cache).hidden for index in range(20)]
    assert_equal(torch.cat(steps, 1), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_rows_beyond_the_length_are_zeros_in_every_pass(
    pair: tuple[LlamaDecoder, LlamaModel], dtype: torch.dtype
) -> None:
    """Whatever was read, kept and forgotten before, after random turns of all of these."""
    decoder, random = pair[0], random_module.Random(3)
    cache = KVCache(decoder.config, 48, dtype=dtype)
    for _ in range(60):
        if cache.length > 30:
            cache.truncate(random.randrange(10))
        rows = random.randrange(1, 8)
        decoder(embeddings(rows), cache)
        for stored in (cache._kv, cache._scales):
            assert not stored[:, :, :, :, cache.length :].any()
        if random.random() < 0.5:
            cache.keep(torch.tensor(sorted(random.sample(range(rows), random.randrange(1, rows + 1)))))
        else:
            cache.truncate(cache.length - random.randrange(rows + 1))


def test_a_full_cache_is_refused(pair: tuple[LlamaDecoder, LlamaModel]) -> None:
    """Rows that do not fit raise one sentence and leave the cache as it was."""
    ours, _ = pair
    cache = KVCache(ours.config, 8)
    ours(embeddings(6), cache)
    with pytest.raises(GenerationError, match=r"holds 8 positions, 6 are taken and 3 more"):
        ours(embeddings(3), cache)
    assert cache.length == 6


def test_more_positions_than_the_model_has_are_refused(pair: tuple[LlamaDecoder, LlamaModel]) -> None:
    """A sequence beyond the position table raises one sentence."""
    ours, _ = pair
    with pytest.raises(GenerationError, match="made for 256 positions and 257"):
        ours(embeddings(257))


def test_defaults_of_a_config_are_transformers_defaults() -> None:
    """What a published config leaves out means what transformers takes it for."""
    assert LlamaConfig.from_hf({}) == LlamaConfig.from_hf(HfLlamaConfig().to_dict()) == LlamaConfig()


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_a_config_survives_both_spellings(theta: float) -> None:
    """transformers 4's flat rope_theta and 5's rope_parameters give the same config."""
    config = replace(llama_config(2), rope_theta=theta)
    assert LlamaConfig.from_hf(config.to_hf()) == config
    assert LlamaConfig.from_hf(HfLlamaConfig(**config.to_hf()).to_dict()) == config
    nested = {key: value for key, value in config.to_hf().items() if key != "rope_theta"}
    nested["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    assert LlamaConfig.from_hf(nested) == config


@pytest.mark.parametrize(
    "entry",
    [{"hidden_act": "gelu"}, {"attention_bias": True}, {"rope_scaling": {"type": "linear", "factor": 2.0}}],
)
def test_a_decoder_of_another_kind_is_refused(entry: dict[str, object]) -> None:
    """What the decoder does not implement is named."""
    with pytest.raises(CheckpointError, match="does not implement"):
        LlamaConfig.from_hf({**llama_config().to_hf(), **entry})


def test_a_config_entry_that_is_no_number_is_refused() -> None:
    """A damaged entry is named with what it holds."""
    with pytest.raises(CheckpointError, match=r"hidden_size of config\.json is 'big'"):
        LlamaConfig.from_hf({**llama_config().to_hf(), "hidden_size": "big"})
