"""The app in front of a fake engine; async tests run on asyncio through anyio's plugin."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import structlog

from tests.unit.server.fakes import FakeEngine, serving


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _plain_logging() -> Iterator[None]:
    """structlog's default draws tracebacks for people, which takes seconds each."""
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    yield
    structlog.reset_defaults()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(engine) as client:
        yield client
