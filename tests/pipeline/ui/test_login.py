"""The optional token of the UI."""

import pytest

from tests.support.guarded_ui import MUTATION, OWN, PORT, TOKEN, client_of, connect, post
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.ui.login import TOKEN_VARIABLE, Login


@pytest.fixture
def locked(webserver):
    with client_of(webserver[1], TOKEN) as client:
        yield client


def test_without_the_token_nothing_is_shown(locked, limits):
    for path in (
        "/",
        "/assets",
        "/graphql?query={version}",
        "/logs/a/b.err",
        "/server_info",
        "/favicon.ico",
        "/?token=wrong",
    ):
        answer = locked.get(path)
        assert answer.status_code == 401 and TOKEN_VARIABLE in answer.text and TOKEN not in answer.text
    assert post(locked, MUTATION, Origin=OWN).status_code == 401 and not limits()
    assert post(locked, MUTATION, Cookie=f"tokenuq_ui_{PORT}={TOKEN}").status_code == 401
    assert locked.post(f"/graphql?token={TOKEN}", json={"query": MUTATION}).status_code == 401
    with pytest.raises(Exception) as refused, connect(locked, f"?token={TOKEN}"):
        pass
    assert refused.value.status_code == 401


def test_the_token_sets_a_cookie_and_leaves_the_address(locked):
    answer = locked.get("/assets/a%20b", params={"view": "graph", "token": TOKEN, "q": "a&b"})
    assert answer.status_code == 303 and answer.headers["location"] == "/assets/a%20b?view=graph&q=a%26b"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie and TOKEN not in cookie
    assert locked.get("/").status_code == 200
    assert post(locked, "{ version }", Origin=OWN).status_code == 200
    with connect(locked, headers={"Origin": OWN}) as socket:
        socket.send_json({"type": "connection_init"})
        assert socket.receive_json() == {"type": "connection_ack"}
    # Another origin of this machine shares the cookie, but is refused as before.
    assert post(locked, MUTATION, Origin="http://127.0.0.1:4000").status_code == 403


def test_programs_send_the_token_in_a_header(locked):
    assert post(locked, "{ version }", Authorization=f"Bearer {TOKEN}").status_code == 200
    assert post(locked, "{ version }", Authorization=f"Basic {TOKEN}").status_code == 401
    assert post(locked, "{ version }", Authorization=f"Bearer {TOKEN}x").status_code == 401


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example/", "///evil.example", "/%5cevil.example"])
def test_the_redirect_stays_on_the_host(locked, path):
    answer = locked.get(f"http://127.0.0.1:{PORT}{path}?token={TOKEN}")
    location = answer.headers["location"]
    assert location.startswith("/") and not location.startswith(("//", "/\\")) and "\r" not in location


@pytest.mark.parametrize("token", ["", "short", "a" * 15, "with spaces and more", "ümlaut-and-enough-of-them"])
def test_a_token_that_is_no_secret_is_refused(token):
    with pytest.raises(InputError, match=TOKEN_VARIABLE):
        Login.of({TOKEN_VARIABLE: token}, PORT)
    assert Login.of({}, PORT) is None
