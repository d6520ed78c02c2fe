"""A URL names a store."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from mac_core.errors import StoreError
from mac_core.memory.opening import open_store, url_of_directory
from mac_core.memory.redis_store import RedisStore
from mac_core.memory.sqlite_store import DATABASE, SqliteStore
from tests.unit.memory.stores import FINGERPRINT


def test_three_slashes_name_a_relative_and_four_an_absolute_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    open_store("sqlite:///here", fingerprint=FINGERPRINT).close()
    open_store(f"sqlite:///{tmp_path}/there", fingerprint=FINGERPRINT).close()
    assert (tmp_path / "here" / DATABASE).exists()
    assert (tmp_path / "there" / DATABASE).exists()


def test_a_directory_has_a_url(tmp_path: Path) -> None:
    with closing(open_store(url_of_directory(tmp_path), fingerprint=None)) as store:
        assert isinstance(store, SqliteStore)


def test_a_redis_url_names_a_shared_store(redis_url: str) -> None:
    with closing(open_store(redis_url, fingerprint=FINGERPRINT)) as store:
        assert isinstance(store, RedisStore)


@pytest.mark.parametrize("url", ["", "data", "sqlite:///", "sqlite://data", "http://u:secret@h/0"])
def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="names no store") as caught:
        open_store(url, fingerprint=FINGERPRINT)
    assert "secret" not in str(caught.value)
