"""Dependencies point one way: parsed from the imports, and each rule is seen to fire once.

Two kinds of import count: statements, nested ones included, and dotted names of ours written as
strings, because importlib takes those. The one exception is written down in `NAMED_BY_STRING`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Rule 1: what the server may know of the core.
SERVER_MAY_IMPORT = {
    f"mac_core.{room}" for room in ("engine", "types", "errors", "config", "bundles")
}

# Rules 2 and 3, and the engine's independence of training: folder -> what it may not import.
FORBIDDEN = {
    "mac_core": {"server", "fastapi", "starlette", "uvicorn", "pydantic", "pydantic_settings"},
    "server": {"torch", "transformers"},
    "mac_core/engine": {"mac_core.training", "mac_core.evaluation"},
    "mac_core/memory": {"mac_core.training", "mac_core.evaluation"},
    "mac_core/networks": {"mac_core.training", "mac_core.evaluation"},
}

# Rule 4: these import nothing of ours.
LEAVES = ("mac_core/types.py", "mac_core/config.py", "mac_core/errors.py")

# The command line lists `mac train` and `mac evaluate` beside its own commands. It resolves them
# by these strings when they are called, so that the server's process never loads training code.
NAMED_BY_STRING = {
    "server/cli.py": {"mac_core.training.cli:app", "mac_core.evaluation.cli:app"},
}

# Only the settings read the environment.
ENVIRONMENT_READERS = {"server/settings.py"}


def imported_modules(source: str, package: str) -> set[str]:
    """Dotted names that `source`, a module of `package`, imports.

    `from a import b` counts as both `a` and `a.b`, because `b` may be a module.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            rooms = package.split(".")
            above = rooms[: len(rooms) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def module_strings(source: str) -> set[str]:
    """String constants that name one of our modules: "mac_core.x" or "mac_core.x:y"."""
    return {
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith(("mac_core.", "server."))
        and node.value.replace(".", "").replace(":", "").isidentifier()
    }


def reads_environment(source: str) -> bool:
    """Whether `source` mentions os.environ or os.getenv, however imported."""
    names = {"environ", "environb", "getenv", "getenvb"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and names & {alias.name for alias in node.names})
        for node in ast.walk(ast.parse(source))
    )


def is_within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def sources(root: Path, folder: str) -> Iterator[tuple[str, str, str]]:
    """Path from `root`, package and text of every module under `folder`."""
    for path in sorted((root / folder).rglob("*.py")):
        relative = path.relative_to(root)
        package = ".".join(relative.parent.parts)
        yield relative.as_posix(), package, path.read_text(encoding="utf-8")


def forbidden_imports(root: Path) -> list[str]:
    return [
        f"{path} imports {name}"
        for folder, forbidden in FORBIDDEN.items()
        for path, package, source in sources(root, folder)
        for name in sorted(imported_modules(source, package) | module_strings(source))
        if is_within(name.partition(":")[0], forbidden)
    ]


def server_reaching_past_the_engine(root: Path) -> list[str]:
    """Rule 1. `from mac_core import x` is `mac_core.x`; `import mac_core` alone is nothing."""
    return [
        f"{path} imports {name}"
        for path, package, source in sources(root, "server")
        for name in sorted(imported_modules(source, package) | module_strings(source))
        if name.startswith("mac_core.")
        and not is_within(name.partition(":")[0], SERVER_MAY_IMPORT)
        and name not in NAMED_BY_STRING.get(path, set())
    ]


def leaves_with_roots(root: Path) -> list[str]:
    return [
        f"{path} imports {name}"
        for path, package, source in sources(root, "mac_core")
        if path in LEAVES
        for name in sorted(imported_modules(source, package))
        if is_within(name, {"mac_core", "server"})
    ]


def readers_of_the_environment(root: Path) -> list[str]:
    return [
        f"{path} reads the environment"
        for folder in ("mac_core", "server")
        for path, _, source in sources(root, folder)
        if path not in ENVIRONMENT_READERS and reads_environment(source)
    ]


RULES = [
    forbidden_imports,
    server_reaching_past_the_engine,
    leaves_with_roots,
    readers_of_the_environment,
]


@pytest.mark.parametrize("rule", RULES)
def test_the_code_keeps_the_rule(rule) -> None:  # type: ignore[no-untyped-def]
    assert rule(ROOT) == []


def test_the_rules_see_the_code() -> None:
    """A renamed folder would leave every rule above true of nothing."""
    for folder in FORBIDDEN:
        assert list(sources(ROOT, folder))
    for path in (*LEAVES, *NAMED_BY_STRING, *ENVIRONMENT_READERS):
        assert (ROOT / path).is_file()


def test_the_written_exceptions_are_in_use() -> None:
    for path, names in NAMED_BY_STRING.items():
        assert names <= module_strings((ROOT / path).read_text(encoding="utf-8"))


PLANTED = [
    (forbidden_imports, "mac_core/memory/bank.py", "from server.settings import Settings"),
    (forbidden_imports, "mac_core/engine/engine.py", "import pydantic"),
    (forbidden_imports, "mac_core/config.py", "def f():\n    import fastapi.routing"),
    (forbidden_imports, "mac_core/training/cli.py", "from starlette import status"),
    (forbidden_imports, "server/routes/ask.py", "import torch.nn as nn"),
    (forbidden_imports, "server/cli.py", "from transformers import AutoModel"),
    (forbidden_imports, "mac_core/engine/engine.py", "from mac_core.training import losses"),
    (forbidden_imports, "mac_core/engine/engine.py", "from mac_core import evaluation"),
    (forbidden_imports, "mac_core/engine/engine.py", "from ..training import losses"),
    (forbidden_imports, "mac_core/memory/store.py", "from .. import evaluation"),
    (forbidden_imports, "mac_core/networks/model.py", 'import_module("mac_core.training.losses")'),
    (server_reaching_past_the_engine, "server/app.py", "from mac_core.memory.bank import Bank"),
    (server_reaching_past_the_engine, "server/app.py", "from mac_core import networks"),
    (server_reaching_past_the_engine, "server/app.py", "import mac_core.tokenization"),
    (server_reaching_past_the_engine, "server/app.py", 'load("mac_core.training.cli:app")'),
    (server_reaching_past_the_engine, "server/cli.py", 'load("mac_core.training.losses:f")'),
    (server_reaching_past_the_engine, "server/cli.py", "import mac_core.training.cli"),
    (leaves_with_roots, "mac_core/types.py", "from mac_core.config import EngineConfig"),
    (leaves_with_roots, "mac_core/errors.py", "from . import types"),
    (leaves_with_roots, "mac_core/config.py", "from .types import Document"),
    (readers_of_the_environment, "mac_core/config.py", 'import os\nos.environ["X"]'),
    (readers_of_the_environment, "mac_core/config.py", 'import os\nos.getenv("X")'),
    (readers_of_the_environment, "server/app.py", "from os import environ as e"),
]


@pytest.mark.parametrize(("rule", "path", "source"), PLANTED)
def test_the_rule_fires_on_a_planted_violation(rule, path, source, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(source, encoding="utf-8")
    (found,) = {line.split(" ")[0] for line in rule(tmp_path)}
    assert found == path


ALLOWED = [
    ("server/routes/ask.py", "from mac_core.types import Question"),
    ("server/serving.py", "from mac_core.engine import Engine"),
    ("server/cli.py", 'ATTACHED = {"train": "mac_core.training.cli:app"}'),
    ("mac_core/engine/engine.py", "from mac_core.memory.bank import MemoryBank"),
    ("mac_core/training/cli.py", "from ..networks import model"),
    ("server/settings.py", "import os\nos.environ"),
]


@pytest.mark.parametrize(("path", "source"), ALLOWED)
def test_the_rules_leave_the_allowed_alone(path: str, source: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(source, encoding="utf-8")
    assert [line for rule in RULES for line in rule(tmp_path)] == []
