"""Synthetic documents: clustered selection keys, tiny modulations, words with a natural frequency.

A key is a mean direction, one of 1,000 topics, one of 20 subtopics of it, and noise, at unit length
(cosine of two keys of a subtopic about 0.74, of a topic 0.46, of any two 0.04). A question's query
is the key of some document with noise as long as the key (cosine about 0.71).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mac_core.memory.chunking import Chunk
from mac_core.memory.narrowing import offset_steps
from mac_core.memory.quantization import SlotEncoding, StoredModulation
from mac_core.memory.records import DocumentRecord, StoredChunk

D_KEY = 384
TOPICS, SUBTOPICS = 1_000, 20
MEAN, TOPIC, SUBTOPIC, NOISE = 0.2, 0.65, 0.53, 0.51  # lengths; squares sum to 1
SLOTS, D_MODULATION, TOKENS = 2, 128, 8
WORDS_PER_TEXT, VOCABULARY, STOP_WORDS = 20, 50_000, 120
NAMESPACE = "default"

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Documents that follow each other, with their keys as float32 `(documents, D_KEY)`."""

    records: list[DocumentRecord]
    keys: Floats


def _unit(values: Floats) -> Floats:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


class Corpus:
    """The same documents for the same seed, whatever the batch size is; a batch at a time."""

    def __init__(self, *, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self._seed = seed
        self._mean = _unit(generator.standard_normal(D_KEY, dtype=np.float32))
        self._topics = _unit(generator.standard_normal((TOPICS, D_KEY), dtype=np.float32))
        shape = (TOPICS * SUBTOPICS, D_KEY)
        self._subtopics = _unit(generator.standard_normal(shape, dtype=np.float32))
        ranks = np.arange(1, VOCABULARY + 1)
        self._frequency = (1 / (ranks + 2.7)) / (1 / (ranks + 2.7)).sum()

    def batches(self, count: int, *, size: int = 1_000) -> Iterator[Batch]:
        for first in range(0, count, size):
            yield self._batch(first, min(size, count - first))

    def texts(self, count: int, *, seed: int, words: int, skipped: int = 0) -> list[str]:
        """Words by their frequency, but for the `skipped` most frequent."""
        generator = np.random.default_rng((self._seed, seed))
        frequency = self._frequency[skipped:] / self._frequency[skipped:].sum()
        drawn = skipped + generator.choice(len(frequency), size=(count, words), p=frequency)
        return [" ".join(f"w{word}" for word in row) for row in drawn.tolist()]

    def questions(self, count: int, *, seed: int, words: int) -> list[str]:
        """As documents, but without the most frequent words: BM25 drops stop words too."""
        return self.texts(count, seed=1_000_000_007 + seed, words=words, skipped=STOP_WORDS)

    def keys(self, first: int, count: int) -> Floats:
        generator = np.random.default_rng((self._seed, 1, first))
        subtopic = generator.integers(0, TOPICS * SUBTOPICS, count)
        noise = _unit(generator.standard_normal((count, D_KEY), dtype=np.float32))
        return _unit(
            MEAN * self._mean
            + TOPIC * self._topics[subtopic // SUBTOPICS]
            + SUBTOPIC * self._subtopics[subtopic]
            + NOISE * noise
        )

    def _batch(self, first: int, count: int) -> Batch:
        keys = self.keys(first, count)
        texts = self.texts(count, seed=2 + first, words=WORDS_PER_TEXT)
        halves = torch.from_numpy(keys).half()
        levels = torch.from_numpy(
            np.random.default_rng((self._seed, 3, first)).integers(
                -127, 128, (count, SLOTS, D_MODULATION), dtype=np.int8
            )
        )
        records = [
            _record(first + place, text, levels[place], halves[place])
            for place, text in enumerate(texts)
        ]
        return Batch(records=records, keys=keys)


def queries_near(keys: Floats, *, seed: int) -> torch.Tensor:
    """One query beside each key: `(keys, D_KEY)` float32, unit length."""
    generator = np.random.default_rng(seed)
    noise = _unit(generator.standard_normal(keys.shape, dtype=np.float32))
    return torch.from_numpy(_unit(keys + noise))


_IDS = torch.arange(TOKENS, dtype=torch.int32)
_OFFSETS = offset_steps(torch.stack([_IDS, _IDS + 1], dim=1))
_SCALES = torch.full((SLOTS, 1), 0.01, dtype=torch.float16)


def _record(number: int, text: str, slots: torch.Tensor, key: torch.Tensor) -> DocumentRecord:
    chunk = Chunk(index=0, text=text, start=0, end=len(text), num_tokens=TOKENS)
    stored = StoredModulation(
        encoding=SlotEncoding(width=slots.shape[1]),
        slots=slots.clone(),
        slot_scales=_SCALES.clone(),
        selection_key=key.clone(),
        token_ids=_IDS.clone(),
        token_offsets=_OFFSETS.clone(),
    )
    return DocumentRecord(
        id=f"document-{number}",
        namespace=NAMESPACE,
        title=None,
        text=text,
        metadata={},
        published_at=None,
        expires_at=None,
        created_at=0.0,
        updated_at=0.0,
        content_hash="0" * 64,
        num_tokens=TOKENS,
        chunks=(StoredChunk(chunk=chunk, stored=stored),),
    )
