"""Answers as JSON, errors among them: one sentence each, and nothing of this machine."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from groupwise.texts import json_text


def answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return data as JSON that every reader takes."""
    return Response(json_text(content, indent=None), status, headers, media_type="application/json")


def failure(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as JSON."""
    return answer({"error": sentence}, status, headers)
