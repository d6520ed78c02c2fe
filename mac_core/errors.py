"""Every error a caller can act on; the message holds the offending value and the limit.

Knows nothing of HTTP: `server.problems` maps each type to a status and a stable code.
"""


class MacError(Exception):
    """Base of every error a caller can act on."""


class InvalidInput(MacError):
    """The caller's data cannot be accepted as it is."""


class DocumentTooLong(InvalidInput):
    """A document exceeds the configured number of characters."""

    def __init__(self, *, num_chars: int, max_chars: int) -> None:
        super().__init__(f"document has {num_chars} characters, the limit is {max_chars}")
        self.num_chars = num_chars
        self.max_chars = max_chars


class QuestionTooLong(InvalidInput):
    """A question exceeds the base LM's window for questions."""

    def __init__(self, *, num_tokens: int, max_tokens: int) -> None:
        super().__init__(f"question has {num_tokens} tokens, the limit is {max_tokens}")
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens


class DocumentNotFound(MacError):
    """No document with this id in this namespace."""

    def __init__(self, *, namespace: str, document_id: str) -> None:
        super().__init__(f"no document {document_id!r} in namespace {namespace!r}")
        self.namespace = namespace
        self.document_id = document_id


class DocumentExists(MacError):
    """`on_conflict="fail"` and the id is taken by another text."""

    def __init__(self, *, namespace: str, document_id: str) -> None:
        super().__init__(f"document {document_id!r} exists in namespace {namespace!r}")
        self.namespace = namespace
        self.document_id = document_id


class NamespaceNotFound(MacError):
    """No namespace with this name; it was never made, or was deleted."""

    def __init__(self, *, namespace: str) -> None:
        super().__init__(f"no namespace {namespace!r}")
        self.namespace = namespace


class BankFull(MacError):
    """A document would take its namespace over a limit, and nothing may be removed for it."""

    def __init__(self, *, namespace: str, what: str, size: int, limit: int) -> None:
        super().__init__(
            f"namespace {namespace!r} would hold {size} {what} that have to stay, "
            f"the limit is {limit}"
        )
        self.namespace = namespace
        self.limit = limit


class Overloaded(MacError):
    """A lane's queue is full; try again after `retry_after_s`."""

    def __init__(self, *, lane: str, max_queued: int, retry_after_s: float) -> None:
        super().__init__(f"the {lane} queue holds its limit of {max_queued} requests")
        self.lane = lane
        self.max_queued = max_queued
        self.retry_after_s = retry_after_s


class DeadlineExceeded(MacError):
    """The request's deadline passed before it was answered."""

    def __init__(self, *, timeout_ms: float, where: str) -> None:
        super().__init__(f"the deadline of {timeout_ms:.0f} ms passed {where}")
        self.timeout_ms = timeout_ms
        self.where = where


class NotReady(MacError):
    """The engine is starting, draining or has failed."""


class BankBehind(MacError):
    """`min_version` was asked for and the bank did not reach it in time."""

    def __init__(self, *, bank_version: int, min_version: int) -> None:
        super().__init__(f"the bank is at version {bank_version}, asked for {min_version}")
        self.bank_version = bank_version
        self.min_version = min_version


class JobNotFound(MacError):
    """No job with this id: there never was, or it ended longer ago than jobs are kept."""

    def __init__(self, *, job_id: str) -> None:
        super().__init__(f"no job {job_id!r}")
        self.job_id = job_id


class JobFinished(MacError):
    """A job that has ended cannot be cancelled."""

    def __init__(self, *, job_id: str, state: str) -> None:
        super().__init__(f"job {job_id!r} has ended: it is {state}")
        self.job_id = job_id
        self.state = state


class StoreError(MacError):
    """The store could not read or write; nothing was changed."""


class CorruptRecord(StoreError):
    """A stored record fails its checksum or does not parse; which, where a store has read it."""

    def __init__(self, message: str, *, document_id: str = "") -> None:
        super().__init__(message)
        self.document_id = document_id


class ForeignRecord(StoreError):
    """A stored record was made by another amortization network or base LM."""


class ConfigurationError(MacError):
    """A setting cannot be used here, such as one that needs what is not installed."""


class CheckpointError(MacError):
    """Weights, configuration or manifest of a bundle do not belong together."""


class EngineFailed(MacError):
    """A batch failed inside the engine; the request itself was not at fault."""


class SnapshotError(MacError):
    """A snapshot cannot be used as it is asked for; nothing was changed."""


class SnapshotNotFound(SnapshotError):
    """No snapshot of this name."""


class SnapshotExists(SnapshotError):
    """The name is taken."""


class CorruptSnapshot(SnapshotError):
    """A file of the snapshot is missing, too short, or fails its checksum."""


class SnapshotTooNew(SnapshotError):
    """A newer version of this program wrote it."""


class ForeignSnapshot(SnapshotError):
    """Its modulations were made by another amortization network or base LM."""


class NamespaceNotEmpty(SnapshotError):
    """A namespace to be restored holds documents, and replacing them was not asked for."""

    def __init__(self, *, namespace: str, num_documents: int) -> None:
        super().__init__(
            f"namespace {namespace!r} holds {num_documents} documents: nothing was restored; "
            "say that they are to be replaced"
        )
        self.namespace = namespace
        self.num_documents = num_documents
