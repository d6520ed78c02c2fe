"""From chosen documents to padded tensors: what is shared, what is padding, who copies what."""

from __future__ import annotations

import torch

from mac_core.networks.batching import bank_slice, pointer_memory
from mac_core.networks.model import MacModel
from mac_core.types import Modulation
from tests.builders import tiny_bert_model, tiny_latent_model
from tests.unit.networks.model_samples import DAM, ELBE, SHORT

CPU = torch.device("cpu")


def documents(model: MacModel) -> tuple[Modulation, Modulation, Modulation]:
    first, second, third = (model.amortize([text])[0] for text in (ELBE, SHORT, DAM))
    return first, second, third


def test_bank_shared_by_all_rows_is_laid_out_once() -> None:
    # Defect 6, its second part: the bank repeated for every question of the batch.
    model = tiny_bert_model()
    first, second, _ = documents(model)
    bank, keys = bank_slice(
        [(first, second)] * 3,
        [(None, None)] * 3,
        [(-0.1, -0.2)] * 3,
        network=model.aggregation,
        device=CPU,
    )
    assert len(bank.slots) == len(bank.mask) == len(keys.tensors[0]) == 1
    assert bank.log_prior.shape == (3, 2)


def test_rows_hold_their_own_documents_and_nothing_else() -> None:
    model = tiny_bert_model()
    first, second, third = documents(model)
    bank, _ = bank_slice(
        [(third,), (), (first, second)],
        [(None,), (), (None, None)],
        [(0.0,), (), (-0.1, -0.2)],
        network=model.aggregation,
        device=CPU,
    )
    for row, held in enumerate([(third,), (), (first, second)]):
        assert bank.mask[row].sum(1).tolist()[: len(held)] == [len(m.slots) for m in held]
        assert not bank.mask[row, len(held) :].any()
        assert bank.log_prior[row, len(held) :].isneginf().all()
        for place, modulation in enumerate(held):
            real = bank.mask[row, place]
            assert torch.equal(bank.slots[row, place][real], modulation.slots)


def test_pointer_memory_is_the_best_documents_tokens_under_their_prior() -> None:
    first, second, third = documents(tiny_bert_model())
    memory = pointer_memory(
        [(first, second, third), (second,)],
        [(-0.1, -0.2, -0.3), (0.0,)],
        max_documents=2,
        device=CPU,
    )
    assert memory is not None
    lengths = [len(first.token_ids), len(second.token_ids)]
    assert memory.token_ids[0].tolist() == [*first.token_ids.tolist(), *second.token_ids.tolist()]
    torch.testing.assert_close(
        memory.log_prior[0], torch.tensor([-0.1] * lengths[0] + [-0.2] * lengths[1])
    )
    assert memory.log_prior[1].isneginf().sum() == lengths[0]
    assert memory.keys.shape == (2, sum(lengths), 2 * 16)
    assert memory.document[0].tolist() == [0] * lengths[0] + [1] * lengths[1]


def test_origin_names_document_token_and_the_token_before() -> None:
    model = tiny_latent_model()
    first, second, third = documents(model)
    rows = [(third,), (first, second)]
    bank, _ = bank_slice(
        rows,
        [(None,), (None, None)],
        [(0.0,), (-0.1, -0.2)],
        network=model.aggregation,
        device=CPU,
        layout=model.layout,
    )
    assert bank.origin is not None
    for row, held in enumerate(rows):
        for place, modulation in enumerate(held):
            ids = modulation.token_ids.tolist()
            head, tail = model.layout.document_head[0], model.layout.document_tail[0]
            assert bank.origin[row, place][bank.mask[row, place]].tolist() == [
                [place, -1, 0, head],
                [place, 0, head, ids[0]],
                *([place, i, ids[i - 1], ids[i]] for i in range(1, len(ids))),
                [place, -1, ids[-1], tail],
            ]


def test_documents_of_pooled_slots_have_no_origin() -> None:
    model = tiny_bert_model()
    first, _, _ = documents(model)
    bank, _ = bank_slice([(first,)], [(None,)], [(0.0,)], network=model.aggregation, device=CPU)
    assert bank.origin is None


def test_rows_without_documents_have_no_pointer_memory() -> None:
    assert pointer_memory([(), ()], [(), ()], max_documents=2, device=CPU) is None
