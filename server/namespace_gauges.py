"""The bank's gauges by namespace, with a bounded number of names.

Whoever may create namespaces could else make as many time series as they like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily

from mac_core.types import DEFAULT_NAMESPACE, NamespaceStatus

OTHER = "_other"  # no namespace's name begins so

Read = Callable[[NamespaceStatus], int]
SUMMED: tuple[tuple[str, str, Read], ...] = (
    ("mac_bank_documents", "Documents.", lambda one: one.num_documents),
    ("mac_bank_chunks", "Chunks.", lambda one: one.num_chunks),
    ("mac_bank_bytes", "Bytes of modulations, wherever they are.", lambda one: one.num_bytes),
)


class NamespaceGauges:
    """Says which namespaces are named, and keeps to it."""

    def __init__(self, max_named: int) -> None:
        """
        Args:
            max_named: how many; the others are one, `_other`. 0: none is named.
        """
        self._max_named = max_named
        self._named: list[str] = []  # the first that came; one without documents makes room

    def collect(self, namespaces: Sequence[NamespaceStatus]) -> Iterator[GaugeMetricFamily]:
        """The sums over all labels of documents, chunks and bytes are those of the whole bank."""
        names = self._named = self._chosen(namespaces)
        named = [one for one in namespaces if one.namespace in names]
        others = [one for one in namespaces if one.namespace not in names]
        for name, text, read in SUMMED:
            yield _gauge(name, text, named, read, sum(map(read, others)) if others else None)
        # Versions of several namespaces have no sum that says anything.
        yield _gauge("mac_bank_version", "Version.", named, lambda one: one.bank_version, None)
        lags = [one.lag_versions for one in others]
        yield _gauge(
            "mac_replica_lag_versions",
            "What the bank lacks of other servers' writes; of others the furthest.",
            named,
            lambda one: one.lag_versions,
            max(lags, default=None),
        )

    def _chosen(self, namespaces: Sequence[NamespaceStatus]) -> list[str]:
        num_documents = {one.namespace: one.num_documents for one in namespaces}
        kept = [name for name in self._named if num_documents.get(name)]
        first = {DEFAULT_NAMESPACE: None} if DEFAULT_NAMESPACE in num_documents else {}
        waiting = sorted(num_documents, key=lambda name: (not num_documents[name], name))
        order = first | dict.fromkeys(kept) | dict.fromkeys(waiting)
        return list(order)[: self._max_named]


def _gauge(
    name: str, text: str, named: Sequence[NamespaceStatus], read: Read, other: int | None
) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text, labels=["namespace"])
    for one in named:
        gauge.add_metric([one.namespace], read(one))
    if other is not None:
        gauge.add_metric([OTHER], other)
    return gauge
