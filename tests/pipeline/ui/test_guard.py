"""What the guard lets through to Dagster's own webserver, and what it refuses."""

import json
from urllib.parse import quote

import dagster as dg
import pytest
from starlette.websockets import WebSocketDisconnect

from tests.support.guarded_ui import EVIL, MUTATION, OWN, PORT, client_of, connect, post
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.ui.hosts import HOSTS_VARIABLE, Hosts

HIDDEN_MUTATIONS = (
    MUTATION,
    f"query Harmless {{ version }} {MUTATION}",
    f"fragment F on Query {{ version }} {MUTATION}",
    "# query\n" + MUTATION.replace("mutation", "mutation Named"),
    "\ufeff" + MUTATION,
)
SUBSCRIPTION = 'subscription { capturedLogs(logKey: ["a", "b"]) { stdout } }'
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.fixture
def client(webserver):
    with client_of(webserver[1]) as client:
        yield client


@pytest.mark.parametrize(
    "host", ["127.0.0.1:3000", "localhost:3000", "LOCALHOST:3000", "[::1]:3000", "box:3000", "box"]
)
def test_hosts_that_are_answered(webserver, host):
    client = client_of(webserver[1], TOKENUQ_UI_HOSTS="box")
    assert client.get("/server_info", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:3000", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:3000.evil.example", "0.0.0.0:3000"]
    + ["localhost.evil.example:3000", "127.0.0.1:3000@evil.example", "", "[::ffff:127.0.0.1]:3000", "127.1:3000"],
)
def test_other_hosts_are_refused_in_words(client, host):
    answer = client.get("/server_info", headers={"Host": host})
    assert answer.status_code == 403 and HOSTS_VARIABLE in answer.text


def test_two_hosts_are_refused(client):
    headers = [("Host", "127.0.0.1:3000"), ("Host", "evil.example")]
    assert client.get("/server_info", headers=headers).status_code == 403


@pytest.mark.parametrize("value", ["http://box", "*", "*.example", "box:port", "box:99999", "box/path", "user@box"])
def test_a_wrong_list_of_hosts_is_refused(value):
    with pytest.raises(InputError, match=HOSTS_VARIABLE):
        Hosts.of(PORT, {HOSTS_VARIABLE: value})


def test_hosts_behind_a_proxy():
    named = Hosts.of(PORT, {HOSTS_VARIABLE: "Ui.Example, other:8080 localhost:8080"}).allowed
    assert {"ui.example", "ui.example:3000", "other:8080", "localhost:8080", "localhost:3000"} <= named
    assert "other" not in named and "localhost" not in named
    assert "localhost" in Hosts.of(80, {}).allowed


def test_the_issues_attack_changes_nothing(client, limits):
    """An image of any page, as in the script of the field trial."""
    query = 'mutation{wipeAssets(assetPartitionRanges:[{assetKey:{path:["tiny","ablation_report"]}}]){__typename}}'
    headers = {"Origin": EVIL, "Host": "evil.example"}
    assert client.get(f"/graphql?query={quote(query)}", headers=headers).status_code == 403
    for headers in ({"Origin": EVIL}, {"Sec-Fetch-Site": "cross-site"}, {}):
        assert client.get(f"/graphql?query={quote(MUTATION)}", headers=headers).status_code in (403, 405)
    assert not limits()


@pytest.mark.parametrize(
    "origin", [EVIL, "null", "http://localhost:3000", "http://127.0.0.1:4000", "file://", "", OWN + "/"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
def test_every_other_origin_is_refused_at_every_address(client, limits, origin, method):
    paths = ("/graphql", "/server_info", "/dagit_info", "/logs/a/b.err", "/notebook", "/download_debug/a", "/runs", "/")
    for path in (*paths, "/report_asset_materialization/a", "/report_asset_check/a", "/report_asset_observation/a"):
        answer = client.request(method, path, headers={"Origin": origin}, params={"query": MUTATION})
        assert answer.status_code == 403, path
    assert not limits()


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/graphql"]
    + ["text/plain; application/json", "application/json", "application/graphql+json", None, "application/jsonx"],
)
@pytest.mark.parametrize("site", ["cross-site", "same-site", None])
def test_a_post_of_any_type_from_elsewhere_changes_nothing(client, limits, content_type, site):
    headers = {"Origin": EVIL} | ({"Content-Type": content_type} if content_type else {})
    headers |= {"Sec-Fetch-Site": site} if site else {}
    body = json.dumps({"query": MUTATION})
    assert client.post(f"/graphql?query={quote(MUTATION)}", content=body, headers=headers).status_code == 403
    if site or content_type != "application/json":
        # Without `Origin`, which no browser of today leaves out.
        del headers["Origin"]
        assert client.post(f"/graphql?query={quote(MUTATION)}", content=body, headers=headers).status_code in (403, 415)
    assert not limits()


@pytest.mark.parametrize("content_type", ["text/plain", "application/graphql", "multipart/form-data; boundary=x", None])
def test_mutations_of_our_own_pages_come_as_json(client, limits, content_type):
    headers = {"Origin": OWN} | ({"Content-Type": content_type} if content_type else {})
    assert client.post(f"/graphql?query={quote(MUTATION)}", content=MUTATION, headers=headers).status_code == 415
    assert not limits()
    assert post(client, MUTATION, Origin=OWN).json() == {"data": {"setConcurrencyLimit": True}}
    assert limits() == {"attacked"}


def test_programs_post_json_without_an_origin(client, limits):
    assert post(client, "{ version }").json() == {"data": {"version": dg.__version__}}
    assert post(client, MUTATION).status_code == 200 and limits()


@pytest.mark.parametrize("query", HIDDEN_MUTATIONS)
@pytest.mark.parametrize("accept", ["*/*", "text/html", "application/json"])
def test_no_mutation_by_get(client, limits, query, accept):
    headers = {"Accept": accept, "Origin": OWN, "Sec-Fetch-Site": "same-origin"}
    for name in ("", "&operationName=Harmless", "&operationName=Named"):
        answer = client.get(f"/graphql?query={quote(query)}{name}", headers=headers)
        assert answer.status_code in (400, 405)
    twice = client.get(f"/graphql?query={quote(MUTATION)}&query={quote('{version}')}", headers=headers)
    assert twice.status_code == 405 and "POST" in twice.text
    assert not limits()


def test_get_reads(client):
    for headers in ({}, {"Origin": OWN, "Sec-Fetch-Site": "same-origin"}):
        assert client.get("/graphql", params={"query": "{ version }"}, headers=headers).status_code == 200
    assert client.get("/graphql", params={"query": "{"}).status_code == 400
    assert client.get("/graphql", params={"query": "{" * 10_000}).status_code == 400
    assert client.get("/graphql", params={"query": SUBSCRIPTION}).status_code == 405
    assert "GraphiQL" in client.get("/graphql", headers={"Accept": "text/html"}).text


@pytest.mark.parametrize(
    "body",
    [
        json.dumps([{"query": MUTATION}]),
        json.dumps({"id": "stored", "extensions": {"persistedQuery": {"sha256Hash": "0"}}}),
        json.dumps({"query": ["mutation"]}),
        json.dumps("text"),
        "{",
        "[" * 100_000,
        b"\xff\xfe\x00",
    ],
)
def test_bodies_that_are_no_single_request_are_refused_in_words(client, limits, body):
    headers = {"Content-Type": "application/json", "Origin": OWN}
    answer = client.post("/graphql", content=body, headers=headers)
    assert answer.status_code == 400 and "JSON" in answer.text and not limits()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(client, method):
    assert client.request(method, "/graphql", headers={"Origin": OWN}).status_code == 405


def test_other_sites_may_link_to_pages_only(client):
    for path in ("/", "/assets", "/runs/abc"):
        assert client.get(path, headers=LINK).status_code == 200
    for path in (
        "/graphql",
        "/GraphQL",
        OWN + "//graphql",
        "/logs/a/b.err",
        "/download_debug/a",
        "/notebook",
        "/server_info",
    ):
        assert client.get(path, headers=LINK).status_code == 403, path
    for changed in ("iframe", "image", "object", "embed"):
        assert client.get("/", headers=LINK | {"Sec-Fetch-Dest": changed}).status_code == 403
    assert client.get("/", headers=LINK | {"Sec-Fetch-Mode": "no-cors"}).status_code == 403
    assert client.post("/", headers=LINK).status_code == 403


def test_every_answer_forbids_frames_and_guesses(client):
    for answer in (client.get("/"), client.get("/server_info"), client.get("/", headers={"Host": "evil.example"})):
        policies = answer.headers.get_list("content-security-policy")
        assert any("frame-ancestors 'self'" in policy and "img-src 'self' data:" in policy for policy in policies)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "SAMEORIGIN"
        assert answer.headers["referrer-policy"] == "same-origin"
    assert any("script-src 'nonce-" in policy for policy in client.get("/").headers.get_list("content-security-policy"))


def test_reports_of_events_by_other_sites_are_refused(webserver, client):
    instance = webserver[0]
    forged = {"Origin": EVIL, "Content-Type": "text/plain"}
    for headers in (forged, {"Sec-Fetch-Site": "same-site"}, {"Content-Type": "text/plain"}):
        answer = client.post("/report_asset_materialization/forged?data_version=1", content="", headers=headers)
        assert answer.status_code in (403, 415)
    assert not instance.get_asset_keys()


@pytest.mark.parametrize(
    "headers", [{"Origin": EVIL}, {"Origin": "null"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "same-site"}]
)
def test_websockets_of_other_origins_are_refused_before_the_handshake(client, headers):
    with pytest.raises(Exception) as refused, connect(client, headers=headers):
        pass
    assert refused.value.status_code == 403


def test_websockets_of_our_own_pages_work(client):
    for headers in ({"Origin": OWN, "Sec-Fetch-Site": "same-origin"}, {}):
        with connect(client, headers=headers) as socket:
            socket.send_json({"type": "connection_init"})
            assert socket.receive_json() == {"type": "connection_ack"}
            socket.send_json({"type": "start", "id": "1", "payload": {"query": "subscription { nothing }"}})
            assert socket.receive_json()["type"] == "error"


@pytest.mark.parametrize("query", [*HIDDEN_MUTATIONS, "{" * 10_000, None])
@pytest.mark.parametrize("kind", ["start", "subscribe"])
def test_websockets_only_read(client, limits, query, kind):
    with connect(client, headers={"Origin": OWN}) as socket:
        socket.send_json({"type": kind, "id": "1", "payload": {"query": query}})
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
        assert closed.value.code == 1008 and closed.value.reason
    assert not limits()


@pytest.mark.parametrize("text", ["[", "[1]", "[" * 100_000, '"' + "a" * 2**21 + '"'])
def test_websocket_messages_that_are_no_objects_end_the_connection(client, text):
    with connect(client) as socket:
        socket.send_text(text)
        with pytest.raises(WebSocketDisconnect):
            socket.receive_json()
