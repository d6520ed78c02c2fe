from pathlib import Path
from xml.etree import ElementTree

import pytest

from mac_core.errors import InvalidInput
from mac_core.evaluation import plots
from mac_core.evaluation.compaction import CompactionResult, SettingResult
from mac_core.evaluation.dataset import SquadQuestion
from mac_core.evaluation.metrics import Estimate
from mac_core.evaluation.results import Origin, Prediction
from mac_core.evaluation.retention import RetentionResult, SizeResult
from mac_core.evaluation.unanswerable import UnanswerableEvaluation, score_selectivity
from mac_core.memory.compaction import parse_compaction


@pytest.fixture
def retention(origin: Origin) -> RetentionResult:
    share = Estimate(mean=0.5, low=0.4, high=0.6)
    sizes = tuple(
        SizeResult(
            mode="memory",
            num_documents=count,
            f1=share,
            strict_em=share,
            f1_ratio=share,
            recall={},
        )
        for count in (200, 20_000)
    )
    return RetentionResult(sizes=sizes, num_questions=7, origin=origin)


@pytest.fixture
def unanswerable(origin: Origin) -> UnanswerableEvaluation:
    count = 2000
    questions = [
        SquadQuestion(id=str(i), text="?", references=("a",), document_id="d") for i in range(count)
    ]
    predictions = [
        Prediction(
            question_id=str(i),
            answer="ab"[i % 2],
            confidence=i / count,
            seconds=0.0,
            batch_size=4,
            num_threads=1,
        )
        for i in range(count)
    ]
    result = score_selectivity(questions, predictions, min_confidence=0.5, seed=0)
    return UnanswerableEvaluation(
        results={"hybrid": result},
        num_documents=1,
        num_answerable=count,
        num_unanswerable=0,
        origin=origin,
    )


@pytest.fixture
def compaction(origin: Origin) -> CompactionResult:
    share = Estimate(mean=0.5, low=0.4, high=0.6)
    settings = tuple(
        SettingResult(
            setting=parse_compaction(name),
            modulation_bytes=size,
            record_bytes=size + 3000,
            codebook_bytes=0,
            f1=share,
            strict_em=share,
            f1_gain=share,
            em_gain=share,
            same_answers=1.0,
        )
        for name, size in (("bits:1", 262_144), ("bits:8", 32_768), ("merge:64@4", 4_096))
    )
    return CompactionResult(settings=settings, num_documents=2067, num_questions=7, origin=origin)


def words(path: Path) -> set[str]:
    """Every text of an SVG; fails on what is not XML."""
    return {text.strip() for text in ElementTree.parse(path).getroot().itertext()}


def test_retention_is_drawn_with_its_sizes(retention: RetentionResult, tmp_path: Path) -> None:
    path = tmp_path / "new" / "retention.svg"
    plots.draw_retention(retention, path)
    assert {"200", "20,000", "memory", "documents in the bank"} <= words(path)


def test_risk_is_drawn_over_coverage(unanswerable: UnanswerableEvaluation, tmp_path: Path) -> None:
    path = tmp_path / "risk.svg"
    plots.draw_risk_coverage(unanswerable, path)
    assert {"hybrid", "2000 answerable, 0 unanswerable"} <= words(path)
    assert path.stat().st_size < 50_000


def test_compaction_is_drawn_by_method(compaction: CompactionResult, tmp_path: Path) -> None:
    path = tmp_path / "compaction.svg"
    plots.draw_compaction(compaction, path)
    assert {"bits", "merge", "7 questions, 2,067 documents"} <= words(path)


def test_the_same_curve_gives_the_same_file(retention: RetentionResult, tmp_path: Path) -> None:
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    plots.draw_retention(retention, first)
    plots.draw_retention(retention, second)
    assert first.read_bytes() == second.read_bytes()


def test_without_matplotlib_the_error_says_what_to_install(
    retention: RetentionResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"mac-server\[plot\]"):
        plots.draw_retention(retention, tmp_path / "a.svg")
