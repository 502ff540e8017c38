"""The UI opens on the graph, and other addresses stay what they are."""

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from tokenuq_pipeline.ui.first_page import FirstPage


async def path_of(scope, receive, send):
    await PlainTextResponse(scope["path"])(scope, receive, send)


client = TestClient(FirstPage(path_of), follow_redirects=False)


@pytest.mark.parametrize("address", ["/", "/?", "/?token="])
def test_the_address_without_a_path_leads_to_the_graph(address):
    for answer in (client.get(address), client.head(address)):
        assert answer.status_code == 307 and answer.headers["location"] == "/asset-groups"


@pytest.mark.parametrize("path", ["/asset-groups", "/overview/activity", "/runs", "//", "/graphql", "/server_info"])
def test_other_pages_stay(path):
    answer = client.get(f"http://testserver{path}")
    assert answer.status_code == 200 and answer.text == path


def test_what_is_posted_to_the_address_is_passed_on():
    assert client.post("/").text == "/"
