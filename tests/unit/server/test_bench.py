import asyncio
import json
import lzma
import math
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from server.bench import FILE_WIDTH, app, check_loopback, load_workload, measure
from server.bench_load import AskFigures, ask, ingest
from server.bench_process import ServerDidNotStart, child_process, ready_url
from server.bench_report import BenchReport, Workload, card, to_json_line

DOCUMENTS = tuple({"text": f"text {i}", "title": "t"} for i in range(130))
QUESTIONS = tuple(f"question {i}?" for i in range(20))


class FakeServer:
    """Answers as the API does, and remembers what it was asked and how many were in flight."""

    def __init__(self, *, refuse_every: int | None = None) -> None:
        self.refuse_every = refuse_every
        self.batches: list[list[dict[str, Any]]] = []
        self.questions: list[dict[str, Any]] = []
        self.in_flight = self.most_in_flight = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/version":
            return httpx.Response(200, json={"version": "0.0.0"})
        payload = json.loads(request.content)
        if request.url.path == "/documents":
            self.batches.append(payload["documents"])
            results = [{"id": "x", "status": "inserted"} for _ in payload["documents"]]
            results[0]["status"] = "failed"
            return httpx.Response(200, json={"documents": results, "bank_version": 1})
        return await self.answer(payload)

    async def answer(self, payload: dict[str, Any]) -> httpx.Response:
        self.questions.append(payload)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        for _ in range(5):  # lets the other askers in
            await asyncio.sleep(0)
        self.in_flight -= 1
        refused = self.refuse_every and len(self.questions) % self.refuse_every == 0
        return httpx.Response(429 if refused else 200, json={"answer": "a"})

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self), base_url="http://127.0.0.1")


def run_ask(server: FakeServer, *, concurrency: int = 1, seconds: float = 60.0) -> AskFigures:
    async def run() -> AskFigures:
        async with server.client() as client:
            return await ask(
                client,
                QUESTIONS,
                namespace="bench-1",
                mode="memory",
                concurrency=concurrency,
                deadline=perf_counter() + seconds,
            )

    return asyncio.run(run())


def test_ingest_posts_every_document_once_in_batches_and_counts_the_failed() -> None:
    server = FakeServer()

    async def run() -> Any:
        async with server.client() as client:
            return await ingest(
                client, DOCUMENTS, namespace="bench-1", batch_size=64, deadline=math.inf
            )

    figures = asyncio.run(run())
    assert [len(batch) for batch in server.batches] == [64, 64, 2]
    sent = [item["text"] for batch in server.batches for item in batch]
    assert sent == [item["text"] for item in DOCUMENTS]
    assert (figures.num_documents, figures.num_failed, figures.errors) == (127, 3, {})
    assert figures.documents_per_s > 0


@pytest.mark.parametrize("concurrency", [1, 4])
def test_ask_keeps_exactly_its_concurrency_in_flight(concurrency: int) -> None:
    server = FakeServer()
    run_ask(server, concurrency=concurrency)
    assert server.most_in_flight == concurrency


def test_ask_sends_each_question_once_with_mode_and_namespace() -> None:
    server = FakeServer()
    figures = run_ask(server, concurrency=4)
    assert sorted(item["question"] for item in server.questions) == sorted(QUESTIONS)
    assert {(item["mode"], item["namespace"]) for item in server.questions} == {
        ("memory", "bench-1")
    }
    assert len(figures.latencies_ms) == len(QUESTIONS)


def test_refused_questions_are_counted_by_status_and_have_no_latency() -> None:
    figures = run_ask(FakeServer(refuse_every=4))
    assert figures.errors == {"429": 5}
    assert len(figures.latencies_ms) == 15


def test_a_transport_error_is_counted_by_name() -> None:
    class Dead(FakeServer):
        async def __call__(self, request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("no one there", request=request)

    assert run_ask(Dead()).errors == {"ConnectError": 20}


def test_nothing_is_sent_after_the_deadline() -> None:
    server = FakeServer()
    figures = run_ask(server, seconds=0.0)
    assert server.questions == []
    assert figures.percentile_ms(0.5) is None


@pytest.mark.parametrize(("share", "latency"), [(0.5, 10.0), (0.95, 19.0), (0.99, 20.0), (1.0, 20)])
def test_percentile_is_the_nearest_rank(share: float, latency: float) -> None:
    latencies = tuple(float(i) for i in range(1, 21))
    figures = AskFigures(mode="m", concurrency=1, latencies_ms=latencies, seconds=1.0, errors={})
    assert figures.percentile_ms(share) == latency


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://localhost:1", "http://[::1]:80", "http://127.9.9.9"]
)
def test_loopback_addresses_are_accepted(url: str) -> None:
    assert check_loopback(url) == url


@pytest.mark.parametrize(
    "url",
    ["http://example.com", "http://10.0.0.1:8000", "http://localhost.example.com", "nonsense"],
)
def test_other_addresses_are_refused_by_name(url: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a loopback address"):
        check_loopback(url)


def run_measure(server: FakeServer) -> BenchReport:
    workload = Workload(
        documents=DOCUMENTS,
        questions=QUESTIONS,
        modes=("memory", "none"),
        concurrencies=(1, 4),
        seed=7,
        max_seconds=60.0,
    )

    async def run() -> BenchReport:
        async with server.client() as client:
            return await measure(client, workload)

    return asyncio.run(run())


def test_measure_asks_every_mode_at_every_concurrency_and_reports_one_line() -> None:
    server = FakeServer()
    line = to_json_line(run_measure(server))
    values = json.loads(line)
    assert "\n" not in line
    assert values["ingest"]["documents"] == 127
    assert [(level["mode"], level["concurrency"]) for level in values["ask"]] == [
        ("memory", 1),
        ("memory", 4),
        ("none", 1),
        ("none", 4),
    ]
    assert all(level["questions"] == 20 and level["p50_ms"] > 0 for level in values["ask"])
    assert {"p50_ms", "p95_ms", "p99_ms", "questions_per_s", "errors"} <= set(values["ask"][0])
    assert (values["server"], values["seed"]) == ({"version": "0.0.0"}, 7)
    assert {item["namespace"] for item in server.questions} == {server.batches[0][0]["namespace"]}


def test_the_card_shows_figures_and_what_was_measured() -> None:
    console = Console(file=StringIO(), width=FILE_WIDTH)
    console.print(card(run_measure(FakeServer(refuse_every=4))))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "learned 127 documents" in text
    assert "429 x5" in text
    assert "server 0.0.0" in text
    assert "…" not in text  # nothing cut


@pytest.fixture
def squad_file(tmp_path: Path) -> Path:
    paragraphs = [
        {"context": f"text {i}", "qas": [{"question": f"q{i}?"}, {"question": f"r{i}?"}]}
        for i in range(4)
    ]
    squad = {"data": [{"title": "t", "paragraphs": [*paragraphs, paragraphs[0]]}]}
    path = tmp_path / "dev.json.xz"
    path.write_bytes(lzma.compress(json.dumps(squad).encode()))
    return path


def make_workload(path: Path, *, num_documents: int, num_questions: int, seed: int) -> Workload:
    return load_workload(
        path,
        num_documents=num_documents,
        num_questions=num_questions,
        modes=("memory",),
        concurrencies=(1,),
        seed=seed,
        max_seconds=1.0,
    )


def test_workload_asks_only_about_what_it_teaches(squad_file: Path) -> None:
    workload = make_workload(squad_file, num_documents=2, num_questions=9, seed=0)
    assert [item["text"] for item in workload.documents] == ["text 0", "text 1"]
    assert sorted(workload.questions) == ["q0?", "q1?", "r0?", "r1?"]


def test_workload_is_seeded(squad_file: Path) -> None:
    draws = {
        make_workload(squad_file, num_documents=4, num_questions=3, seed=seed).questions
        for seed in (0, 0, 1)
    }
    assert len(draws) == 2


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--start", "--url", "http://127.0.0.1:1"],
        ["--url", "http://example.com"],
        ["--start", "--concurrency", "1,x"],
        ["--start", "--concurrency", "0"],
    ],
)
def test_wrong_options_end_with_a_usage_error(squad_file: Path, options: list[str]) -> None:
    assert CliRunner().invoke(app, ["--data", str(squad_file), *options]).exit_code == 2


def test_no_server_there_ends_with_one_line(squad_file: Path) -> None:
    options = ["--data", str(squad_file), "--url", "http://127.0.0.1:9", "--json"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 1
    assert result.stderr.startswith("mac bench: ")


def run_until_ready(code: str, tmp_path: Path) -> tuple[str, subprocess.Popen[bytes]]:
    log_path = tmp_path / "server.log"
    command = [sys.executable, "-c", code]
    with log_path.open("wb") as log, child_process(command, log=log) as process:
        return ready_url(process, log_path), process


def test_a_started_server_is_found_by_its_ready_line_and_stopped(tmp_path: Path) -> None:
    code = """
import sys, threading
print('{"event": "loading"}', flush=True)
print('mac-server ready on http://127.0.0.1:4321', flush=True)
threading.Event().wait()
"""
    url, process = run_until_ready(code, tmp_path)
    assert url == "http://127.0.0.1:4321"
    assert process.returncode == -signal.SIGTERM


def test_a_server_that_ends_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(ServerDidNotStart, match="the server ended; (.|\n)*no bundle here"):
        run_until_ready("raise SystemExit('no bundle here')", tmp_path)
