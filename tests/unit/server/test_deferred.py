"""The engine before there is one."""

import threading
from collections.abc import Callable

import pytest

from mac_core.errors import NotReady
from mac_core.types import Document, Question
from server.deferred import DeferredEngine
from tests.unit.server.fakes import FakeEngine


class Build:
    """A build that waits to be let go, and tells when it is over."""

    def __init__(self, make: Callable[[], FakeEngine]) -> None:
        self.go = threading.Event()
        self._make = make

    def __call__(self) -> FakeEngine:
        assert self.go.wait(5)
        return self._make()


def wait_for_build() -> None:
    for thread in threading.enumerate():
        if thread.name == "engine-build":
            thread.join(5)


def fail() -> FakeEngine:
    raise FileNotFoundError("no bundle 'mini'")


CALLS: list[Callable[[DeferredEngine], object]] = [
    lambda engine: engine.add([Document(text="x")]),
    lambda engine: engine.remove(["x"]),
    lambda engine: engine.ask(Question(text="x")),
    lambda engine: engine.get_document("x", namespace="default"),
    lambda engine: engine.list_documents(namespace="default", limit=1, cursor=None, filter={}),
    lambda engine: engine.list_namespaces(),
]


@pytest.mark.parametrize("call", CALLS)
def test_until_it_is_built_every_request_is_refused(
    call: Callable[[DeferredEngine], object],
) -> None:
    build = Build(FakeEngine)
    engine = DeferredEngine(build, model="mini")
    engine.start()
    assert (engine.status().state, engine.status().model) == ("starting", "mini")
    with pytest.raises(NotReady, match="starting"):
        call(engine)
    build.go.set()
    wait_for_build()
    assert engine.status().state == "ready"
    call(engine)
    engine.close()


def test_a_failing_build_is_a_failed_engine_that_says_why() -> None:
    build = Build(fail)
    engine = DeferredEngine(build, model="mini")
    engine.start()
    build.go.set()
    wait_for_build()
    assert engine.status().state == "failed"
    assert "no bundle 'mini'" in engine.status().detail
    with pytest.raises(NotReady, match="failed"):
        engine.ask(Question(text="x"))


def test_an_engine_drained_before_it_is_built_is_never_started() -> None:
    built = FakeEngine()
    build = Build(lambda: built)
    engine = DeferredEngine(build, model="mini")
    engine.start()
    assert engine.drain(timeout_s=1)
    build.go.set()
    wait_for_build()
    assert engine.status().state == "draining"
    with pytest.raises(NotReady, match="draining"):
        engine.ask(Question(text="x"))
    built.close()


def test_once_built_it_stands_aside() -> None:
    built = FakeEngine()
    build = Build(lambda: built)
    build.go.set()
    engine = DeferredEngine(build, model="mini")
    engine.start()
    wait_for_build()
    (result,) = engine.add([Document(text="Fine.")]).result(5)
    assert engine.bank_version("default") == result.bank_version == 1
    assert engine.model_info()["name"] == "fake"
    assert engine.drain(timeout_s=1)
    engine.close()
    assert built.was_closed
