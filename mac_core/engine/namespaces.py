"""Namespaces as a whole: made and deleted, each in one durable write that other servers follow."""

from __future__ import annotations

from mac_core.engine.intake import as_store_error
from mac_core.engine.mirror import Mirror
from mac_core.engine.validation import check_name
from mac_core.memory.store import Store
from mac_core.types import EngineObserver, NamespaceResult


class Namespaces:
    """Writes of whole namespaces. Engine thread only, and never between the steps of an ingest."""

    def __init__(self, *, store: Store, mirror: Mirror, observer: EngineObserver) -> None:
        self._store = store
        self._mirror = mirror
        self._observer = observer

    def create(self, namespace: str) -> NamespaceResult:
        """Make an empty namespace; one that is there stays as it is.

        Raises:
            InvalidInput: no name for one.
            StoreError: nothing was changed.
        """
        check_name(namespace, what="the namespace")
        try:
            is_new, version = self._store.create_namespace(namespace)
        except Exception as error:
            self._observer.count_store_error("put")
            raise as_store_error(error) from error
        if is_new:
            self._mirror.wrote(namespace, version, (), (), ())
        return NamespaceResult(
            namespace=namespace, has_changed=is_new, num_removed=0, bank_version=version
        )

    def delete(self, namespace: str) -> NamespaceResult:
        """Forget a namespace with all its documents; one that is not there is no error.

        Raises: as `create`.
        """
        check_name(namespace, what="the namespace")
        try:
            num_removed, version = self._store.drop_namespace(namespace)
        except Exception as error:
            self._observer.count_store_error("delete")
            raise as_store_error(error) from error
        if num_removed is not None:
            self._mirror.dropped(namespace, version)
            self._observer.count_documents("removed", num_removed)
        return NamespaceResult(
            namespace=namespace,
            has_changed=num_removed is not None,
            num_removed=num_removed or 0,
            bank_version=version,
        )
