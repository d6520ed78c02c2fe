"""What the method costs around base LMs of the paper's shapes: learning, a bank, answers.

python -m tests.benchmarks.shapes --shapes gpt2-xl,llama-2-7b --documents 1665 --device cuda \
    --precision bfloat16 --out shapes.json

Weights are random: times and bytes are a trained model's, answers are noise. Documents and
questions are random token ids. Everything goes through `MacModel` as the engine calls it, but for
the store: of learning, only the networks, quantising and the keys are counted. A card, then one
JSON line. Each reading of the bank is the median of its repetitions after one that is not counted,
the device being waited for at both ends and after every phase.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers

from mac_core.config import (
    AggregationConfig,
    AmortizationConfig,
    ModelConfig,
    PrefixConfig,
    SelectionConfig,
)
from mac_core.memory.quantization import pack
from mac_core.networks.aggregation import AggregationKeys
from mac_core.networks.base_lm import BaseLM
from mac_core.networks.build import build_model
from mac_core.networks.model import AnswerRequest, MacModel
from mac_core.types import Modulation

Kind = Literal["paper", "layerwise", "latent"]
BATCH = 16  # documents of one forward pass, and questions
QUESTION_TOKENS = 20
ANSWER_TOKENS = 16
VIRTUAL_TOKENS = 24
MAX_GROUP = 16  # documents aggregated at once, level by level
BEST = 4  # documents that are read where selection chooses
FEW = 64  # documents of the kinds whose modulations are too large for a whole bank at once
LIMIT_S = 1.0  # of one reading's repetitions
PACKED = 4  # documents that are quantised: that is the CPU's work
END = "</s>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A base LM, and the T5 around it that the paper has for its size."""

    base_lm: dict[str, Any]
    width: int
    layers: int
    heads: int
    d_feedforward: int
    t5: dict[str, Any]
    document_tokens: int = 512

    @property
    def vocabulary(self) -> int:
        return int(self.base_lm["vocab_size"])


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": 1024,
    }


def _llama(width: int, layers: int, heads: int, d_feedforward: int, vocab: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": d_feedforward,
        "max_position_embeddings": 4096,
    }


def _t5(width: int, layers: int, heads: int, d_feedforward: int) -> dict[str, Any]:
    return {
        "model_type": "t5",
        "d_model": width,
        "d_kv": 64,
        "num_heads": heads,
        "d_ff": d_feedforward,
        "num_layers": layers,
    }


T5_BASE, T5_LARGE = _t5(768, 12, 12, 3072), _t5(1024, 24, 16, 4096)
SHAPES = {
    "tiny": Shape(
        base_lm=_llama(64, 2, 4, 128, 512),
        width=64,
        layers=2,
        heads=4,
        d_feedforward=128,
        t5=_t5(64, 2, 2, 128),
        document_tokens=64,
    ),
    "gpt2": Shape(
        base_lm=_gpt2(768, 12, 12),
        width=768,
        layers=12,
        heads=12,
        d_feedforward=3072,
        t5=T5_BASE,
    ),
    "gpt2-xl": Shape(
        base_lm=_gpt2(1600, 48, 25),
        width=1600,
        layers=48,
        heads=25,
        d_feedforward=6400,
        t5=T5_LARGE,
    ),
    "llama-2-7b": Shape(
        base_lm=_llama(4096, 32, 32, 11008, 32000),
        width=4096,
        layers=32,
        heads=32,
        d_feedforward=11008,
        t5=T5_LARGE,
    ),
}


@dataclass(kw_only=True)
class Reading:
    """One way of answering. Seconds of a whole batch, medians; phases are of the long answer."""

    name: str
    batch: int
    documents: int  # aggregated
    first_token_s: float  # from the question's text
    answer_s: float
    aggregate_s: float  # the question's encoding and the prefix included
    prefill_s: float
    decode_s: float
    answer_tokens: int  # of the shortest answer
    repeats: int

    @property
    def aggregate_share(self) -> float:
        return self.aggregate_s / self.answer_s


@dataclass(kw_only=True)
class NetworkCost:
    """One kind of network around one base LM."""

    shape: str
    kind: Kind
    base_lm_parameters: int
    network_parameters: int
    build_s: float
    documents: int
    document_tokens: int
    amortized_per_s: float = 0.0  # documents, the networks alone
    pack_s: float = 0.0  # of one document, on the CPU
    keys_s: float = 0.0  # of one document: what aggregation precomputes
    learned_per_s: float = 0.0  # documents: the three together, one after the other
    stored_bytes: dict[str, int] = field(default_factory=dict)  # of a document, by bits
    read_bytes: int = 0  # of a document's float32 slots, as the networks read it
    key_bytes: int = 0  # of a document, on the device
    question_encoding_s: float = 0.0  # of one question
    peak_device_bytes: int = 0
    readings: list[Reading] = field(default_factory=list)


class Words:
    """Texts whose words are tokens of their own: random ids that survive tokenising."""

    def __init__(self, vocabulary: int) -> None:
        names = [END, "<unk>", *(f"w{number}" for number in range(2, vocabulary))]
        fast = FastTokenizer(
            models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="<unk>")
        )
        fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.tokenizer_json = str(fast.to_str())
        self._vocabulary = vocabulary
        self._rng = np.random.default_rng(0)

    def texts(self, count: int, *, tokens: int) -> list[str]:
        ids = self._rng.integers(2, self._vocabulary, (count, tokens)).tolist()
        return [" ".join(f"w{number}" for number in row) for row in ids]


def config_of(shape: Shape, kind: Kind) -> ModelConfig:
    """The network that the paper describes, or one of this project's own."""
    tokens, width = shape.document_tokens, shape.width
    amortization: dict[str, Any] = {"chunk_overlap_tokens": 0, "max_tokens": tokens}
    aggregation: dict[str, Any] = {"max_group": MAX_GROUP, "d_question": width}
    prefix, d_key = PrefixConfig(kind="paper"), 256
    if kind == "paper":
        amortization |= {"kind": "t5", "num_virtual_tokens": VIRTUAL_TOKENS, "d_modulation": width}
        aggregation |= {"kind": "attend", "d_modulation": width, "num_blocks": 4}
    elif kind == "layerwise":
        d_modulation, d_key = shape.layers * width, width
        amortization |= {
            "kind": "layerwise",
            "num_virtual_tokens": VIRTUAL_TOKENS,
            "d_modulation": d_modulation,
            "pool": -(-tokens // VIRTUAL_TOKENS),
        }
        aggregation |= {"kind": "select", "d_modulation": d_modulation}
        prefix = PrefixConfig(kind="layerwise")
    else:
        d_key = width
        amortization |= {
            "kind": "latent",
            "num_virtual_tokens": tokens,
            "d_modulation": width,
            "depth": _latent_layers(shape) * 2 // 3,
        }
        aggregation |= {
            "kind": "refine",
            "d_modulation": width,
            "num_blocks": _latent_layers(shape) - _latent_layers(shape) * 2 // 3,
            "d_late": 64,
        }
        prefix = PrefixConfig(kind="latent", num_prefix_tokens=64)
    return ModelConfig(
        name=kind,
        amortization=AmortizationConfig(**amortization),
        aggregation=AggregationConfig(**aggregation),
        prefix=prefix,
        selection=SelectionConfig(d_key=d_key, top_k=BEST),
        max_text_tokens=tokens,
    )


def encoder_of(shape: Shape, kind: Kind) -> dict[str, Any]:
    """T5 as the paper has it; or BERT of the base LM's width, and of its depth for `layerwise`."""
    if kind == "paper":
        return {**shape.t5, "vocab_size": shape.vocabulary, "dropout_rate": 0.0}
    return {
        "model_type": "bert",
        "vocab_size": 8,  # the base LM's embeddings are read
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers if kind == "layerwise" else _latent_layers(shape),
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.d_feedforward,
        "max_position_embeddings": 1024,
    }


def _latent_layers(shape: Shape) -> int:
    return min(6, shape.layers)  # as the bundle `mini`


class Bench:
    """One device and precision."""

    def __init__(self, *, device: str, precision: str, documents: int, repeats: int) -> None:
        self.device = torch.device(device)
        self.precision = precision
        # Of the weights. On a CPU they stay as `load_bundle` makes them: a layer norm there takes
        # no two dtypes, and autocast casts for the products alone.
        is_low = precision == "bfloat16" and self.device.type != "cpu"
        self.dtype = torch.bfloat16 if is_low else torch.float32
        self.documents = documents
        self.repeats = repeats

    def run(self, name: str, kinds: Sequence[Kind]) -> list[NetworkCost]:
        """Every kind around one base LM of random weights."""
        shape = SHAPES[name]
        with self._making():
            base_lm = BaseLM.from_config(shape.base_lm)
        with torch.no_grad():  # no answer ends by chance
            base_lm.model.get_output_embeddings().weight[0] = 0.0  # END
        costs = []
        for kind in kinds:
            costs.append(self._measure(name, kind, base_lm))
            print(card(costs[-1:]), file=sys.stderr, flush=True)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return costs

    def _measure(self, name: str, kind: Kind, base_lm: BaseLM) -> NetworkCost:
        shape = SHAPES[name]
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        words = Words(shape.vocabulary)
        began = self._now()
        with self._making():
            model = build_model(
                config_of(shape, kind),
                base_lm=base_lm,
                encoder_config=encoder_of(shape, kind),
                tokenizer_json=words.tokenizer_json,
            )
        model.eval().requires_grad_(False)
        model.precision = self.precision  # type: ignore[assignment]
        of_lm = sum(p.numel() for p in base_lm.parameters())
        cost = NetworkCost(
            shape=name,
            kind=kind,
            base_lm_parameters=of_lm,
            network_parameters=sum(p.numel() for p in model.parameters()) - of_lm,
            build_s=self._now() - began,
            documents=self.documents if kind == "paper" else min(FEW, self.documents),
            document_tokens=shape.document_tokens,
        )
        texts = words.texts(cost.documents, tokens=shape.document_tokens)
        questions = words.texts(BATCH, tokens=QUESTION_TOKENS)
        bank = self._learn(model, cost, texts)
        cost.question_encoding_s = self._median(lambda: model.encode_questions(questions[:1]))
        for reading in self._readings(model, kind, bank, texts, questions):
            cost.readings.append(reading)
        if self.device.type == "cuda":
            cost.peak_device_bytes = torch.cuda.max_memory_allocated(self.device)
        return cost

    def _learn(self, model: MacModel, cost: NetworkCost, texts: Sequence[str]) -> Bank:
        """Fill the cost's fields on learning; the bank as the engine would hold it in RAM."""
        model.amortize(texts[:BATCH])  # sets the kernels up
        began = self._now()
        modulations: list[Modulation] = []
        for first in range(0, len(texts), BATCH):
            modulations += model.amortize(texts[first : first + BATCH])
        amortized_s = (self._now() - began) / len(texts)
        model.aggregation_keys(modulations[0])
        began = self._now()
        keys = [model.aggregation_keys(modulation) for modulation in modulations]
        cost.keys_s = (self._now() - began) / len(texts)
        packed = modulations[:PACKED]
        pack(packed[0])
        began = self._now()
        stored = [pack(modulation) for modulation in packed]
        cost.pack_s = (self._now() - began) / len(packed)
        cost.amortized_per_s = 1 / amortized_s
        cost.learned_per_s = 1 / (amortized_s + cost.keys_s + cost.pack_s)
        cost.stored_bytes = {
            "4": stored[0].num_bytes,
            "8": pack(packed[0], bits=8).num_bytes,
        }
        cost.read_bytes = modulations[0].slots.nbytes
        cost.key_bytes = sum(tensor.nbytes for tensor in keys[0].tensors)
        return Bank(modulations=tuple(modulations), keys=tuple(keys))

    def _readings(
        self,
        model: MacModel,
        kind: Kind,
        bank: Bank,
        texts: Sequence[str],
        questions: Sequence[str],
    ) -> list[Reading]:
        """By name, for one question and for a batch of them."""
        resident = bank.on(self.device)
        of_text = [(texts[place % len(texts)],) for place in range(len(questions))]
        none = Bank(modulations=(), keys=())

        def both(name: str, read: Bank, *, shown: bool = False) -> list[Reading]:
            return [
                self._reading(
                    name, model, read, questions[:count], of_text[:count] if shown else None
                )
                for count in (1, len(questions))
            ]

        best = resident.first(BEST)
        found = [
            *both("text", none, shown=True),
            *both(f"memory, best {BEST}", best),
            *both(f"hybrid, best {BEST}", best, shown=True),
        ]
        if kind != "paper":
            return found
        found += both("memory, all", resident)
        config = model.config
        count = max(2, len(bank.modulations))
        at_once = replace(config.aggregation, reading="flat", max_group=count)
        model.config = replace(config, aggregation=at_once)
        found += both("memory, all at once", resident)
        for name, other in (
            ("the same, keys anew", replace(resident, keys=())),  # method.md, section 4, defect 6
            ("the same, bank in RAM", bank),
        ):
            found.append(self._reading(name, model, other, questions[:1], None))
        model.config = config
        return found

    def _reading(
        self,
        name: str,
        model: MacModel,
        bank: Bank,
        questions: Sequence[str],
        texts: Sequence[tuple[str, ...]] | None,
    ) -> Reading:
        requests = [
            AnswerRequest(
                question=question,
                modulations=bank.modulations,
                aggregation_keys=bank.keys,
                log_prior=bank.log_prior,
                texts=() if texts is None else texts[place],
                max_new_tokens=ANSWER_TOKENS,
            )
            for place, question in enumerate(questions)
        ]
        runs: list[dict[str, float]] = []
        tokens, began = ANSWER_TOKENS, self._now()
        while len(runs) < 2 or (len(runs) <= self.repeats and self._now() - began < LIMIT_S):
            marks = {"begin": self._now()}

            def mark(phase: str, seconds: float = 0.0, marks: dict[str, float] = marks) -> None:
                marks.setdefault(phase, self._now())  # the model's own clock waits for no device

            def first(row: int, mark: Callable[..., None] = mark) -> bool:
                mark("first")  # asked after every token
                return False

            answers = model.answer(requests, observe=mark, should_stop=first)
            mark("end")
            tokens = min(tokens, *(answer.num_completion_tokens for answer in answers))
            runs.append(marks)
        runs = runs[1:]

        def phase(start: str, end: str) -> float:
            return median(marks[end] - marks[start] for marks in runs)

        return Reading(
            name=name,
            batch=len(questions),
            documents=len(bank.modulations),
            first_token_s=phase("begin", "first"),
            answer_s=phase("begin", "end"),
            aggregate_s=phase("begin", "aggregate"),
            prefill_s=phase("aggregate", "prefill"),
            decode_s=phase("prefill", "decode"),
            answer_tokens=tokens,
            repeats=len(runs),
        )

    def _median(self, work: Callable[[], object]) -> float:
        times = []
        for _ in range(self.repeats + 1):
            began = self._now()
            work()
            times.append(self._now() - began)
        return median(times[1:])

    def _now(self) -> float:
        """Seconds, once the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def _making(self) -> Any:
        """Weights begin on the device and in the dtype: nothing is converted or copied."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.device(self.device):
                yield
        finally:
            torch.set_default_dtype(before)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """Documents as a request takes them."""

    modulations: tuple[Modulation, ...]
    keys: tuple[AggregationKeys, ...]  # empty: projected anew for each batch of questions

    @property
    def log_prior(self) -> tuple[float, ...]:
        return (0.0,) * len(self.modulations)

    def first(self, count: int) -> Bank:
        return Bank(modulations=self.modulations[:count], keys=self.keys[:count])

    def on(self, device: torch.device) -> Bank:
        """With the slots where they are read."""
        return replace(
            self,
            modulations=tuple(
                replace(modulation, slots=modulation.slots.to(device))
                for modulation in self.modulations
            ),
        )


def card(costs: Sequence[NetworkCost]) -> str:
    lines = []
    for cost in costs:
        stored = ", ".join(f"{n / 1e3:,.1f} kB at {b} bits" for b, n in cost.stored_bytes.items())
        lines += [
            f"{cost.shape}, {cost.kind}: base LM {cost.base_lm_parameters / 1e6:,.0f} M, networks "
            f"{cost.network_parameters / 1e6:,.0f} M, built in {cost.build_s:.1f} s, peak "
            f"{cost.peak_device_bytes / 1e9:.1f} GB",
            f"  learned {cost.learned_per_s:,.1f} documents of {cost.document_tokens} tokens/s "
            f"(networks alone {cost.amortized_per_s:,.1f}/s; quantising "
            f"{1e3 * cost.pack_s:.2f} ms, keys {1e3 * cost.keys_s:.2f} ms each)",
            f"  a document: {stored}; {cost.read_bytes / 1e3:,.0f} kB as read, keys "
            f"{cost.key_bytes / 1e3:,.0f} kB; question encoding "
            f"{1e3 * cost.question_encoding_s:.1f} ms",
            f"  {'reading':30} {'batch':>5} {'docs':>6} {'first ms':>9} {'answer ms':>9} "
            f"{'aggregate':>9} {'prefill':>8} {'decode':>8} {'share':>6} {'tokens':>6}",
        ]
        lines += [
            f"  {r.name:30} {r.batch:5} {r.documents:6} {1e3 * r.first_token_s:9.1f} "
            f"{1e3 * r.answer_s:9.1f} {1e3 * r.aggregate_s:9.1f} {1e3 * r.prefill_s:8.1f} "
            f"{1e3 * r.decode_s:8.1f} {r.aggregate_share:6.0%} {r.answer_tokens:6}"
            for r in cost.readings
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="gpt2-xl,llama-2-7b", help=", ".join(SHAPES))
    parser.add_argument("--kinds", default="paper,layerwise,latent")
    parser.add_argument("--documents", type=int, default=1665)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--num-threads", type=int, default=1, help="of an operation on the CPU")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    bench = Bench(
        device=options.device,
        precision=options.precision,
        documents=options.documents,
        repeats=options.repeats,
    )
    is_cuda = bench.device.type == "cuda"
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(bench.device) if is_cuda else "cpu",
        "torch": torch.__version__,
        "precision": options.precision,
        "num_threads": options.num_threads,
        "seed": 0,
        "costs": [],
    }
    costs: list[NetworkCost] = []
    began = time.perf_counter()
    for name in options.shapes.split(","):
        costs += bench.run(name, options.kinds.split(","))
        result |= {"costs": [asdict(c) for c in costs], "wall_s": time.perf_counter() - began}
        if options.out:  # after every shape: the last one takes longest
            options.out.write_text(json.dumps(result))
    print(card(costs))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
