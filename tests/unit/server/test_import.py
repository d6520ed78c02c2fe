"""`mac ingest`: which files, what documents each gives, and what a bad one does to the others."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from server.cli import app
from server.client import Client, IngestReport, SourceDocument
from server.import_files import find_files
from server.import_parsers import MAX_ID_CHARS, identifier, read_documents
from server.importing import run_import

RUNNER = CliRunner()


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(path: Path, report: IngestReport | None = None) -> list[SourceDocument]:
    return list(read_documents(path, report or IngestReport()))


def failures(path: Path) -> list[str]:
    report = IngestReport()
    read(path, report)
    return report.failures


def pdf(*pages: str) -> bytes:
    """A PDF with a line of text on each page, written by hand."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        drawn = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream",
        ]
    body, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(objects) + 1
    trailer = f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    return (body + f"xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}").encode()


# Text and Markdown.


def test_a_jsonl_file_is_a_document_per_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\u2028still one"}\n\n[1]\nnot json\n{"text": "two"}\n', "utf-8")
    report = IngestReport()
    texts = [item.payload["text"] for item in read(path, report)]
    assert texts == ["one\u2028still one", "two"]
    assert [failure.split(": ")[0].rpartition("/")[2] for failure in report.failures] == [
        "a.jsonl:3",
        "a.jsonl:4",
    ]


def test_another_file_is_one_document_named_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "guide.md"
    path.write_text("intro\n# The Guide \ntext", "utf-8")
    (document,) = read(path, IngestReport())
    assert document.payload == {
        "id": path.as_posix(),
        "title": "The Guide",
        "text": "intro\n# The Guide \ntext",
    }


def test_a_file_that_is_not_utf8_fails_and_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "binary.txt"
    path.write_bytes(b"\xff\xfe\x00")
    report = IngestReport()
    assert list(read(path, report)) == []
    assert (report.num_unread, "binary.txt" in report.failures[0]) == (1, True)


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.txt", "\ufeffRain.", ["Rain."]),
        ("a.md", "\ufeff# Rain", ["# Rain"]),
        ("a.jsonl", '\ufeff{"text": "Rain."}\n\ufeff{"text": "Sun."}\n\ufeff', ["Rain.", "Sun."]),
        ("a.csv", "\ufefftext,id\nRain.,1\n", ["Rain."]),
        ("a.tsv", '\ufeff"text"\tid\nRain.\t1\n', ["Rain."]),
    ],
)
def test_a_byte_order_mark_is_no_text(
    tmp_path: Path, name: str, content: str, texts: list[str]
) -> None:
    path = write(tmp_path / name, content)
    assert [document.payload["text"] for document in read(path)] == texts
    assert failures(path) == []


def test_a_line_that_is_not_utf8_is_told_from_one_that_is_no_json(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "caf\xe9"}\n{"text": "Rain."}\n')
    assert [document.payload["text"] for document in read(path)] == ["Rain."]
    (failure,) = failures(path)
    assert failure.endswith("a.jsonl:1: not UTF-8: invalid continuation byte at byte 14")


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html"])
def test_a_file_without_text_fails(tmp_path: Path, name: str) -> None:
    (failure,) = failures(write(tmp_path / name, " \n"))
    assert failure.endswith(f"{name}: it holds no text")


def test_an_identifier_that_is_too_long_keeps_its_end_and_stays_unlike_others() -> None:
    long = [Path("a" * 300 + "/x.txt"), Path("b" * 300 + "/x.txt")]
    made = [identifier(path, "7") for path in long]
    assert {len(name) for name in made} == {MAX_ID_CHARS}
    assert all(name.endswith(("a/x.txt#7", "b/x.txt#7")) for name in made)
    assert identifier(Path("c" * 300 + "/x.txt"))[:16] != made[0][:16] != made[1][:16]


# JSON lines.


def test_lines_without_an_id_are_named_by_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", '{"text": "one"}\n\n{"text": "two", "id": "own"}\n')
    assert [document.payload["id"] for document in read(path)] == [f"{path.as_posix()}#1", "own"]


def test_a_line_that_is_not_utf8_fails_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n"\xff"\n{"text": "two"}')
    report = IngestReport()
    assert [document.payload["text"] for document in read(path, report)] == ["one", "two"]
    assert [failure.partition(": ")[0] for failure in report.failures] == [f"{path.as_posix()}:2"]


# CSV.


def test_a_row_is_a_document_with_its_columns_as_metadata(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        'id,title,text,year,city\nb1,Bridge,"It opened, at\nlast, in 1932.",1932,\n,,Rain.,,Oslo\n',
    )
    first, second = read(path)
    assert first.payload == {
        "id": "b1", "title": "Bridge", "text": "It opened, at\nlast, in 1932.",
        "metadata": {"year": "1932"},
    }  # fmt: skip
    assert second.payload == {
        "id": f"{path.as_posix()}#2", "text": "Rain.", "metadata": {"city": "Oslo"},
    }  # fmt: skip


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ";"), ("a.tsv", "\t"), ("a.csv", "|")])
def test_without_a_column_of_text_a_row_is_its_columns_by_name(
    tmp_path: Path, name: str, mark: str
) -> None:
    path = write(tmp_path / name, f"city{mark}code\nOslo{mark}1,5\nRome{mark}\n")
    assert [document.payload["text"] for document in read(path)] == [
        "city: Oslo\ncode: 1,5",
        "city: Rome",
    ]


def test_a_row_of_another_length_fails_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,text\na,one\nb\nc,two,three\nd,four\n")
    report = IngestReport()
    assert [document.payload["id"] for document in read(path, report)] == ["a", "d"]
    assert [failure.partition(": ")[0][-2:] for failure in report.failures] == [":2", ":3"]


# HTML.


def test_a_page_is_its_visible_text_by_blocks(tmp_path: Path) -> None:
    page = (
        "<html><head><title> The  Bridge </title><style>p {}</style></head><body>"
        "<h1>Bridge</h1><p>It <b>opened</b>\n in\t1932.<br>Then <i>closed</i>.</p>"
        "<script>var x = 1;</script><!-- unseen --><ul><li>one</li><li>two</li></ul>"
        "<table><tr><td>a</td><td>b</td></tr></table><pre>x\ny</pre>&amp; caf&eacute;</body></html>"
    )
    (document,) = read(write(tmp_path / "a.html", page))
    assert document.payload["title"] == "The Bridge"
    assert document.payload["text"].split("\n") == [
        "Bridge", "It opened in 1932.",
        "Then closed.", "one", "two", "a b", "x", "y", "& caf\u00e9",
    ]  # fmt: skip


def test_a_head_that_is_not_closed_hides_nothing(tmp_path: Path) -> None:
    page = "<head><title>T</title><body><p>Seen."
    assert read(write(tmp_path / "a.html", page))[0].payload["text"] == "Seen."


def test_a_page_says_its_own_encoding(tmp_path: Path) -> None:
    page = '<meta charset="iso-8859-1"><p>Z\u00fcrich</p>'.encode("iso-8859-1")
    (document,) = read(write(tmp_path / "a.htm", page))
    assert (document.payload["text"], document.payload["title"]) == ("Z\u00fcrich", "a")


# PDF.


def test_a_page_of_a_pdf_is_a_document(tmp_path: Path) -> None:
    path = write(tmp_path / "report.pdf", pdf("The bridge opened.", "", "It closed."))
    first, last = read(path)
    assert first.payload == {
        "id": f"{path.as_posix()}#page-1", "title": "report, page 1", "text": "The bridge opened.",
    }  # fmt: skip
    assert (last.payload["id"][-7:], last.payload["text"]) == ("#page-3", "It closed.")


def test_a_pdf_without_text_says_what_it_needs(tmp_path: Path) -> None:
    (failure,) = failures(write(tmp_path / "scan.pdf", pdf("", "")))
    assert "2 pages without text: a scan needs OCR first" in failure


def test_a_broken_pdf_fails_with_its_name(tmp_path: Path) -> None:
    (failure,) = failures(write(tmp_path / "a.pdf", b"%PDF-1.4 no more"))
    assert "a.pdf: cannot be parsed" in failure


@pytest.mark.parametrize(("name", "package"), [("a.html", "beautifulsoup4"), ("a.pdf", "pypdf")])
def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(module: str, *arguments: Any) -> Any:
        if module in ("pypdf", "server.import_html"):
            raise ImportError(module)
        return real(module, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    (failure,) = failures(write(tmp_path / name, "x"))
    assert f"needs {package}: pip install 'mac-server[import]'" in failure


# Which files.


def test_a_directory_is_read_at_any_depth_in_order(tmp_path: Path) -> None:
    for name in ("b.md", "a/z.TXT", ".git/x.txt", "a/.y.txt", "c.png", "d.PNG", "e"):
        write(tmp_path / name, "x")
    report = IngestReport()
    found = find_files([str(tmp_path)], report)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a/z.TXT", "b.md"]
    assert report.notes == ["not read, because of their type: 1 .PNG, 1 .png, 1 without a suffix"]
    assert report.failures == []


def test_a_pattern_and_a_name_lead_to_each_file_once(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a/1.txt", "x"), write(tmp_path / "a/b/2.txt", "x")
    report = IngestReport()
    assert find_files([str(other), str(tmp_path / "**/*.txt")], report) == [other, one]


def test_a_name_that_leads_to_nothing_fails_and_holds_nothing_up(tmp_path: Path) -> None:
    good, report = write(tmp_path / "a.txt", "x"), IngestReport()
    assert find_files([str(tmp_path / "no*.txt"), str(good)], report) == [good]
    assert "no*.txt: there is no such file, directory or match" in report.failures[0]


def test_a_file_that_is_named_is_read_whatever_its_type(tmp_path: Path) -> None:
    path = write(tmp_path / "notes.log", "Rain.")
    assert find_files([str(path)], IngestReport()) == [path]
    assert read(path)[0].payload["text"] == "Rain."


# The run.


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A server that knows by ids and texts what it has."""
    known: dict[str, str] = {}
    sent: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        sent.append(body)
        results = []
        for item in body["documents"]:
            status = "unchanged" if known.get(item["id"]) == item["text"] else "inserted"
            known[item["id"]] = item["text"]
            results.append({"id": item["id"], "status": status})
        return httpx.Response(200, json={"documents": results})

    real = Client.__init__
    monkeypatch.setattr(
        Client,
        "__init__",
        lambda self, url: real(self, url, transport=httpx.MockTransport(answer)),
    )
    return sent


def test_the_second_run_changes_nothing(tmp_path: Path, sent: list[dict[str, Any]]) -> None:
    write(tmp_path / "a.txt", "One.")
    write(tmp_path / "b.csv", "city\nOslo\nRome\n")
    write(tmp_path / "c.jsonl", '{"text": "x"}\n')
    write(tmp_path / "d.pdf", pdf("Page."))
    outcomes = [
        run_import([str(tmp_path)], url="http://test", namespace="n", console=Console(quiet=True))
        for _ in range(2)
    ]
    assert [report.counts for report in outcomes] == [{"inserted": 5}, {"unchanged": 5}]
    assert [report.num_read for report in outcomes] == [5, 5]
    assert {body["namespace"] for body in sent} == {"n"}


@pytest.mark.usefixtures("sent")
def test_a_bad_file_is_reported_by_the_exit_code_and_the_others_are_sent(tmp_path: Path) -> None:
    write(tmp_path / "a.pdf", b"no pdf")
    write(tmp_path / "b.txt", "Rain.")
    result = RUNNER.invoke(app, ["ingest", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "1 document: 1 inserted; 1 could not be read"
    assert "a.pdf: cannot be parsed" in result.output


def test_a_server_that_goes_away_ends_the_run_and_says_how_to_go_on(tmp_path: Path) -> None:
    path = write(tmp_path / "b.txt", "Rain.")
    result = RUNNER.invoke(app, ["ingest", str(path), "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "does not answer" in result.output
    assert "the same command again goes on from here" in result.output
