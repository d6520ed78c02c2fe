"""The T5 amortization network: shapes, padding, one pass, and its state dict."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mac_core.config import AmortizationConfig
from mac_core.networks.amortization import SlotMLP, T5Amortization, T5Reader

VIRTUAL_TOKENS, D_MODULATION, D_KEY, PAD = 4, 24, 8, 0
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32, sums over another length

CONFIG = AmortizationConfig(
    kind="t5", num_virtual_tokens=VIRTUAL_TOKENS, d_modulation=D_MODULATION, max_tokens=128
)
BASE = {
    "model_type": "t5",
    "vocab_size": 60,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
}
V1_1 = {**BASE, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def network(t5_config: dict[str, object]) -> T5Amortization:
    torch.manual_seed(0)  # transformers initialises from the global generator
    return T5Amortization(CONFIG, t5_config, d_key=D_KEY).eval()


def document(tokens: int, *, seed: int = 0) -> Tensor:
    return torch.randint(
        1, 60, (1, tokens), generator=torch.Generator().manual_seed(seed)
    )  # (1, tokens)


def padded(ids: Tensor, *, length: int) -> tuple[Tensor, Tensor]:
    row = torch.full((1, length), PAD)
    row[:, : ids.shape[1]] = ids
    return row, torch.arange(length)[None] < ids.shape[1]


@pytest.mark.parametrize("t5_config", [BASE, V1_1], ids=["base", "v1.1"])
def test_modulation_has_a_vector_per_virtual_token(t5_config: dict[str, object]) -> None:
    encoding = network(t5_config)(*padded(document(7), length=9))
    assert encoding.slots.shape == (1, VIRTUAL_TOKENS, D_MODULATION)
    assert encoding.slot_mask.all()
    assert encoding.states.shape == (1, 9, 32)
    torch.testing.assert_close(encoding.selection_key.norm(dim=-1), torch.ones(1))


@pytest.mark.parametrize("t5_config", [BASE, V1_1], ids=["base", "v1.1"])
@pytest.mark.parametrize("length", [8, 15, 40])
def test_padding_does_not_change_the_modulation(t5_config: dict[str, object], length: int) -> None:
    # Defect 3: no mask on the decoder's cross-attention.
    amortization, ids = network(t5_config), document(7)
    alone = amortization(ids, torch.ones_like(ids, dtype=torch.bool))
    longer = amortization(*padded(ids, length=length))
    torch.testing.assert_close(longer.slots, alone.slots, **TOLERANCE)
    torch.testing.assert_close(longer.selection_key, alone.selection_key, **TOLERANCE)


def test_documents_of_a_batch_do_not_influence_each_other() -> None:
    amortization = network(BASE)
    first, second = padded(document(5), length=12), padded(document(12, seed=1), length=12)
    both = amortization(torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]]))
    torch.testing.assert_close(both.slots[:1], amortization(*first).slots, **TOLERANCE)
    torch.testing.assert_close(both.slots[1:], amortization(*second).slots, **TOLERANCE)


@pytest.mark.parametrize("position", [0, 3, 6])
def test_every_token_of_a_document_changes_every_slot(position: int) -> None:
    amortization, ids = network(BASE), document(7)
    changed = ids.clone()
    changed[0, position] = changed[0, position] % 59 + 1
    mask = torch.ones_like(ids, dtype=torch.bool)
    difference = amortization(ids, mask).slots - amortization(changed, mask).slots
    assert (difference.abs().amax(-1) > 1e-5).all()


def test_learned_tokens_are_decoded_in_one_pass() -> None:
    amortization = network(BASE)
    passes: list[tuple[int, ...]] = []
    amortization.decoder.register_forward_hook(
        lambda module, args, kwargs, output: passes.append(kwargs["inputs_embeds"].shape),
        with_kwargs=True,
    )
    amortization(torch.cat([document(5), document(5, seed=1)]), torch.ones(2, 5, dtype=torch.bool))
    assert passes == [(2, VIRTUAL_TOKENS, 32)]


@pytest.mark.parametrize("d_out", [6, 9], ids=["identity skip", "linear skip"])
def test_slot_mlp_equals_one_mlp_per_slot(d_out: int) -> None:
    torch.manual_seed(0)
    batched = SlotMLP(num_slots=3, d_in=6, d_out=d_out)
    nn.init.normal_(batched.norm_weight)
    states = torch.randn(2, 3, 6)
    actual = batched(states)
    for slot in range(3):
        x = states[:, slot]
        normed = nn.functional.layer_norm(
            x, (6,), batched.norm_weight[slot], batched.norm_bias[slot]
        )
        hidden = torch.tanh(normed @ batched.hidden.weight[slot] + batched.hidden.bias[slot])
        expected = hidden @ batched.out.weight[slot] + batched.out.bias[slot]
        skip = x if d_out == 6 else x @ batched.skip.weight[slot] + batched.skip.bias[slot]
        torch.testing.assert_close(actual[:, slot], skip + expected, **TOLERANCE)


def test_questions_and_documents_are_read_with_weights_of_their_own() -> None:
    torch.manual_seed(0)
    reader = T5Reader(CONFIG, BASE, d_key=D_KEY).eval()
    ids = document(6)
    mask = torch.ones_like(ids, dtype=torch.bool)
    question = reader.encode_questions(ids, torch.empty(0), mask)
    modulation = reader.encode_documents(ids, torch.empty(0), mask)
    assert question.states.shape == modulation.slots.shape
    assert question.mask.all()
    assert question.selection_query.shape == (1, D_KEY)
    assert (question.states - modulation.slots).abs().max() > 1e-3


def test_every_weight_is_trained_and_stored_once() -> None:
    # A weight that nothing reads would be saved, hashed and shipped for nothing; one stored under
    # two names would not survive a strict safetensors checkpoint.
    amortization = network(BASE)
    encoding = amortization(*padded(document(7), length=9))
    (encoding.slots.square().sum() + encoding.selection_key.sum()).backward()
    assert [n for n, p in amortization.named_parameters() if p.grad is None] == []
    pointers = [tensor.data_ptr() for tensor in amortization.state_dict().values()]
    assert len(set(pointers)) == len(pointers)
