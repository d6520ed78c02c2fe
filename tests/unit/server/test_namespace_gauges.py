"""The bank's gauges by namespace: every document counted once, and a bounded number of names."""

from __future__ import annotations

from mac_core.types import NamespaceStatus
from server.namespace_gauges import NamespaceGauges


def status(namespace: str, num_documents: int = 1, **values: int) -> NamespaceStatus:
    given = {"bank_version": 1, "num_chunks": num_documents, "num_bytes": 0} | values
    return NamespaceStatus(namespace=namespace, num_documents=num_documents, **given)


def read(
    gauges: NamespaceGauges, *namespaces: NamespaceStatus, name: str = "mac_bank_documents"
) -> dict[str, float]:
    (family,) = [family for family in gauges.collect(namespaces) if family.name == name]
    return {sample.labels["namespace"]: sample.value for sample in family.samples}


def test_every_namespace_is_named_while_there_is_room() -> None:
    assert read(NamespaceGauges(3), status("a", 2), status("b", 3), status("default", 0)) == {
        "a": 2, "b": 3, "default": 0,
    }  # fmt: skip


def test_the_others_are_one() -> None:
    held = [status("a", 2, lag_versions=1), status("b", 3, lag_versions=4), status("default", 5)]
    gauges = NamespaceGauges(1)
    assert read(gauges, *held) == {"default": 5, "_other": 5}
    assert read(gauges, *held, name="mac_replica_lag_versions") == {"default": 0, "_other": 4}
    assert read(gauges, *held, name="mac_bank_version") == {"default": 1}


def test_no_namespace_is_named_when_none_may_be() -> None:
    assert read(NamespaceGauges(0), status("a", 2), status("default", 5)) == {"_other": 7}


def test_a_named_namespace_keeps_its_name_when_another_comes() -> None:
    gauges = NamespaceGauges(2)
    read(gauges, status("b"), status("default"))
    assert read(gauges, status("a"), status("b"), status("default")) == {
        "b": 1, "default": 1, "_other": 1,
    }  # fmt: skip


def test_an_empty_namespace_makes_room() -> None:
    gauges = NamespaceGauges(2)
    read(gauges, status("b"), status("default"))
    assert read(gauges, status("a"), status("b", 0), status("default")) == {
        "a": 1, "default": 1, "_other": 0,
    }  # fmt: skip
