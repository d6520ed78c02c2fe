"""Page cursors: where a list goes on, opaque to whoever hands one back."""

from __future__ import annotations

import base64
import binascii
import re

from mac_core.errors import InvalidInput

CURSOR = re.compile(rb"p([0-9]{1,18})")


def encode_cursor(position: int) -> str:
    return base64.urlsafe_b64encode(f"p{position}".encode()).decode()


def decode_cursor(cursor: str) -> int:
    """The position after which the next page begins.

    Raises:
        InvalidInput: no page gave this cursor.
    """
    try:
        matched = CURSOR.fullmatch(base64.b64decode(cursor, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        matched = None
    if matched is None:
        raise InvalidInput(f"cursor {cursor!r} was not given by a page of this list")
    return int(matched[1])
