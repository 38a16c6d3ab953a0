"""Keys read in parts give what they give as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evspec_ros.networks import attention
from evspec_ros.networks.attention import attend, attend_in_parts, hidden_score
from evspec_ros.networks.kernels import INDUCTOR, Kernels, using

SIZE = 16
SCALE = SIZE**-0.5


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def _seen(rows: int, keys: int, random: torch.Generator) -> Tensor:
    """Which keys each row sees: any of them and at least one; some rows one alone, and whole parts none."""
    seen = torch.rand(rows, keys, generator=random) < torch.rand(rows, 1, generator=random)
    seen[::3] = False
    seen[:, : keys // 2] &= torch.rand(rows, 1, generator=random) < 0.5
    seen[torch.arange(rows), torch.randint(keys, (rows,), generator=random)] = True
    return seen


def _inputs(
    rows: int, keys: int, heads: int, groups: int, dtype: torch.dtype, seed: int, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and a mask; keys and values as views of a longer cache, whose rows beyond them are NaN."""
    random = torch.Generator().manual_seed(seed)
    q = torch.randn(1, rows, heads, SIZE, generator=random).transpose(1, 2) * 3
    cache = torch.randn(2, 3, 1, heads // groups, keys + 128, SIZE, generator=random)
    cache[..., keys:, :] = float("nan")
    mask = torch.zeros(rows, keys).masked_fill_(~_seen(rows, keys, random), hidden_score(dtype))
    q, cache, mask = (x.to(device, dtype) for x in (q, cache, mask))
    k, v = cache[:, 1, :, :, :keys]
    return q, k, v, mask


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 64),
    st.sampled_from([256, 384, 512, 640, 768, 1024]),
    st.sampled_from([(4, 1), (4, 2), (6, 3), (4, 4)]),
    st.sampled_from([2, 4, 8, 16]),
    st.integers(0, 2**31),
)
def test_parts_give_what_the_whole_gives(
    rows: int, keys: int, heads: tuple[int, int], number: int, seed: int
) -> None:
    """In float32 within 1e-5, for rows that see nothing in a part or one key in all of them, of grouped heads
    as well; rows of the cache beyond the keys may hold NaN.
    """
    q, k, v, mask = _inputs(rows, keys, *heads, torch.float32, seed)
    whole = attend(q, k, v, mask, heads[1], SCALE)
    parts = attend_in_parts(q, k, v, mask, heads[1], SCALE, number)
    assert parts.shape == whole.shape == (1, rows, heads[0], SIZE)
    assert (parts - whole).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parts_in_half_precision_are_as_near_to_float32_as_the_whole(dtype: torch.dtype) -> None:
    """Up to the rounding of what the parts give."""
    given = _inputs(24, 768, 4, 1, dtype, 1)
    q, k, v, mask = (x.float() for x in given)
    exact = attend(q, k, v, mask, 1, SCALE)
    whole, parts = attend(*given, 1, SCALE), attend_in_parts(*given, 1, SCALE, 4)
    assert parts.dtype == dtype
    errors = [(found.float() - exact).abs().max() for found in (whole, parts)]
    assert errors[1] <= 2 * errors[0] + torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_row_is_the_same_alone_and_among_others(dtype: torch.dtype) -> None:
    """Bit for bit, where the number of rows is the same."""
    q, k, v, mask = _inputs(8, 512, 4, 1, dtype, 2)
    among = attend_in_parts(q, k, v, mask, 1, SCALE, 4)
    alone = attend_in_parts(q[:, :, 3:4].expand(-1, -1, 8, -1), k, v, mask[3:4].expand(8, -1), 1, SCALE, 4)
    assert torch.equal(alone[0, 5], among[0, 3])


@pytest.mark.parametrize(
    ("heads", "rows", "keys", "multiprocessors", "parts"),
    [
        ((32, 32), 1, 2304, 132, 8),  # an H100: 256 blocks on 264 places
        ((32, 32), 64, 2304, 132, 8),
        ((32, 32), 65, 2304, 132, 1),  # a prompt's rows
        ((32, 32), 1, 2300, 132, 1),  # a part would begin anywhere
        ((32, 32), 1, 384, 132, 2),
        ((32, 32), 1, 128, 132, 1),
        ((32, 32), 1, 2304, 16, 1),  # an Orin: every place has a head already
        ((32, 32), 24, 2304, 108, 4),
        ((64, 64), 24, 2304, 132, 4),
        ((32, 8), 1, 4096, 132, 16),  # grouped heads: no more than 16
        ((32, 8), 64, 4096, 132, 8),
    ],
)
def test_keys_are_read_in_as_many_parts_as_a_gpu_has_places_for(
    heads: tuple[int, int], rows: int, keys: int, multiprocessors: int, parts: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Never for several texts, nor where nothing is compiled."""
    compilers: list[str | None] = [INDUCTOR]
    monkeypatch.setattr(attention, "compiler_for", lambda _: compilers[-1])
    monkeypatch.setattr(attention, "_multiprocessors", lambda _: multiprocessors)
    q, k = torch.empty(2, heads[0], rows, 8), torch.empty(1, heads[1], keys, 8)
    assert attention._parts(q[:1], k) == parts
    assert attention._parts(q, k) == 1
    compilers.append(None)
    assert attention._parts(q[:1], k) == 1


def test_the_kernel_for_gpus_takes_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its schema and shapes, which torch knows without a GPU; what it pads is cut off, and a part of the
    mask begins where it may.
    """
    asked: list[Tensor] = []
    real = torch.ops.aten._scaled_dot_product_efficient_attention

    def kernel(*given: Tensor, **settings: object) -> tuple[Tensor, ...]:
        asked.append(given[3])
        mixed, sums, *others = real(*given, **settings)
        assert sums.shape == (4, 2, 32)
        return mixed, sums, *others

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_efficient_attention", kernel)
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda _: True))
    given = _inputs(5, 640, 4, 2, torch.float16, 0, "meta")
    with using(Kernels(None, split=False)):
        assert attend_in_parts(*given, 2, SCALE, 4).shape == (1, 5, 4, SIZE)
    (mask,) = asked
    assert mask.shape == (4, 2, 10, 160)
    assert all(stride % 8 == 0 for stride in mask.stride()[:-1])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parts_give_what_the_whole_gives_on_a_gpu(dtype: torch.dtype) -> None:
    """By the kernel for GPUs, whose sums are padded; of one row and of many."""
    tolerance = 1e-4 if dtype == torch.float32 else 4e-3
    for rows in (1, 8, 33, 64):
        for heads, groups in ((4, 1), (4, 2)):
            given = _inputs(rows, 768, heads, groups, dtype, rows, "cuda")
            with using(Kernels(None, split=False)):
                whole = attend(*given, groups, SCALE)
                for number in (2, 4, 8, 16):
                    parts = attend_in_parts(*given, groups, SCALE, number)
                    assert (parts - whole).abs().max() <= tolerance
