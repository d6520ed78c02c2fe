"""int8 loses little, and the same little every time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mac_core.memory.packing import BLOCK
from mac_core.memory.quantization import pack
from mac_core.types import Modulation

Make = Callable[..., Modulation]


def test_slots_come_back_within_half_a_level_of_their_block(make_modulation: Make) -> None:
    modulation = make_modulation("x")
    stored = pack(modulation)
    assert stored.slot_scales.shape == (2, 2)  # 130 values: a whole block and a short one
    bound = stored.slot_scales.float().repeat_interleave(BLOCK, dim=1)[:, :130]
    error = (stored.unpack().slots - modulation.slots).abs()
    # Half a level by rounding, and the scale's own float16 rounding at the extremes.
    assert bool((error <= bound * 0.6).all())


def test_pointer_keys_are_scaled_by_token(make_modulation: Make) -> None:
    modulation = make_modulation("x")
    assert modulation.pointer_keys is not None
    modulation.pointer_keys[1] *= 1000
    stored = pack(modulation)
    assert stored.pointer_scales is not None
    assert stored.pointer_scales.shape == (3, 1)
    restored = stored.unpack().pointer_keys
    assert restored is not None
    torch.testing.assert_close(restored[0], modulation.pointer_keys[0], rtol=0, atol=0.02)


def test_the_rest_comes_back_as_it_was(make_modulation: Make) -> None:
    modulation = make_modulation("x", with_pointer=False)
    restored = pack(modulation).unpack()
    assert torch.equal(restored.token_ids, modulation.token_ids)
    assert torch.equal(restored.token_offsets, modulation.token_offsets)
    assert restored.pointer_keys is None
    assert float(restored.selection_key.norm()) == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(restored.selection_key, modulation.selection_key, rtol=0, atol=1e-3)


def test_a_row_of_zeros_stays_zero(make_modulation: Make) -> None:
    modulation = make_modulation("x")
    modulation.slots[0] = 0
    assert not pack(modulation).unpack().slots[0].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_values_without_a_scale_are_refused(make_modulation: Make, value: float) -> None:
    modulation = make_modulation("x")
    modulation.slots[0, 0] = value
    with pytest.raises(ValueError, match="float16 scale"):
        pack(modulation)


def test_num_bytes_counts_every_tensor(make_modulation: Make) -> None:
    stored = pack(make_modulation("x"))
    slots, key, tokens, pointer = 2 * 130 + 2 * 2 * 2, 8 * 2, 3 * 4 + 6 * 4, 3 * 6 + 3 * 2
    assert stored.num_bytes == slots + key + tokens + pointer


def test_a_stored_row_of_a_batch_does_not_keep_the_batch(make_modulation: Make) -> None:
    batch = torch.randn(50, 8)
    modulation = make_modulation("x")
    row = Modulation(
        slots=modulation.slots, selection_key=batch[3], token_ids=modulation.token_ids,
        token_offsets=modulation.token_offsets,
    )  # fmt: skip
    assert pack(row).selection_key.untyped_storage().nbytes() == 8 * 2
