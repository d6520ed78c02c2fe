"""A bundle and a server process, for every test that talks to a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mac_core.bundles import bundle_path
from tests.integration.server_process import ServerProcess

SHIPPED = bundle_path("mini")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundle; where there is none, a tiny one with random weights."""
    if SHIPPED.is_dir():
        return SHIPPED.resolve()
    from tests.builders import build_tiny_bundle

    return build_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[str]:
    """The URL of a server with an empty bank, shared by the tests of one file."""
    process = ServerProcess(tmp_path_factory.mktemp("server") / "data", bundle=bundle)
    yield process.url
    process.stop()
