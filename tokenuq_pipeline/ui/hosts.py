"""The addresses under which the UI answers, and whether a request comes from one of its own pages.

Starlette's `TrustedHostMiddleware` compares names without ports and answers a request with a leading `www.` by a
redirect; it knows nothing of `Origin`, and Starlette's `CORSMiddleware` adds headers to answers but lets every request
through to the application.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers, QueryParams
from starlette.types import Scope

from tokenuq_ml.errors import InputError

HOSTS_VARIABLE = "TOKENUQ_UI_HOSTS"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
DEFAULT_PORTS = (80, 443)
"""Ports that a browser leaves out of `Host`; a reverse proxy serves them."""
SAFE_METHODS = ("GET", "HEAD")
METHODS = (*SAFE_METHODS, "POST")
OWN_SITES = ("same-origin", "none")
"""Values of `Sec-Fetch-Site` for our own pages and for what a person types."""

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?)\.?(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True)
class Refusal:
    """An answer instead of the application's: the HTTP status, and a sentence that says what to do."""

    status: int
    message: str


@dataclass(frozen=True)
class Hosts:
    """The values of the header `Host` that are answered, in lower case: `name` and `name:port`."""

    allowed: frozenset[str]

    @classmethod
    def of(cls, port: int, environment: Mapping[str, str]) -> "Hosts":
        """Return this machine's loopback names with `port`, and the names in `$TOKENUQ_UI_HOSTS`.

        A name without a port in the variable stands for the UI's port and for a reverse proxy on port 80 or 443.

        Raises:
            InputError: the variable holds something that is not a host.
        """
        named = [part for part in re.split(r"[,\s]+", environment.get(HOSTS_VARIABLE, "").lower()) if part]
        allowed: set[str] = set()
        for name in (*LOOPBACK, *named):
            match = _HOST.fullmatch(name)
            if match is None or int(match["port"] or 1) > 65535:
                raise InputError(
                    f"{HOSTS_VARIABLE}: {name!r} is not a host: give names or `name:port`, separated by commas, "
                    "without `http://` and wildcards"
                )
            if match["port"]:
                allowed |= _written(match["name"], int(match["port"]))
                continue
            allowed |= _written(match["name"], port)
            if name in named:
                allowed |= {match["name"]}
        return cls(frozenset(allowed))

    def refusal(self, scope: Scope) -> Refusal | None:
        """Return why a request must not be answered, because of its `Host`; None if it may.

        A page of another site whose name resolves to this machine (DNS rebinding) sends that name as `Host`.
        """
        found = Headers(scope=scope).getlist("host")
        if len(found) == 1 and found[0].lower().strip() in self.allowed:
            return None
        shown = found[0][:100] if found else ""
        return Refusal(
            403,
            f"the UI does not answer for the host {shown!r}; it answers for {', '.join(sorted(self.allowed))}; add the "
            f"name to {HOSTS_VARIABLE} and start the UI again",
        )


def _written(name: str, port: int) -> set[str]:
    """Return how a browser writes a host: with the port, and without it if it is the default."""
    return {f"{name}:{port}", *([name] if port in DEFAULT_PORTS else [])}


def cross_origin_refusal(scope: Scope, is_page: bool) -> Refusal | None:
    """Return why a request must not be answered, because another origin may have sent it; None if it may.

    Every request counts, not only those that change something: Dagster's webserver takes mutations by GET, takes the
    query from the address of a POST whose content type it does not know, and accepts WebSockets from any origin.

    Args:
        scope: of the request; its `Host` has been checked.
        is_page: whether the path shows a page of the UI, to which other sites may link.
    """
    headers = Headers(scope=scope)
    sites = [site.strip().lower() for site in headers.getlist("sec-fetch-site")]
    origins = headers.getlist("origin")
    method = scope.get("method", "GET")
    if any(not _is_own_origin(origin, headers["host"]) for origin in origins):
        return Refusal(403, f"another origin, {origins[0][:100]!r}, may not use the UI: open {_address(scope)}")
    if any(site not in OWN_SITES for site in sites) and not (is_page and method == "GET" and _is_navigation(headers)):
        return Refusal(403, f"a page of another site may not use the UI: open {_address(scope)}")
    if scope["type"] == "http" and method not in METHODS:
        return Refusal(405, f"the UI has no method {method[:20]}")
    if method == "POST" and not origins and "same-origin" not in sites and _content_type(headers) != "application/json":
        # Browsers send `Origin` with every POST, and ask before they send JSON to another origin. What has neither is
        # a program; one that cannot be told from a form of an old browser is refused.
        return Refusal(415, "send `Content-Type: application/json`, or the header `Origin` of the UI")
    return None


def _is_own_origin(origin: str, host: str) -> bool:
    """Return whether the page's address has the host and port that the request was sent to."""
    scheme, separator, rest = origin.strip().lower().partition("://")
    return bool(separator) and scheme in ("http", "https") and rest == host.strip().lower()


def _is_navigation(headers: Headers) -> bool:
    """Return whether a person follows a link into the UI; frames and images of other sites are no navigation."""
    return headers.getlist("sec-fetch-mode") == ["navigate"] and headers.getlist("sec-fetch-dest") == ["document"]


def _content_type(headers: Headers) -> str:
    """Return the type without parameters: `text/plain; application/json` needs no question of the browser."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _address(scope: Scope) -> str:
    return f"http://{Headers(scope=scope)['host']}/"


def query_values(scope: Scope, name: str) -> Iterator[str]:
    """Yield every value of a parameter of the address, also of one that is given twice."""
    yield from QueryParams(scope.get("query_string", b"").decode("latin-1")).getlist(name)
