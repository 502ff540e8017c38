"""Two code servers in one UI, with the settings of deploy/dagster.yaml and records in PostgreSQL."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from tests.support.dev_server import DEFINITIONS, DevServer
from tests.support.paths import ROOT
from tests.support.postgres import PASSWORD, postgres
from tests.support.processes import free_port

pytestmark = pytest.mark.heavy
LOCATIONS = {DEFINITIONS: DEFINITIONS, "production": "tokenuq_pipeline.definitions"}
"""Location -> module: the toy study on fake stages, and the shipped configuration."""
ENTRIES = """{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError {
  __typename ... on RepositoryLocation { repositories { jobs { name } } } ... on PythonError { message } } } } } }"""


class SharedServer(DevServer):
    """A UI over code servers that it does not start."""

    def __init__(self, folder, ports):
        super().__init__(folder)
        (folder / "toy" / "dagster_home" / "dagster.yaml").write_text((ROOT / "deploy/dagster.yaml").read_text())
        servers = [
            {"grpc_server": {"host": "127.0.0.1", "port": port, "location_name": name}} for name, port in ports.items()
        ]
        workspace = folder / "workspace.yaml"
        workspace.write_text(json.dumps({"load_from": servers}))
        self.arguments = ["-w", str(workspace)]

    def jobs(self) -> dict[str, set[str]] | None:
        """The jobs of each location; None until all have been loaded."""
        answer = self.graphql(ENTRIES)
        found = {entry["name"]: entry["locationOrLoadError"] for entry in answer["workspaceOrError"]["locationEntries"]}
        if any(entry["__typename"] != "RepositoryLocation" for entry in found.values()):
            return None
        return {
            name: {job["name"] for repository in entry["repositories"] for job in repository["jobs"]}
            for name, entry in found.items()
        }


@contextlib.contextmanager
def code_server(name, port, environment):
    command = [
        "code-server",
        "start",
        "-m",
        LOCATIONS[name],
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "--location-name",
        name,
    ]
    process = subprocess.Popen([sys.executable, "-m", "dagster", *command], env=environment, cwd=ROOT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def test_two_code_servers_are_shown_and_each_runs_its_own(tmp_path, monkeypatch):
    ports = {name: free_port() for name in LOCATIONS}
    with postgres() as database, contextlib.ExitStack() as stack:
        url = database.url.replace("postgresql://", "postgresql+psycopg2://")
        monkeypatch.setenv("TOKENUQ_DAGSTER_POSTGRES", url)
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
        server = SharedServer(tmp_path, ports)
        # As the first command of a host does: the tables are there before several processes open them.
        paths = [sys.executable, "-m", "tokenuq_pipeline.runtime.paths"]
        subprocess.run(paths, env=server.environment, cwd=ROOT, check=True)
        for name, port in ports.items():
            stack.enter_context(code_server(name, port, server.environment))
        stack.enter_context(server)
        jobs = server.wait(server.jobs, 120)
        assert server.job in jobs[DEFINITIONS] and "quickstart" in jobs["production"]
        run = server.launch(["models", "tiny"])
        server.wait(lambda: server.status(run) in ("SUCCESS", "FAILURE"), 120)
        assert server.status(run) == "SUCCESS"
        assert server.toy.store.is_complete("models/tiny")
        settings = tmp_path / "toy/dagster_home/dagster.yaml"
        assert settings.read_text() == (ROOT / "deploy/dagster.yaml").read_text()
        assert not list(settings.parent.glob("history/runs/*.db")), os.listdir(settings.parent)
