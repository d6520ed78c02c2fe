"""Every number of bits: what comes back, how far off it may be, and that rows do not mix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mac_core.config import MODULATION_BITS
from mac_core.memory.packing import BLOCK, decode_rows, encode_rows

SHAPES = st.tuples(st.integers(0, 5), st.sampled_from([1, 2, 3, 31, 96, 128, 130, 384]))
# Root-mean-square error over root-mean-square value, for normal values; 4 and 2 bits: the
# distortion of Max's levels is 0.0095 and 0.1175.
NORMAL_ERROR = {32: 0.0, 16: 5e-4, 8: 0.01, 4: 0.11, 2: 0.37}


def back(values: Tensor, bits: Any) -> Tensor:
    stored, scales = encode_rows(values, bits=bits)
    return decode_rows(stored, scales, bits=bits, width=values.shape[1])


def normal(rows: int, width: int, *, seed: int, size: float = 1.0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * size


@pytest.mark.parametrize("bits", MODULATION_BITS)
@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 1000), size=st.sampled_from([1e-2, 1.0, 300.0]))
def test_a_row_takes_its_bits_and_comes_back_in_shape(
    bits: Any, shape: tuple[int, int], seed: int, size: float
) -> None:
    values = normal(*shape, seed=seed, size=size)
    stored, scales = encode_rows(values, bits=bits)
    assert stored.shape[1] * stored.element_size() == -(-shape[1] * bits // 8)
    assert (scales is None) == (bits >= 16)
    assert back(values, bits).shape == values.shape


@pytest.mark.parametrize("bits", MODULATION_BITS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), size=st.sampled_from([1e-2, 1.0, 300.0]))
def test_normal_values_lose_what_is_stated(bits: Any, seed: int, size: float) -> None:
    values = normal(16, 384, seed=seed, size=size)  # of 4, one seed in a thousand loses 0.111
    error = (back(values, bits) - values).square().mean().sqrt()
    assert float(error / values.square().mean().sqrt()) <= NORMAL_ERROR[bits]


@pytest.mark.parametrize("bits", MODULATION_BITS)
@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-1000, 1000, width=32), min_size=24, max_size=24), min_size=1, max_size=4
    )
)
def test_no_row_is_worse_than_zeros_would_be(bits: Any, rows: list[list[float]]) -> None:
    values = torch.tensor(rows)
    lost = (back(values, bits) - values).norm(dim=1)
    assert bool((lost <= values.norm(dim=1) * 1.001 + 1e-4).all())


def test_eight_bits_are_off_by_half_a_step_of_their_block() -> None:
    values = normal(3, 130, seed=1)
    _, scales = encode_rows(values, bits=8)
    assert scales is not None
    steps = scales.float().repeat_interleave(BLOCK, dim=1)[:, :130]
    # Half a step by rounding, and the scale's own float16 rounding at the extremes.
    assert bool(((back(values, 8) - values).abs() <= steps * 0.6).all())


@pytest.mark.parametrize("bits", [4, 2])
def test_one_huge_value_does_not_drown_its_block(bits: Any) -> None:
    values = normal(1, 128, seed=2)
    values[0, 5] = 40.0
    kept = back(values, bits)
    assert float((kept - values).norm() / values.norm()) < 0.4
    assert float(kept[0, 5]) == pytest.approx(40.0, rel=0.2)


@pytest.mark.parametrize("bits", MODULATION_BITS)
def test_a_row_comes_back_the_same_whatever_stands_beside_it(bits: Any) -> None:
    values = normal(7, 384, seed=3)
    assert torch.equal(back(values, bits)[2:3], back(values[2:3], bits))


@pytest.mark.parametrize("bits", MODULATION_BITS)
def test_zeros_come_back_as_zeros(bits: Any) -> None:
    assert not back(torch.zeros(2, 130), bits).any()


@pytest.mark.parametrize("bits", MODULATION_BITS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bits: Any, value: float) -> None:
    values = torch.ones(2, 130)
    values[1, 129] = value
    with pytest.raises(ValueError, match=r"(?i)finite|float16 scale"):
        encode_rows(values, bits=bits)


@pytest.mark.parametrize(("bits", "width"), [(4, 384), (4, 300), (2, 256)])
def test_bytes_of_another_shape_are_refused(bits: Any, width: int) -> None:
    stored, scales = encode_rows(torch.ones(2, 256), bits=4)
    with pytest.raises(ValueError, match=f"{bits} bits of width {width}"):
        decode_rows(stored, scales, bits=bits, width=width)
