"""Settings: flag > environment > file > default. The only reader of the environment.

A misspelt `MAC_` variable or file key is an error that names its nearest neighbour.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from mac_core.config import (
    BudgetConfig,
    EngineConfig,
    IndexConfig,
    ModulationBits,
    Precision,
    TierConfig,
)

PREFIX = "MAC_"
CONFIG_VARIABLE = "MAC_CONFIG"  # names the file, so it cannot stand in it
STORE_SCHEMES = ("sqlite:///", "redis://", "rediss://", "unix://")
REDACTED = "***"
_ENGINE = EngineConfig()
_INDEX = IndexConfig()


class SettingsError(ValueError):
    """The settings cannot be used as given; the message names each variable or key."""


class Settings(BaseSettings):
    """Everything an operator can set; field `port` is `MAC_PORT`, `--port` and `port = 8000`."""

    # An empty variable counts as unset: compose files pass `MAC_X=` for "not given".
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)  # 0: any free port, printed when ready
    data_dir: Path = Path("data")
    store_url: str | None = Field(default=None, repr=False)  # None: SQLite in data_dir
    snapshot_dir: Path | None = None  # None: `snapshots` in data_dir
    bundle: str = "mini"  # a shipped bundle's name or a directory
    device: str = _ENGINE.device
    precision: Precision = _ENGINE.precision  # of matrix products
    num_threads: int | None = Field(default=None, ge=1)  # None: torch's own choice
    index: Literal["exact", "flat", "ivf", "hnsw"] = _INDEX.kind  # all but exact: extra [faiss]
    index_min_chunks: int = Field(default=_INDEX.min_chunks, ge=1)
    index_probes: int = Field(default=_INDEX.probes, ge=1)  # ivf
    index_ef_search: int = Field(default=_INDEX.ef_search, ge=1)  # hnsw
    index_max_removed_share: float = Field(default=_INDEX.max_removed_share, ge=0, lt=1)
    max_bank_documents: int | None = Field(default=None, ge=1)  # in each namespace
    max_bank_bytes: int | None = Field(default=None, ge=1)
    max_ram_bytes: int | None = Field(default=None, ge=0)  # of modulations; others in mapped files
    bank_policy: Literal["refuse", "oldest", "least_used"] = BudgetConfig().policy
    max_body_bytes: int = Field(default=8 * 1024**2, ge=1024)
    max_bulk_bytes: int | None = Field(default=None, ge=1024)  # of an NDJSON body; None: any
    max_document_chars: int = Field(default=_ENGINE.max_document_chars, ge=1)
    max_queued_questions: int = Field(default=_ENGINE.max_queued_questions, ge=1)
    max_queued_documents: int = Field(default=_ENGINE.max_queued_documents, ge=1)
    max_queued_jobs: int = Field(default=_ENGINE.max_queued_jobs, ge=1)
    job_max_attempts: int = Field(default=_ENGINE.job_max_attempts, ge=1)
    job_lease_s: float = Field(default=_ENGINE.job_lease_s, ge=1)
    job_retention_s: float = Field(default=_ENGINE.job_retention_s, gt=0)
    max_batch_questions: int = Field(default=_ENGINE.max_batch_questions, ge=1)
    max_read_chunks: int = Field(default=_ENGINE.max_read_chunks, ge=1)
    max_batch_chunks: int = Field(default=_ENGINE.max_batch_chunks, ge=1)
    modulation_bits: ModulationBits = _ENGINE.modulation_bits  # of each stored value
    default_timeout_ms: float = Field(default=_ENGINE.default_timeout_ms, gt=0)
    min_confidence: float = Field(default=0.0, ge=0, le=1)  # of a request that gives none
    num_readings: int | None = Field(default=None, ge=1, le=8)  # None: the bundle's own
    shutdown_timeout_s: float = Field(default=30.0, gt=0)
    metrics_namespaces: int = Field(default=1, ge=0, le=1000)  # named in labels, "default" first
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    commit: str | None = None  # of the source, where no .git is at hand (an image)

    @field_validator("store_url")
    @classmethod
    def _names_a_store(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(STORE_SCHEMES):
            raise ValueError("not sqlite:///DIRECTORY, redis://, rediss:// or unix://")
        return url

    @field_validator("modulation_bits", mode="before")
    @classmethod
    def _is_a_number(cls, bits: object) -> object:
        # A variable is text, and pydantic compares a literal as it is.
        return int(bits) if isinstance(bits, str) and bits.isdecimal() else bits

    def engine_config(self) -> EngineConfig:
        """The part of the settings that the engine takes."""
        return EngineConfig(
            max_batch_questions=self.max_batch_questions,
            max_read_chunks=self.max_read_chunks,
            max_batch_chunks=self.max_batch_chunks,
            max_queued_questions=self.max_queued_questions,
            max_queued_documents=self.max_queued_documents,
            max_queued_jobs=self.max_queued_jobs,
            job_max_attempts=self.job_max_attempts,
            job_lease_s=self.job_lease_s,
            job_retention_s=self.job_retention_s,
            max_document_chars=self.max_document_chars,
            default_timeout_ms=self.default_timeout_ms,
            num_threads=self.num_threads,
            device=self.device,
            precision=self.precision,
            modulation_bits=self.modulation_bits,
            index=self._index_config(),
            tiers=TierConfig(
                max_ram_bytes=self.max_ram_bytes, directory=str(self.data_dir / "tiers")
            ),
            budget=BudgetConfig(
                max_documents=self.max_bank_documents,
                max_bytes=self.max_bank_bytes,
                policy=self.bank_policy,
            ),
        )

    def _index_config(self) -> IndexConfig:
        return IndexConfig(
            kind=self.index,
            min_chunks=self.index_min_chunks,
            probes=self.index_probes,
            ef_search=self.index_ef_search,
            max_removed_share=self.index_max_removed_share,
            directory=str(self.data_dir / "index"),
        )

    def to_toml(self) -> str:
        """The settings as a file that `--config` reads back; secrets are redacted."""
        lines = []
        for name, value in self.model_dump(mode="json").items():
            if name == "store_url" and value is not None:
                value = redacted(value)
            # JSON's strings, numbers and booleans are TOML's; TOML has no null.
            lines.append(f"# {name} is unset" if value is None else f"{name} = {json.dumps(value)}")
        return "\n".join(lines)


def load_settings(
    flags: Mapping[str, object] | None = None, *, config: Path | None = None
) -> Settings:
    """Merge flags (those that are not None), the environment, the file and the defaults.

    Raises:
        SettingsError: unknown names, values out of range, or a file that does not parse.
    """
    environment = _environment()
    _refuse_unknown("variable", environment, [*_variables(), CONFIG_VARIABLE])
    named = environment.get(CONFIG_VARIABLE)
    path = config or (Path(named) if named else None)
    from_file = _read_file(path) if path else {}
    values = {key: value for key, value in from_file.items() if _variable(key) not in environment}
    values |= {key: value for key, value in (flags or {}).items() if value is not None}
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def _environment() -> dict[str, str]:
    """Non-empty `MAC_` variables; names in upper case, as pydantic-settings compares them."""
    return {
        name.upper(): value
        for name, value in os.environ.items()
        if name.upper().startswith(PREFIX) and value
    }


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read the settings file {path}: {error}") from error
    _refuse_unknown(f"key in {path}", values, Settings.model_fields)
    return values


def _variable(key: str) -> str:
    return f"{PREFIX}{key}".upper()


def _variables() -> list[str]:
    return [_variable(key) for key in Settings.model_fields]


def _refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    names = list(known)
    problems = []
    for name in sorted(set(given) - set(names)):
        near = get_close_matches(name, names, n=1)
        problems.append(f"unknown {what}: {name}" + (f" (did you mean {near[0]}?)" if near else ""))
    if problems:
        raise SettingsError("\n".join(problems))


def redacted(url: str) -> str:
    """The URL with its password, wherever it stands, replaced."""
    # Up to the last `@`: a password that was not percent-encoded can hold anything.
    url = re.sub(r"^([^/]*//[^:/@]*:).*@", rf"\1{REDACTED}@", url)
    return re.sub(r"(?i)([?&][a-z_]*password=)[^&#]*", rf"\1{REDACTED}", url)


def _explain(error: ValidationError) -> str:
    return "\n".join(
        f"{_variable(str(item['loc'][0]))}: {item['msg']}, got {redacted(str(item['input']))!r}"
        for item in error.errors()
    )
