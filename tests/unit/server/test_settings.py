"""Settings: precedence, and no misspelling goes unnoticed."""

from pathlib import Path

import pytest

from server.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.upper().startswith("MAC_")]:
        monkeypatch.delenv(name)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mac.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_bind_to_this_machine_only() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.data_dir) == ("127.0.0.1", 8000, Path("data"))
    assert (settings.bundle, settings.max_body_bytes) == ("mini", 8 * 1024**2)


def test_flag_beats_environment_beats_file_beats_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path, 'host = "file"\nport = 1\nbundle = "file"\n')
    monkeypatch.setenv("MAC_HOST", "environment")
    monkeypatch.setenv("MAC_PORT", "2")
    settings = load_settings({"host": "flag", "port": None}, config=config)
    assert (settings.host, settings.port, settings.bundle) == ("flag", 2, "file")
    assert settings.device == "cpu"


def test_mac_config_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAC_CONFIG", str(write(tmp_path, "port = 9000")))
    assert load_settings().port == 9000


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAC_PORT", "")
    assert load_settings().port == 8000


def test_an_unknown_variable_is_an_error_with_its_neighbour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAC_DATA_DIRECTORY", "/data")
    with pytest.raises(SettingsError, match=r"MAC_DATA_DIRECTORY \(did you mean MAC_DATA_DIR\?\)"):
        load_settings()


def test_an_unknown_key_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"prot \(did you mean port\?\)"):
        load_settings(config=write(tmp_path, "prot = 1"))


def test_a_value_out_of_range_names_the_variable_and_the_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAC_PORT", "65536")
    with pytest.raises(SettingsError, match=r"MAC_PORT: .*65535, got '65536'"):
        load_settings()


@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan", "often"])
def test_a_min_confidence_that_is_no_probability_is_an_error(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("MAC_MIN_CONFIDENCE", value)
    with pytest.raises(SettingsError, match=rf"MAC_MIN_CONFIDENCE: .*got '{value}'"):
        load_settings()


@pytest.mark.parametrize("text", ["port = ", "port 1"])
def test_a_file_that_does_not_parse_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match=r"cannot read the settings file .*mac\.toml"):
        load_settings(config=write(tmp_path, text))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read the settings file"):
        load_settings(config=tmp_path / "none.toml")


def test_printed_settings_are_a_settings_file(tmp_path: Path) -> None:
    settings = Settings(port=9000, bundle='quo"ted', num_threads=2)
    assert load_settings(config=write(tmp_path, settings.to_toml())) == settings


def test_the_engine_gets_its_part() -> None:
    config = Settings(
        max_queued_questions=3, num_threads=2, device="cuda", precision="bfloat16"
    ).engine_config()
    assert (config.max_queued_questions, config.num_threads, config.device) == (3, 2, "cuda")
    assert config.precision == "bfloat16"


@pytest.mark.parametrize(
    "url",
    ["sqlite:///data", "sqlite:////var/mac", "redis://h:1/0", "rediss://h", "unix:///run/r.sock"],
)
def test_a_store_is_named_by_its_url(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAC_STORE_URL", url)
    assert load_settings().store_url == url


@pytest.mark.parametrize("url", ["postgres://u:hunter2@h/0", "sqlite://data", "/data"])
def test_a_url_that_names_no_store_is_an_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAC_STORE_URL", url)
    with pytest.raises(SettingsError, match=r"MAC_STORE_URL: .*redis://") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:hunter2@h:1/0", "redis://user:***@h:1/0"),
        ("redis://:hun:t@ter2@h:1/0", "redis://:***@h:1/0"),
        ("redis://:hun/t?er2@h:1/0", "redis://:***@h:1/0"),
        ("unix:///r.sock?db=1&password=hunter2&x=1", "unix:///r.sock?db=1&password=***&x=1"),
        ("redis://h:1/0?ssl_password=hunter2", "redis://h:1/0?ssl_password=***"),
        ("redis://h:1/0", "redis://h:1/0"),
    ],
)
def test_printed_settings_hide_the_password(url: str, shown: str) -> None:
    settings = Settings(store_url=url)
    assert f'store_url = "{shown}"' in settings.to_toml()
    assert "hunter2" not in repr(settings)
