"""The guarded UI in a real browser: a run is launched and followed by its own pages only."""

import pytest

from tests.support import chromium
from tests.support.attack_page import attacking_site
from tests.support.chromium import Page
from tests.support.dev_server import DEFINITIONS, DevServer
from tests.support.toy_pipeline import STUDY

pytestmark = [pytest.mark.heavy, pytest.mark.skipif(chromium.program() is None, reason="no Chromium on PATH")]
TOKEN = "a-token-of-the-browser-tests"
COUNT_UPDATES = """window.updates = 0; const Socket = window.WebSocket;
window.WebSocket = class extends Socket { constructor(...given) { super(...given);
  this.addEventListener("message", one => { if (JSON.parse(one.data).type === "data") window.updates++; }); } };"""
BUTTON = "[...document.querySelectorAll('button, a')].find(one => /%s/i.test(one.innerText))"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with DevServer(tmp_path_factory.mktemp("ui"), TOKENUQ_UI_TOKEN=TOKEN) as server:
        yield server


@pytest.fixture
def page(server, tmp_path):
    with Page(None, tmp_path / "profile", width=1600, height=1000) as page:
        page.call("Page.addScriptToEvaluateOnNewDocument", source=COUNT_UPDATES)
        page.url = f"http://127.0.0.1:{server.port}"
        page.open(page.url)
        assert "asks for its token" in page.evaluate("document.body.innerText")
        page.open(f"{page.url}/?token={TOKEN}")
        assert TOKEN not in page.evaluate("location.href + document.cookie")
        yield page


def press(page, label):
    page.wait(lambda: page.evaluate(f"{BUTTON % label} !== undefined"), 90)
    page.evaluate(f"{BUTTON % label}.click()")


def test_a_run_is_launched_and_followed(server, page):
    page.open(f"{page.url}/locations/{DEFINITIONS}/jobs/{STUDY}")
    press(page, "materialize all")
    run = server.wait(lambda: server.runs() and server.runs()[0])
    page.open(f"{page.url}/runs/{run.run_id}")
    # Nobody reloads the page: its WebSocket brings the end of the run.
    page.wait(lambda: "Finished execution of run" in page.evaluate("document.body.innerText"), 120)
    assert server.status(run.run_id) == "SUCCESS" and page.evaluate("window.updates") > 0


def test_a_cookie_does_not_help_another_origin(server, page):
    with attacking_site() as evil, server.toy.instance() as instance:
        page.open(f"http://127.0.0.1:{evil}/?ui={page.url}")
        page.wait(lambda: page.evaluate("window.ended === true"))
        results = page.evaluate("window.results")
        assert results["socket"] == results["read"] == "refused"
        assert not any("attacked" in key.to_user_string() for key in instance.get_asset_keys())
        assert instance.event_log_storage.get_concurrency_keys() <= {"accelerator"}
