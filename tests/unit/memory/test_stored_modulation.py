"""Few bits lose little, and the same little every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mac_core.config import MODULATION_BITS, ModulationBits
from mac_core.memory.codebook import train_codebook
from mac_core.memory.quantization import pack, with_codebook, with_vectors
from mac_core.types import Modulation

Make = Callable[..., Modulation]


@pytest.mark.parametrize("bits", MODULATION_BITS)
def test_every_number_of_bits_comes_back_near_what_it_was(
    make_modulation: Make, bits: ModulationBits
) -> None:
    modulation = make_modulation("x")
    stored = pack(modulation, bits=bits)
    assert (stored.encoding.bits, stored.num_slots) == (bits, 2)
    lost = (stored.unpack().slots - modulation.slots).norm() / modulation.slots.norm()
    assert float(lost) < {32: 1e-9, 16: 1e-3, 8: 0.01, 4: 0.11, 2: 0.38}[bits]


def test_what_slots_have_in_common_is_stored_once(make_modulation: Make) -> None:
    modulation = make_modulation("x")
    modulation.slots[:] += 50
    lost = pack(modulation, bits=4).unpack().slots - modulation.slots
    assert float(lost.square().mean().sqrt()) < 0.15  # of 50: nothing, of the rest: 4 bits


def test_one_slot_has_nothing_in_common_with_others(make_modulation: Make) -> None:
    modulation = replace(make_modulation("x"), slots=torch.ones(1, 130))
    stored = pack(modulation, bits=4)
    assert stored.slot_center is None
    torch.testing.assert_close(stored.unpack().slots, modulation.slots, rtol=0, atol=0.3)


def test_slots_that_share_a_vector_come_back_alike(make_modulation: Make) -> None:
    vectors = torch.randn(2, 130, generator=torch.Generator().manual_seed(0))
    stored = with_vectors(pack(make_modulation("x")), vectors, torch.tensor([1, 0, 1]), bits=8)
    slots = stored.unpack().slots
    assert (stored.num_slots, slots.shape) == (3, (3, 130))
    assert torch.equal(slots[0], slots[2])
    torch.testing.assert_close(slots[1], vectors[0], rtol=0, atol=0.02)


def test_codes_come_back_through_their_codebook(make_modulation: Make) -> None:
    slots = make_modulation("x").slots
    stored = with_codebook(pack(make_modulation("x")), slots, train_codebook(slots, num_parts=5))
    assert stored.slots.shape == (2, 5)
    torch.testing.assert_close(stored.unpack().slots, slots, rtol=0, atol=0.01)
    with pytest.raises(ValueError, match=f"codebook {stored.encoding.codebook_id}"):
        replace(stored, codebook=None).unpack()


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
    assert not pack(modulation, bits=8).unpack().slots[0].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_values_without_a_scale_are_refused(make_modulation: Make, value: float) -> None:
    modulation = make_modulation("x")
    modulation.slots[0, 0] = value
    with pytest.raises(ValueError, match="float16 scale"):
        pack(modulation)


def test_num_bytes_counts_every_tensor(make_modulation: Make) -> None:
    stored = pack(make_modulation("x"), bits=8)
    slots, key, tokens, pointer = 2 * 130 + 2 * 2 * 2, 8 * 2, 3 * 2 + 6 * 1, 3 * 6 + 3 * 2
    assert stored.num_bytes == slots + key + tokens + pointer


def test_a_stored_row_of_a_batch_does_not_keep_the_batch(make_modulation: Make) -> None:
    batch = torch.randn(50, 8)
    modulation = make_modulation("x")
    row = Modulation(
        slots=modulation.slots, selection_key=batch[3], token_ids=modulation.token_ids,
        token_offsets=modulation.token_offsets,
    )  # fmt: skip
    assert pack(row).selection_key.untyped_storage().nbytes() == 8 * 2
