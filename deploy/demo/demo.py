"""The demo: what a frozen language model answers before and after documents are posted.

A client of the HTTP API and nothing more: it starts a server on a free port with a fresh data
directory, and every answer that it shows came back over HTTP.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import httpx
from rich.box import HORIZONTALS
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from scoring import RULE, is_correct
from server_process import ServerDidNotStart, running_server

HERE = Path(__file__).parent
REQUEST_TIMEOUT_S = 120.0
PIPE_WIDTH = 160  # columns where the output is no terminal
MAX_SHOWN_CHARS = 60  # of an answer
MODES = ("memory", "hybrid", "none")

JsonObject = Mapping[str, Any]


def main() -> int:
    """Run the demo: 0 if the memory answered more questions than the empty bank did."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    documents = read_lines(HERE / "documents.jsonl")
    questions = read_lines(HERE / "questions.jsonl")
    try:
        with (
            running_server() as url,
            httpx.Client(base_url=url, trust_env=False, timeout=REQUEST_TIMEOUT_S) as client,
        ):
            console.print(f"server at {url}, its bank is empty")
            before = ask_all(client, questions, mode="memory", label="before any document")
            learn(client, console, documents)
            after = {
                mode: ask_all(client, questions, mode=mode, label=f"mode {mode}") for mode in MODES
            }
    except (ServerDidNotStart, httpx.HTTPError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    console.print(make_table(questions, before, after))
    console.print(RULE)
    return report(questions, before, after)


def read_lines(path: Path) -> list[JsonObject]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def ask_all(
    client: httpx.Client, questions: Sequence[JsonObject], *, mode: str, label: str
) -> list[JsonObject]:
    """The server's response to each question, in order."""
    console = Console(stderr=True)
    return [
        post(client, "/ask", {"question": item["question"], "mode": mode})
        for item in track(questions, description=f"asking, {label}", console=console)
    ]


def learn(client: httpx.Client, console: Console, documents: Sequence[JsonObject]) -> None:
    """Post all but the last document in one request and the last in one of its own."""
    *most, last = documents
    learned = post(client, "/documents", {"documents": most})
    statuses = [outcome["status"] for outcome in learned["documents"]]
    console.print(
        f"POST /documents: {statuses.count('inserted')} of {len(most)} inserted, "
        f"bank version {learned['bank_version']}"
    )
    console.print(f"POST /documents: one more, {json.dumps(post(client, '/documents', last))}")


def post(client: httpx.Client, path: str, body: JsonObject) -> JsonObject:
    """Raises httpx.HTTPStatusError with the server's own words when it refuses."""
    response = client.post(path, json=body)
    if response.is_error:
        message = f"POST {path}: {response.status_code} {response.text}"
        raise httpx.HTTPStatusError(message, request=response.request, response=response)
    result: JsonObject = response.json()
    return result


def make_table(
    questions: Sequence[JsonObject],
    before: Sequence[JsonObject],
    after: Mapping[str, Sequence[JsonObject]],
) -> Table:
    """One row per question; the source is the one that the memory answer names first."""
    table = Table(
        "question", "before", *MODES, "first source (memory)", box=HORIZONTALS, show_lines=True
    )
    for index, item in enumerate(questions):
        answers = [before[index], *(after[mode][index] for mode in MODES)]
        cells = [make_answer(answer["answer"], item["answers"]) for answer in answers]
        table.add_row(item["question"], *cells, make_source(after["memory"][index], item))
    return table


def make_answer(answer: str | None, accepted: Sequence[str]) -> Text:
    shown = shorten(answer or "", MAX_SHOWN_CHARS, placeholder=" …") or "(nothing)"
    if is_correct(answer, accepted):
        return Text(f"✓ {shown}", style="green")
    return Text(f"✗ {shown}", style="red")


def make_source(response: JsonObject, question: JsonObject) -> Text:
    sources = response["sources"]
    if not sources:
        return Text("(no document)", style="red")
    is_right = sources[0]["id"] == question["document"]
    title = f"{sources[0]['title']} ({sources[0]['score']:.2f})"
    return Text(f"{'✓' if is_right else '✗'} {title}", style="green" if is_right else "red")


def report(
    questions: Sequence[JsonObject],
    before: Sequence[JsonObject],
    after: Mapping[str, Sequence[JsonObject]],
) -> int:
    """Print the closing line, which other tools parse; 0 if memory is above before."""
    num_questions = len(questions)
    num_before = count_correct(questions, before)
    num_after = {mode: count_correct(questions, after[mode]) for mode in MODES}
    print(f"without the bank (mode none): {num_after['none']}/{num_questions} correct")
    print(
        f"demo: before {num_before}/{num_questions}, memory {num_after['memory']}/{num_questions}, "
        f"hybrid {num_after['hybrid']}/{num_questions} correct"
    )
    return 0 if num_after["memory"] > num_before else 1


def count_correct(questions: Iterable[JsonObject], responses: Iterable[JsonObject]) -> int:
    pairs = zip(questions, responses, strict=True)
    return sum(is_correct(response["answer"], item["answers"]) for item, response in pairs)


if __name__ == "__main__":
    raise SystemExit(main())
