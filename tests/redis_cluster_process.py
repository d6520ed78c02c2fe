"""A real Redis Cluster for tests: primaries, and replicas of them, each its own process."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from redis import Redis

from tests.redis_process import RedisProcess, free_port

NUM_SLOTS = 16384
FORM_TIMEOUT_S = 60.0  # a machine busy with other work
NODE_TIMEOUT_MS = 1000  # after so long without an answer a node counts as failed


class RedisClusterProcess:
    """Holds all slots, and every node says so, when the constructor returns."""

    def __init__(
        self, directory: Path, *, num_primaries: int = 3, num_replicas: int = 0, **options: str
    ) -> None:
        """`num_replicas`: of all; each follows another primary, in order."""
        self._stack = ExitStack()
        count = num_primaries + num_replicas
        self.nodes: list[RedisProcess] = []
        # Redis would take the port plus 10,000, which may be no port or somebody's.
        self._bus_ports = [free_port() for _ in range(count)]
        with ExitStack() as starting:
            for place in range(count):
                node = RedisProcess(
                    directory / str(place),
                    appendfsync="no",
                    cluster_enabled="yes",
                    cluster_port=str(self._bus_ports[place]),
                    cluster_node_timeout=str(NODE_TIMEOUT_MS),
                    **options,
                )
                starting.callback(node.stop)
                self.nodes.append(node)
            self.primaries = self.nodes[:num_primaries]
            self._form(num_replicas)
            self._stack = starting.pop_all()
        self.url = f"redis://127.0.0.1:{self.nodes[0].port}/0"

    def empty(self) -> None:
        for node in self.primaries:
            with node.client() as client:
                client.flushall()

    def configure(self, name: str, value: str, node: RedisProcess | None = None) -> None:
        for process in [node] if node else self.primaries:
            with process.client() as client:
                client.config_set(name, value)

    def primary_of(self, slot: int) -> RedisProcess:
        """Which process serves `slot`, by its own saying."""
        with self.nodes[-1].client() as client:
            ranges: Any = client.execute_command("CLUSTER SLOTS")
        ports = [found[2][1] for found in ranges if found[0] <= slot <= found[1]]
        return next(node for node in self.nodes if node.port == ports[0])

    def stop(self) -> None:
        self._stack.close()

    def _form(self, num_replicas: int) -> None:
        share = NUM_SLOTS // len(self.primaries) + 1
        ids = []
        for place, node in enumerate(self.nodes):
            with node.client() as client:
                ids.append(_text(client.execute_command("CLUSTER MYID")))
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", place + 1)
                if node in self.primaries:
                    last = min((place + 1) * share, NUM_SLOTS) - 1
                    client.execute_command("CLUSTER ADDSLOTSRANGE", place * share, last)
                meet = ("127.0.0.1", self.nodes[0].port, self._bus_ports[0])
                client.execute_command("CLUSTER MEET", *meet)
        self._wait(lambda client: _known_nodes(client) == len(self.nodes))
        for place in range(num_replicas):
            with self.nodes[len(self.primaries) + place].client() as client:
                client.execute_command("CLUSTER REPLICATE", ids[place % len(self.primaries)])
        self._wait(_is_ok)
        self._wait(_is_linked)

    def _wait(self, is_so: Any) -> None:
        deadline = time.monotonic() + FORM_TIMEOUT_S
        for node in self.nodes:
            with node.client() as client:
                while not is_so(client):
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"no cluster: {client.execute_command('CLUSTER INFO')}")
                    time.sleep(0.02)


def _known_nodes(client: Redis) -> int:
    return int(client.execute_command("CLUSTER INFO")["cluster_known_nodes"])


def _is_ok(client: Redis) -> bool:
    return bool(client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")


def _is_linked(client: Redis) -> bool:
    """Of a replica: it has its primary's data."""
    found = client.info("replication")
    return bool(found["role"] == "master" or found["master_link_status"] == "up")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
