"""What a Redis URL may say, checked before anything connects.

redis-py ignores a database that is no number, takes a missing host for localhost, and hands
options that it does not know to a constructor that raises. An error shows no user and no password.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from mac_core.errors import StoreError

SHOWN_TRUTHS = ("true", "false", "yes", "no", "1", "0")


def _is_count(value: str) -> bool:
    return value.isascii() and value.isdecimal()


def _is_duration(value: str) -> bool:
    try:
        return 0 < float(value) < float("inf")
    except ValueError:
        return False


def _is_truth(value: str) -> bool:
    return value.lower() in SHOWN_TRUTHS


def _is_given(value: str) -> bool:
    return bool(value)


# What redis-py takes besides is set by the client itself, and the store rests on it.
OPTIONS: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "db": (_is_count, "a number from 0"),
    "socket_timeout": (_is_duration, "seconds above 0"),
    "socket_connect_timeout": (_is_duration, "seconds above 0"),
    "health_check_interval": (_is_count, "whole seconds"),
    "max_connections": (_is_count, "a number"),
    "username": (_is_given, "given"),
    "password": (_is_given, "given"),
}
TLS_OPTIONS: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "ssl_check_hostname": (_is_truth, "true or false"),
    "ssl_cert_reqs": (("none", "optional", "required").__contains__, "none, optional or required"),
    "ssl_ca_certs": (_is_given, "given"),
    "ssl_ca_path": (_is_given, "given"),
    "ssl_certfile": (_is_given, "given"),
    "ssl_keyfile": (_is_given, "given"),
    "ssl_password": (_is_given, "given"),
}


def public_name(url: str) -> str:
    """The URL without user, password and options; of any text, so that an error can show it."""
    scheme, separator, rest = url.partition("://")
    # From the last `@`: a password that was not percent-encoded can hold anything.
    if "@" in rest.partition("?")[2]:  # of an option, or of such a password: who knows
        return f"{scheme}{separator}..."
    return scheme + separator + rest.rpartition("@")[2].partition("?")[0]


def check_url(url: str) -> None:
    """
    Raises:
        StoreError: it is no Redis URL; what of it is not, and what would be.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises when it is none
    except ValueError:  # its message may quote a part of the password
        raise StoreError(_not_a_url(url)) from None
    if parts.scheme not in ("redis", "rediss", "unix") or parts.fragment:
        raise StoreError(_not_a_url(url))
    problem = _problem_of_place(parts) or _problem_of_options(parts)
    if problem:
        raise StoreError(f"{public_name(url)} {problem}")


def database_of(url: str) -> int:
    """The number of the database that a checked URL names."""
    parts = urlsplit(url)
    given = dict(parse_qsl(parts.query)).get("db")
    if given is None and parts.scheme != "unix":
        given = unquote(parts.path).strip("/")
    return int(given or 0)


def _not_a_url(url: str) -> str:
    return (
        f"{public_name(url)} is not a Redis URL; what is special in a password must be "
        "percent-encoded"
    )


def _problem_of_place(parts: SplitResult) -> str:
    if parts.scheme == "unix":
        return "" if parts.path.strip("/") else "names no socket: expected unix:///SOCKET?db=0"
    if not parts.hostname:
        return f"names no host: expected {parts.scheme}://HOST:PORT/DB"
    database = unquote(parts.path).removeprefix("/").removesuffix("/")
    if database and not _is_count(database):
        return f"names the database {database!r}, which is not a number from 0"
    return ""


def _problem_of_options(parts: SplitResult) -> str:
    known = OPTIONS if parts.scheme != "rediss" else {**OPTIONS, **TLS_OPTIONS}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in TLS_OPTIONS and name not in known:
            return f"has the option {name!r}, which is one of rediss://"
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            return f"has an unknown option {name!r} ({hint})"
        is_right, expected = known[name]
        if not is_right(value):
            return f"has an option {name!r} that is not {expected}"
    return ""
