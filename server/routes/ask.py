"""`/ask`: answer one question from everything learned so far."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from mac_core.types import Question
from server.dependencies import (
    EngineDependency,
    SettingsDependency,
    outcome_while_connected,
    require_json,
)
from server.responses import AskResponse
from server.schemas import AskBody, NoQuery
from server.settings import Settings

router = APIRouter(tags=["ask"])


@router.post("/ask", dependencies=[Depends(require_json)])
async def post_ask(
    body: AskBody,
    _query: Annotated[NoQuery, Query()],
    request: Request,
    engine: EngineDependency,
    settings: SettingsDependency,
) -> AskResponse:
    """Answer one question, or abstain; a client that goes away stops its own answer."""
    question = _question(body, settings)
    answer = await outcome_while_connected(engine.ask(question), request)
    return AskResponse.of(answer, mode=body.mode)


def _question(body: AskBody, settings: Settings) -> Question:
    """What a request leaves open is as the settings have it."""
    min_confidence, num_readings = body.min_confidence, body.num_readings
    return Question(
        text=body.question,
        namespace=body.namespace,
        mode=body.mode,
        top_k=body.top_k,
        num_readings=settings.num_readings if num_readings is None else num_readings,
        max_new_tokens=body.max_new_tokens,
        temperature=body.temperature,
        seed=body.seed,
        filter=body.filter,
        as_of=body.as_of.timestamp() if body.as_of else None,
        min_version=body.min_version,
        timeout_ms=body.timeout_ms,
        min_confidence=settings.min_confidence if min_confidence is None else min_confidence,
    )
