"""The copy head: a distribution whatever there is to copy, and keys that see the token before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mac_core.networks.pointer import PointerHead, PointerMemory, ending_mask, shifted

WIDTH, KEYS, VOCABULARY, TOKENS = 8, 4, 11, 6
END = 10
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}  # float32, a handful of products


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pointer() -> PointerHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return PointerHead(d_model=WIDTH, d_encoder=WIDTH, d_pointer=KEYS)


def memory(batch: int = 2, *, log_prior: Tensor | None = None) -> PointerMemory:
    generator = torch.Generator().manual_seed(4)
    return PointerMemory(
        keys=3.0 * normal(batch, TOKENS, 2 * KEYS, seed=3),
        token_ids=torch.randint(VOCABULARY, (batch, TOKENS), generator=generator),
        log_prior=torch.zeros(batch, TOKENS) if log_prior is None else log_prior,
        document=torch.arange(TOKENS).expand(batch, -1) // 2,
    )


def step(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Vocabulary scores, hidden states and last embeddings of one step."""
    return (
        normal(batch, VOCABULARY, seed=5),
        normal(batch, 1, WIDTH, seed=6),
        normal(batch, 1, WIDTH, seed=7),
    )


@torch.no_grad()
def test_mixture_equals_the_written_out_sum(pointer: PointerHead) -> None:
    prior = torch.tensor([[0.0, 0.0, -1.0, -1.0, -torch.inf, -torch.inf], [-2.0] * TOKENS])
    copied, (scores, hidden, last) = memory(log_prior=prior), step()
    mixed = pointer.mix(scores, hidden, last, copied, end_id=END)
    for row in range(2):
        query = pointer.query(torch.cat([hidden[row, 0], WIDTH**0.5 * last[row, 0]]))
        copying = copied.keys[row, :, :KEYS] @ query[:KEYS] * KEYS**-0.5 + prior[row]
        ending = copied.keys[row, :, KEYS:] @ query[KEYS:] * KEYS**-0.5 + prior[row]
        copy, end = torch.softmax(torch.cat([copying, ending]), dim=0).chunk(2)
        gate = torch.sigmoid(pointer.gate(hidden[row, 0]))
        expected = gate * scores[row].softmax(0)
        for token, weight in zip(copied.token_ids[row].tolist(), copy, strict=True):
            expected[token] += (1 - gate[0]) * weight
        expected[END] += (1 - gate[0]) * end.sum()
        torch.testing.assert_close(mixed.probabilities[row], expected, **TOLERANCE)
        torch.testing.assert_close(mixed.attention[row], copy + end, **TOLERANCE)
    torch.testing.assert_close(mixed.probabilities.sum(1), torch.ones(2), **TOLERANCE)


@torch.no_grad()
def test_row_with_nothing_to_copy_is_the_vocabularys_whole(pointer: PointerHead) -> None:
    prior = torch.stack([torch.full((TOKENS,), -torch.inf), torch.zeros(TOKENS)])
    scores, hidden, last = step()
    mixed = pointer.mix(scores, hidden, last, memory(log_prior=prior), end_id=END)
    torch.testing.assert_close(mixed.probabilities[0], scores[0].softmax(0), **TOLERANCE)
    assert mixed.attention[0].tolist() == [0.0] * TOKENS
    torch.testing.assert_close(mixed.probabilities[1].sum(), torch.ones(()), **TOLERANCE)


@torch.no_grad()
def test_token_under_a_prior_of_minus_infinity_is_never_copied(pointer: PointerHead) -> None:
    prior = torch.zeros(1, TOKENS)
    prior[0, 2:] = -torch.inf
    quiet, (scores, hidden, last) = memory(1, log_prior=prior), step(1)
    keys = quiet.keys.clone()
    keys[:, 2:] = 1e4
    mixed = pointer.mix(scores, hidden, last, replace(quiet, keys=keys), end_id=END)
    assert mixed.attention[0, 2:].tolist() == [0.0] * (TOKENS - 2)
    expected = pointer.mix(scores, hidden, last, quiet, end_id=END).probabilities
    torch.testing.assert_close(mixed.probabilities, expected, **TOLERANCE)


@torch.no_grad()
def test_prior_weighs_a_documents_tokens(pointer: PointerHead) -> None:
    even = memory(1)
    _, hidden, last = step(1)
    shift = torch.tensor([[2.0, 2.0, 1.0, 1.0, 1.0, 1.0]]).log()
    uneven = replace(even, log_prior=shift)
    before = pointer.log_attention(hidden, last, even).exp() * shift.exp().repeat(1, 2)
    after = pointer.log_attention(hidden, last, uneven).exp()
    torch.testing.assert_close(after, before / before.sum(), **TOLERANCE)


def test_gradients_are_finite_beside_a_row_with_nothing_to_copy(pointer: PointerHead) -> None:
    prior = torch.stack([torch.full((TOKENS,), -torch.inf), torch.zeros(TOKENS)])
    scores, hidden, last = (tensor.requires_grad_() for tensor in step())
    mixed = pointer.mix(scores, hidden, last, memory(log_prior=prior), end_id=END)
    mixed.probabilities.clamp_min(1e-9).log().sum().backward()
    leaves = [scores, hidden, last, *pointer.query.parameters(), *pointer.gate.parameters()]
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["document_keys", "text_keys"])
def test_key_sees_its_own_token_and_the_one_before(pointer: PointerHead, kind: str) -> None:
    states, embeddings = normal(1, TOKENS, WIDTH, seed=8), normal(1, TOKENS, WIDTH, seed=9)
    other = embeddings.clone()
    other[0, 2] += 1.0
    before, after = (getattr(pointer, kind)(states, shifted(e), e)[0] for e in (embeddings, other))
    changed = ((after - before).abs().amax(-1) > 1e-4).tolist()
    assert changed == [False, False, True, True, False, False]


def test_two_memories_are_laid_one_behind_the_other() -> None:
    left, right = memory(), memory(log_prior=torch.full((2, TOKENS), -1.0))
    both = left.beside(right)
    assert torch.equal(both.keys[:, TOKENS:], right.keys)
    assert torch.equal(both.token_ids[:, :TOKENS], left.token_ids)
    assert both.document[1].tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert both.log_prior[0].tolist() == [0.0] * TOKENS + [-1.0] * TOKENS
    kept = both.rows(torch.tensor([1]))
    assert torch.equal(kept.keys[0], both.keys[1])
    assert kept.document.shape == (1, 2 * TOKENS)


@torch.no_grad()
@pytest.mark.parametrize("half", [0, 1], ids=["copying", "ending"])
def test_each_half_of_a_key_speaks_for_its_own_half_of_attention(
    pointer: PointerHead, half: int
) -> None:
    quiet, (_, hidden, last) = memory(1), step(1)
    keys = quiet.keys.clone()
    keys[:, 2].view(1, 2, KEYS)[:, half] += 1.0
    before = pointer.log_attention(hidden, last, quiet)[0, 0]
    after = pointer.log_attention(hidden, last, replace(quiet, keys=keys))[0, 0]
    moved = (after - before) - (after - before).median()  # all others share one normaliser
    assert (moved.abs() > 1e-4).nonzero().flatten().tolist() == [half * TOKENS + 2]


@torch.no_grad()
def test_ending_is_a_share_of_the_pointer_and_goes_to_the_end_token(pointer: PointerHead) -> None:
    memory_, (scores, hidden, last) = memory(1), step(1)
    memory_ = replace(memory_, token_ids=torch.zeros_like(memory_.token_ids))  # END is not copied
    pointer.gate.bias.fill_(-100.0)  # nothing is written
    mixed = pointer.mix(scores, hidden, last, memory_, end_id=END)
    ended = pointer.log_attention(hidden, last, memory_).exp()[0, 0, TOKENS:].sum()
    torch.testing.assert_close(mixed.probabilities[0, END], ended, **TOLERANCE)
    torch.testing.assert_close(mixed.probabilities[0, 0], 1.0 - ended, **TOLERANCE)


# ---- where an answer may end


def test_answer_may_end_after_its_last_tokens_and_at_its_closing_step_alone() -> None:
    copy_mask = torch.zeros(2, 4, 5, dtype=torch.bool)
    copy_mask[0, 0, 1] = copy_mask[0, 1, 2] = True  # two tokens, one place
    copy_mask[1, 0, 0] = copy_mask[1, 0, 3] = True  # one token, two places
    ends = ending_mask(copy_mask, torch.tensor([2, 1]))
    assert ends.nonzero().tolist() == [[0, 2, 2], [1, 1, 0], [1, 1, 3]]


def test_empty_answer_ends_after_no_token() -> None:
    copy_mask = torch.ones(1, 3, 5, dtype=torch.bool)
    assert not ending_mask(copy_mask, torch.tensor([0])).any()
