"""A guarded application and a client of it, which sends what a browser would."""

from starlette.testclient import TestClient

from tokenuq_pipeline.ui.guard import Guard
from tokenuq_pipeline.ui.hosts import Hosts
from tokenuq_pipeline.ui.login import Login
from tokenuq_pipeline.ui.server import endpoints_of

PORT = 3000
OWN, EVIL = f"http://127.0.0.1:{PORT}", "http://evil.example"
TOKEN = "a-token-of-the-tests-0123"
MUTATION = 'mutation { setConcurrencyLimit(concurrencyKey: "attacked", limit: 3) }'


def client_of(app, token=None, host=f"127.0.0.1:{PORT}", **environment):
    login = None if token is None else Login(token, PORT)
    guard = Guard(app, Hosts.of(PORT, environment), login, endpoints_of(app))
    return TestClient(guard, base_url=f"http://{host}", follow_redirects=False)


def connect(client, rest="", headers=None):
    """A WebSocket, as the UI opens it for live updates."""
    return client.websocket_connect(f"ws://127.0.0.1:{PORT}/graphql{rest}", ["graphql-ws"], headers=headers or {})


def post(client, query, **headers):
    return client.post("/graphql", json={"query": query}, headers=headers)
