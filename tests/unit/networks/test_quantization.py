"""Weights lose at most half a step when stored, and never their names."""

import pytest
import torch
from torch import Tensor

from mac_core.errors import CheckpointError
from mac_core.networks.quantization import (
    dequantize_rows,
    pack_state,
    quantize_rows,
    unpack_state,
)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_quantized_rows_are_off_by_at_most_half_a_step() -> None:
    rows = normal(3, 5, 64) * torch.logspace(-4, 4, 5).unsqueeze(-1)
    quantized, scale = quantize_rows(rows)
    assert quantized.dtype == torch.int8
    assert scale.shape == (3, 5)
    error = (dequantize_rows(quantized, scale) - rows).abs()
    # 1e-5: float32 rounding of the product, beside the half step of the int8 rounding.
    assert (error <= scale.unsqueeze(-1) * (0.5 + 1e-5)).all()


@pytest.mark.parametrize("value", [0.0, 1e-45])
def test_quantized_row_of_nothing_stays_nothing(value: float) -> None:
    row = torch.full((1, 8), value)
    torch.testing.assert_close(dequantize_rows(*quantize_rows(row)), torch.zeros(1, 8))


def test_quantize_refuses_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        quantize_rows(torch.tensor([[1.0, float("nan")]]))


def test_int8_keeps_small_tensors_and_integers_exactly() -> None:
    state = {"bias": normal(5000), "small": normal(10, 10), "ids": torch.arange(9000).view(90, 100)}
    packed = pack_state(state, dtype="int8")
    assert set(packed) == set(state)
    unpacked = unpack_state(packed)
    assert all(unpacked[name].equal(state[name]) for name in state)


def test_int8_quantizes_large_matrices() -> None:
    packed = pack_state({"weight": normal(64, 64)}, dtype="int8")
    assert {name: value.dtype for name, value in packed.items()} == {
        "weight.int8": torch.int8,
        "weight.scale": torch.float32,
    }


def test_a_parameter_called_scale_is_not_taken_for_the_scales_of_another() -> None:
    state = {"norm.scale": normal(8), "weight": normal(64, 64)}
    assert set(unpack_state(pack_state(state, dtype="int8"))) == set(state)


def test_pack_refuses_two_tensors_under_one_name() -> None:
    with pytest.raises(CheckpointError, match=r"weight\.scale"):
        pack_state({"weight": normal(64, 64), "weight.scale": normal(64)}, dtype="int8")


def test_pack_names_the_tensor_that_is_not_finite() -> None:
    with pytest.raises(CheckpointError, match=r"layer\.weight"):
        pack_state({"layer.weight": torch.tensor([float("inf")])}, dtype="float32")


@pytest.mark.parametrize("scales", [{}, {"weight.scale": torch.ones(63)}])
def test_unpack_refuses_missing_or_foreign_scales(scales: dict[str, Tensor]) -> None:
    packed = pack_state({"weight": normal(64, 64)}, dtype="int8")
    with pytest.raises(CheckpointError, match="weight"):
        unpack_state({"weight.int8": packed["weight.int8"], **scales})


def test_unpack_refuses_steps_of_another_type() -> None:
    packed = pack_state({"weight": normal(64, 64)}, dtype="int8")
    with pytest.raises(CheckpointError, match=r"weight: torch\.int16"):
        unpack_state({**packed, "weight.int8": packed["weight.int8"].to(torch.int16)})
