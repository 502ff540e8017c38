"""The optional token of the UI: for machines that several people use, and for access through a network.

Starlette's `AuthenticationMiddleware` names the user of a request but lets all requests through, and its
`SessionMiddleware` keeps data in a signed cookie, which needs another package and another secret.
"""

import hashlib
import hmac
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import Scope

from tokenuq_ml.errors import InputError
from tokenuq_pipeline.ui.hosts import Refusal, query_values

TOKEN_VARIABLE = "TOKENUQ_UI_TOKEN"
MIN_TOKEN = 16
PARAMETER = "token"


class Login:
    """Lets requests through that know the token: by the cookie that `?token=` sets, or as `Authorization: Bearer`.

    The cookie holds a hash: other servers on this machine receive it too, because cookies know no ports, and must not
    learn the token. For the same reason its name holds the port.
    """

    def __init__(self, token: str, port: int) -> None:
        self._token = token.encode()
        self._cookie = f"tokenuq_ui_{port}"
        self._session = hmac.new(self._token, b"tokenuq ui session", hashlib.sha256).hexdigest()

    @classmethod
    def of(cls, environment: Mapping[str, str], port: int) -> "Login | None":
        """Return the login that `$TOKENUQ_UI_TOKEN` asks for; None if the variable is not set.

        Raises:
            InputError: the token is too short to be a secret.
        """
        token = environment.get(TOKEN_VARIABLE)
        if token is None:
            return None
        if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            raise InputError(
                f"{TOKEN_VARIABLE}: must have at least {MIN_TOKEN} ASCII characters and no spaces; make one with "
                "`python -c 'import secrets; print(secrets.token_urlsafe())'`"
            )
        return cls(token, port)

    def redirect(self, scope: Scope) -> RedirectResponse | None:
        """Return the answer to a GET with the right `?token=`: a cookie, and the same address without the token."""
        given = list(query_values(scope, PARAMETER))
        if scope["type"] != "http" or scope["method"] != "GET" or len(given) != 1 or not self._is_token(given[0]):
            return None
        pairs = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        rest = urlencode([(name, value) for name, value in pairs if name != PARAMETER])
        # One slash: `//name` would be another host.
        path = "/" + quote(scope["path"].lstrip("/\\"), safe="/:@!$&'()*+,;=~-._")
        answer = RedirectResponse(f"{path}?{rest}" if rest else path, status_code=303)
        answer.set_cookie(self._cookie, self._session, path="/", httponly=True, samesite="strict")
        answer.headers["Cache-Control"] = "no-store"
        return answer

    def refusal(self, scope: Scope) -> Refusal | None:
        """Return why a request is not answered: it shows neither the cookie nor the token; None if it does."""
        headers = Headers(scope=scope)
        if any(hmac.compare_digest(cookie.encode(), self._session.encode()) for cookie in self._cookies(headers)):
            return None
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(token.strip()):
            return None
        return Refusal(
            401,
            f"the UI asks for its token: open http://{headers['host']}/?token=TOKEN with the value of "
            f"{TOKEN_VARIABLE}; programs send `Authorization: Bearer TOKEN`",
        )

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token)

    def _cookies(self, headers: Headers) -> list[str]:
        """Return the values of our cookie."""
        values = []
        for line in headers.getlist("cookie"):
            for part in line.split(";"):
                try:
                    cookie = SimpleCookie(part.strip()).get(self._cookie)
                except CookieError:
                    continue
                if cookie is not None:
                    values.append(cookie.value)
        return values
