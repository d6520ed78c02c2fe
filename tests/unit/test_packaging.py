"""Dockerfile, compose, Makefile, README and settings agree; no Docker is needed to say so."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from server.cli import app
from server.settings import CONFIG_VARIABLE, Settings
from tests.redis_process import RedisProcess

ROOT = Path(__file__).parents[2]
SETTINGS = {f"MAC_{name.upper()}" for name in Settings.model_fields} | {CONFIG_VARIABLE}
CONTRACT_TARGETS = {"demo", "serve", "test", "lint", "bench", "evaluate", "train", "clean"}
FILES_WITH_SETTINGS = ("Dockerfile", "docker-compose.yml", "Makefile", "README.md")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def dockerfile_instructions() -> list[tuple[str, str]]:
    """Instruction and argument, continued lines joined, comments left out."""
    lines = [line for line in read("Dockerfile").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]  # type: ignore[misc]


def arguments(instruction: str) -> list[str]:
    return [argument for name, argument in dockerfile_instructions() if name == instruction]


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(read("docker-compose.yml"))
    return content


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):.*## ", read("Makefile"), flags=re.MULTILINE))


def readme_commands() -> list[list[str]]:
    """Every command of the README's bash blocks, as words."""
    blocks = re.findall(r"```bash\n(.*?)```", read("README.md"), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line]


def test_image_does_not_run_as_root() -> None:
    assert arguments("USER") == ["10001:10001"]


def test_image_says_how_it_is_and_how_it_ends() -> None:
    [health] = arguments("HEALTHCHECK")
    assert "/healthz" in health
    compile(json.loads(health.partition("CMD ")[2])[2], "HEALTHCHECK", "exec")
    assert arguments("STOPSIGNAL") == ["SIGTERM"]
    assert [json.loads(command) for command in arguments("CMD")] == [["mac", "serve"]]
    assert arguments("EXPOSE") == [str(Settings.model_fields["port"].default)]


def test_image_has_a_cpu_and_a_cuda_target_and_cpu_is_the_default() -> None:
    stages = [stage.partition(" AS ")[2] for stage in arguments("FROM")]
    assert stages[-1] == "cpu"
    assert "cuda" in stages


def copied_paths() -> set[str]:
    local = [argument for argument in arguments("COPY") if not argument.startswith("--from")]
    return {path for argument in local for path in argument.split()[:-1]}


def test_copied_paths_exist_and_are_in_the_build_context() -> None:
    kept = [line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")]
    assert copied_paths()
    for path in copied_paths():
        assert (ROOT / path).exists(), path
        assert any(fnmatch.fnmatch(path, pattern) for pattern in kept), path


def test_image_gets_everything_the_metadata_names() -> None:
    assert {"README.md", "LICENSE", "NOTICE", "pyproject.toml"} <= copied_paths()


@pytest.mark.parametrize("name", FILES_WITH_SETTINGS)
def test_named_settings_exist(name: str) -> None:
    assert set(re.findall(r"\bMAC_[A-Z_]+\b", read(name))) <= SETTINGS


def test_example_settings_are_all_settings_with_their_defaults() -> None:
    shown = dict(re.findall(r"^# (MAC_\w+)=(.*)$", read("deploy/env.example"), flags=re.MULTILINE))
    defaults = {f"MAC_{name.upper()}": item.default for name, item in Settings.model_fields.items()}
    assert shown.keys() == defaults.keys()
    for name, default in defaults.items():
        expected = "" if default is None else f"{default:g}" if type(default) is float else default
        assert shown[name] == str(expected), name


@pytest.mark.parametrize("name", ["server", "replica"])
def test_compose_server_is_hardened_and_has_a_health_check(name: str) -> None:
    server = compose()["services"][name]
    assert server["build"]["target"] == "cpu"
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    *_, code = server["healthcheck"]["test"]
    assert "/readyz" in code
    compile(code, "healthcheck", "exec")
    stop_s = float(server["stop_grace_period"].removesuffix("s"))
    assert stop_s > Settings.model_fields["shutdown_timeout_s"].default


def test_compose_volumes_are_declared_or_exist() -> None:
    content = compose()
    mounts = [mount for service in content["services"].values() for mount in service["volumes"]]
    for source, _, _ in (mount.partition(":") for mount in mounts):
        assert source in content["volumes"] or (ROOT / source).exists(), source


def test_compose_volume_is_the_data_directory() -> None:
    server = compose()["services"]["server"]
    assert f"mac-data:{server['environment']['MAC_DATA_DIR']}" in server["volumes"]
    assert arguments("VOLUME") == [server["environment"]["MAC_DATA_DIR"]]


def test_every_published_port_is_on_loopback() -> None:
    services = compose()["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports) == 3
    assert "ports" not in services["redis"]  # it has no password


def test_compose_redis_is_durable_and_evicts_nothing(tmp_path: Path) -> None:
    redis = compose()["services"]["redis"]
    program, *options = redis["command"]
    assert program == "redis-server"
    pairs = zip(options[::2], options[1::2], strict=True)
    flags = {name.removeprefix("--").replace("-", "_"): value for name, value in pairs}
    process = RedisProcess(tmp_path, **flags)
    try:
        with process.client() as client:
            assert client.info("persistence")["aof_enabled"] == 1
            assert client.config_get("appendfsync") == {"appendfsync": "always"}
            assert client.config_get("save") == {"save": ""}
            assert client.info("memory")["maxmemory_policy"] == "noeviction"
    finally:
        process.stop()
    assert redis["volumes"] == ["redis-data:/data"]
    assert (redis["read_only"], redis["cap_drop"]) == (True, ["ALL"])


def test_compose_servers_share_the_redis_and_the_second_is_a_profile() -> None:
    services = compose()["services"]
    for name in ("server", "replica"):
        assert services[name]["environment"]["MAC_STORE_URL"].endswith("redis://redis:6379/0}")
        assert services[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert services["replica"]["profiles"] == ["replica"]
    assert "profiles" not in services["server"]


def test_prometheus_finds_every_compose_server_by_the_name_they_share() -> None:
    config = yaml.safe_load(read("deploy/prometheus/prometheus.yml"))
    [job] = [job for job in config["scrape_configs"] if job["job_name"] == "mac-server"]
    [found] = job["dns_sd_configs"]
    assert "static_configs" not in job
    assert job["metrics_path"] == "/metrics"
    servers = [s for s in compose()["services"].values() if "MAC_PORT" in s.get("environment", {})]
    assert len(servers) == 2
    for service in servers:
        assert service["networks"]["default"]["aliases"] == found["names"]
        assert service["environment"]["MAC_PORT"] == str(found["port"])
    assert found["type"] == "A"  # without it SRV records are asked for, which Docker has none of


def test_makefile_has_the_targets_that_others_rely_on() -> None:
    assert make_targets() >= CONTRACT_TARGETS


def test_ci_runs_what_people_run() -> None:
    path = ROOT / ".ci" / "run"
    assert path.stat().st_mode & 0o111
    assert read(".ci/run").splitlines()[-2:] == ["make lint", "make test"]


def test_readme_names_only_commands_that_exist() -> None:
    commands = readme_commands()
    made = {words[1] for words in commands if words[0] == "make"}
    run = {words[1] for words in commands if words[0].endswith("/mac")}
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert made
    assert made <= make_targets()
    assert run
    assert run - {"--help"} <= known


def test_readme_posts_json_to_the_two_routes() -> None:
    calls = [words for words in readme_commands() if words[0] == "curl"]
    assert [words[2].rpartition("/")[2] for words in calls] == ["documents", "ask"]
    assert all(json.loads(words[words.index("-d") + 1]) for words in calls)


def test_readme_files_exist() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", read("README.md"))
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_licence_is_apache() -> None:
    assert "Apache License" in read("LICENSE")[:200]
    assert "END OF TERMS AND CONDITIONS" in read("LICENSE")
