"""Markers by folder, so that a test's place says how it is run."""

from pathlib import Path

import pytest

TIERS = ("unit", "parity", "integration", "gpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = Path(item.path).relative_to(Path(__file__).parent).parts[0]
        if folder in TIERS:
            item.add_marker(getattr(pytest.mark, folder))
