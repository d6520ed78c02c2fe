"""Whatever JSON is sent, the answer is a 2xx or a 4xx problem; never a 5xx."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.schemas import AskBody, DocumentBody, DocumentsBody
from tests.unit.server.fakes import FakeEngine, serving

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["2026-01-31T12:00:00Z", "0002-01-01T00:00:00+14:00", "hybrid", "a", ""])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def bodies(model: type) -> st.SearchStrategy[object]:
    """Objects whose keys are mostly the model's own, some of whose values are right."""
    names = sorted(model.model_fields)  # type: ignore[attr-defined]
    required = st.fixed_dictionaries(
        {}, optional={"text": st.text(min_size=1), "question": st.text(min_size=1)}
    )
    own = st.dictionaries(st.sampled_from(names) | st.text(max_size=3), VALUES, max_size=4)
    return st.builds(lambda first, second: {**first, **second}, required, own) | VALUES


async def post(path: str, body: object) -> httpx.Response:
    async with serving(FakeEngine()) as client:
        content = json.dumps(body).encode()  # NaN and lone surrogates included
        headers = {"content-type": "application/json"}
        return await client.post(path, content=content, headers=headers)


@pytest.mark.parametrize(
    ("path", "model"),
    [("/documents", DocumentBody), ("/documents", DocumentsBody), ("/ask", AskBody)],
)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_json_is_answered_with_2xx_or_4xx(path: str, model: type, data: st.DataObject) -> None:
    body = data.draw(bodies(model))
    response = asyncio.run(post(path, body))
    assert response.status_code < 500, body
    json.loads(response.content)


@settings(max_examples=20, deadline=None)
@given(content=st.binary(max_size=64))
def test_any_bytes_are_answered_with_4xx(content: bytes) -> None:
    async def send() -> httpx.Response:
        async with serving(FakeEngine()) as client:
            headers = {"content-type": "application/json"}
            return await client.post("/documents", content=content, headers=headers)

    response = asyncio.run(send())
    assert 400 <= response.status_code < 500
    assert response.json()["code"] in ("malformed_json", "not_utf8", "invalid_input")
