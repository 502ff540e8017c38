"""What a GraphQL request asks for, read with the parser that Dagster's webserver uses.

Dagster executes mutations however they arrive. A link, an image or a WebSocket must only read.
"""

import json
from collections.abc import Mapping
from typing import Any

from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse

from tokenuq_pipeline.ui.hosts import Refusal

GRAPHQL_PATH = "/graphql"
MAX_BODY = 16 * 2**20
MAX_MESSAGE = 2**20
"""Bytes of a message of a WebSocket; the UI's are some kB."""


def operations(document: str) -> set[OperationType] | None:
    """Return the kinds of all operations in a document, whichever of them is chosen; None if it is not GraphQL."""
    try:
        definitions = parse(document, no_location=True).definitions
    except (GraphQLError, RecursionError):
        return None
    return {one.operation for one in definitions if isinstance(one, OperationDefinitionNode)}


def address_refusal(queries: list[str]) -> Refusal | None:
    """Return why a GET with these documents in its address is not answered; None if it only reads."""
    for query in queries:
        if (found := operations(query)) is None:
            return Refusal(400, "the parameter `query` is not GraphQL")
        if found != {OperationType.QUERY}:
            return Refusal(405, "GET only reads: send mutations by POST as JSON")
    return None


def body_refusal(body: bytes) -> Refusal | None:
    """Return why a POST with this body is not answered; None if it is one GraphQL request as JSON.

    Lists of requests, and identifiers of stored queries, are unknown to Dagster and answered by a traceback.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return Refusal(400, "the body is not JSON")
    if not isinstance(request, dict) or not isinstance(request.get("query"), str):
        return Refusal(400, "the body must be a JSON object with a text `query`; lists of requests are not supported")
    return None


def message_refusal(message: Mapping[str, Any]) -> Refusal | None:
    """Return why a message of a WebSocket is not passed on; None if it only reads.

    Args:
        message: the ASGI message `websocket.receive`.
    """
    text = message.get("text")
    if text is None or len(text) > MAX_MESSAGE:
        return Refusal(400, f"messages are JSON texts of at most {MAX_MESSAGE} bytes")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return Refusal(400, "the message is not JSON")
    if not isinstance(content, dict):
        return Refusal(400, "the message is not a JSON object")
    if content.get("type") not in ("start", "subscribe"):
        return None
    payload = content.get("payload")
    query = payload.get("query") if isinstance(payload, dict) else None
    found = operations(query) if isinstance(query, str) else None
    if found is None:
        return Refusal(400, "the message holds no GraphQL")
    if OperationType.MUTATION in found:
        return Refusal(403, "WebSockets only read: send mutations by POST as JSON")
    return None
