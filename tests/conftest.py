"""Markers by folder, so that a test's place says how it is run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.redis_cluster_process import RedisClusterProcess
from tests.redis_process import RedisProcess

TIERS = ("unit", "parity", "integration", "gpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = Path(item.path).relative_to(Path(__file__).parent).parts[0]
        if folder in TIERS:
            item.add_marker(getattr(pytest.mark, folder))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """One Redis for all tests that leave it running; `redis_url` empties it."""
    process = RedisProcess(tmp_path_factory.mktemp("redis"), appendfsync="no")
    yield process
    process.stop()


@pytest.fixture
def redis_url(redis_server: RedisProcess) -> str:
    with redis_server.client() as client:
        client.flushall()
        client.config_set("stream-node-max-entries", 10)  # streams are trimmed by whole nodes
    return redis_server.url


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisClusterProcess]:
    """One Redis Cluster for all tests that leave it running; `redis_cluster_url` empties it."""
    processes = RedisClusterProcess(tmp_path_factory.mktemp("redis-cluster"))
    yield processes
    processes.stop()


@pytest.fixture
def redis_cluster_url(redis_cluster: RedisClusterProcess) -> str:
    redis_cluster.empty()
    redis_cluster.configure("stream-node-max-entries", "10")
    return redis_cluster.url
