"""The page on which the UI opens: the graph of the studies that one works with.

Dagster has no setting for it. Its own first page is a timeline of runs, which is empty before the first run.
"""

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

FIRST_PAGE = "/asset-groups"


class FirstPage:
    """Answers a request for the address without a path by a redirect to the graph, and passes all others on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and scope["path"] == "/":
            await RedirectResponse(FIRST_PAGE, status_code=307)(scope, receive, send)
        else:
            await self._app(scope, receive, send)
