"""A page of another origin in a real browser against Dagster's webserver, with and without the guard."""

import contextlib
import threading
from types import SimpleNamespace

import dagster as dg
import polars as pl
import pytest
import uvicorn

from tests.support import chromium
from tests.support.attack_page import MUTATION, attacking_site
from tests.support.chromium import Page
from tokenuq_pipeline.assets.metadata import preview
from tokenuq_pipeline.runtime.dagster_internals import web_app
from tokenuq_pipeline.runtime.markdown import fenced
from tokenuq_pipeline.ui.guard import Guard
from tokenuq_pipeline.ui.hosts import Hosts
from tokenuq_pipeline.ui.port import listen
from tokenuq_pipeline.ui.server import endpoints_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.program() is None, reason="no Chromium on PATH")]
EVIL = "evil.example"
REBOUND = "rebound.example"
"""A name of the attacker's that resolves to this machine."""
USE = """(async () => {
  const ask = query => fetch("/graphql", {method: "POST", headers: {"Content-Type": "application/json"},
    body: JSON.stringify({query})}).then(answer => answer.json());
  const socket = new WebSocket(`ws://${location.host}/graphql`, "graphql-ws");
  const greeted = new Promise((done, failed) => { socket.onmessage = event => done(event.data);
    socket.onclose = () => failed("closed"); });
  await new Promise(done => { socket.onopen = done; });
  socket.send(JSON.stringify({type: "connection_init"}));
  return [await ask("{ version }"), await ask('%s'), await greeted];
})()"""


@contextlib.contextmanager
def serving(app, port_of_hosts=None):
    """Serve an application in a thread; yields the port."""
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    guarded = app if port_of_hosts is None else port_of_hosts(port)
    server = uvicorn.Server(uvicorn.Config(guarded, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def webserver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instance")
    workspace = folder / "workspace.yaml"
    workspace.write_text("load_from: []\n")
    with dg.DagsterInstance.local_temp(str(folder)) as instance, web_app(instance, workspace) as app:
        yield SimpleNamespace(instance=instance, app=app, limits=instance.event_log_storage.get_concurrency_keys)


def guard_of(webserver):
    return lambda port: Guard(webserver.app, Hosts.of(port, {}), None, endpoints_of(webserver.app))


def attack(page, site, ui):
    page.open(f"{site}/?ui={ui}")
    page.wait(lambda: page.evaluate("window.ended === true"))
    return page.evaluate("window.results")


def test_a_page_of_another_origin_changes_nothing_and_reads_nothing(webserver, tmp_path):
    options = (f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1",)
    with attacking_site() as evil, Page(None, tmp_path / "profile", options=options) as page:
        with serving(webserver.app, guard_of(webserver)) as port:
            ui = f"http://127.0.0.1:{port}"
            # Another port of this machine is another origin of the same site, another name another site.
            for site in (f"http://127.0.0.1:{evil}", f"http://localhost:{evil}"):
                results = attack(page, site, ui)
                assert results["socket"] == results["socket_subscribe"] == results["read"] == "refused"
                assert not webserver.limits(), results
            assert not webserver.instance.get_asset_keys()
            page.open(f"http://{REBOUND}:{port}/")
            assert "TOKENUQ_UI_HOSTS" in page.evaluate("document.body.innerText")
            # The UI's own page may do all that.
            page.open(ui)
            version, changed, greeting = page.evaluate(USE % (MUTATION % "own"))
            assert version["data"]["version"] == dg.__version__ and changed["data"]["setConcurrencyLimit"] is True
            assert "connection_ack" in greeting and webserver.limits() == {"own"}


@pytest.mark.heavy
def test_without_the_guard_the_same_page_does_much(webserver, tmp_path):
    """Otherwise the test above would show nothing."""
    with attacking_site() as evil, Page(None, tmp_path / "profile") as page, serving(webserver.app) as port:
        results = attack(page, f"http://localhost:{evil}", f"http://127.0.0.1:{port}")
    done = webserver.limits()
    assert {"img", "script", "form_plain", "form_multipart", "get", "post_plain", "beacon"} <= done
    assert results["socket"].startswith("opened")
    assert dg.AssetKey("attacked_report") in webserver.instance.get_asset_keys()


TEXTS = (
    f"![x](http://{EVIL}/a.png)",
    f"[click](http://{EVIL}/)",
    f'<img src="http://{EVIL}/a.png">',
    f"http://{EVIL}/path",
    f"www.{EVIL}",
    f"me@{EVIL}",
    "`a` | b | c",
    "**bold** _slanted_ ~~struck~~",
)


@pytest.mark.heavy
@pytest.mark.parametrize("is_escaped", [True, False])
def test_text_from_data_is_shown_as_it_is(webserver, tmp_path, is_escaped):
    """Without the escapes it would be links and marks; pictures of others are not loaded in any case."""
    metadata = {
        "preview": preview(pl.DataFrame({"text": TEXTS})),
        "stderr": dg.MetadataValue.md(fenced("\n".join(["```", *TEXTS]))),
    }
    if not is_escaped:
        metadata["preview"] = dg.MetadataValue.md("\n\n".join(TEXTS))
    webserver.instance.report_runless_asset_event(dg.AssetMaterialization(["toy"], metadata=metadata))
    with Page(None, tmp_path / "profile") as page, serving(webserver.app, guard_of(webserver)) as port:
        page.open(f"http://127.0.0.1:{port}/assets/toy?view=events")
        page.wait(lambda: page.evaluate("document.body.innerText").count(EVIL) >= 6)
        links = page.evaluate("[...document.querySelectorAll('a, img')].map(one => one.href || one.src)")
        marks = page.evaluate("[...document.querySelectorAll('strong, em, del')].map(one => one.innerText)")
        assert [link for link in links if EVIL in link] == [] or not is_escaped
        assert marks == ([] if is_escaped else ["bold", "slanted", "struck"])
        if is_escaped:
            assert all(text in page.evaluate("document.body.innerText").replace("\u2060", "") for text in TEXTS)
        else:
            assert any("Content Security Policy" in problem and EVIL in problem for problem in page.problems)
