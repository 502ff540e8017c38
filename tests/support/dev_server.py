"""The UI that a test starts by `tokenuq ui` and uses by GraphQL, as a person uses it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.processes import all_processes, free_port
from tests.support.toy_pipeline import STUDY, Toy, fake_environment
from tokenuq_pipeline.runtime.console import CONSOLE_CONFIG
from tokenuq_pipeline.runtime.dagster_settings import SETTINGS
from tokenuq_pipeline.ui.login import TOKEN_VARIABLE

STAGE_PACKAGES = ("fake_entrypoints", "tokenuq_ml.stages")
DEFINITIONS = "tests.support.dev_definitions"
REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": DEFINITIONS}
LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}"""
TERMINATE = """
mutation Terminate($id: String!) {
  terminateRun(runId: $id, terminatePolicy: SAFE_TERMINATE) { __typename ... on TerminateRunFailure { message } }
}"""

SCHEDULE = """
query Schedule($selector: ScheduleSelector!) {
  scheduleOrError(scheduleSelector: $selector) { __typename ... on Schedule { scheduleState { id } } }
}"""
STOP = "mutation Stop($id: String) { stopRunningSchedule(id: $id) { __typename } }"


class DevServer:
    """A running UI over the toy's folder."""

    job = STUDY

    def __init__(self, folder: Path, **environment: str):
        self.folder, self.toy, self.port = folder, Toy(folder / "toy"), free_port()
        home = folder / "toy" / "dagster_home"
        home.mkdir(parents=True, exist_ok=True)
        (home / "dagster.yaml").write_text(SETTINGS.replace("interval_seconds: 15", "interval_seconds: 1"))
        self.log = folder / "dev.log"
        module = {"module_name": DEFINITIONS, "working_directory": str(ROOT), "location_name": DEFINITIONS}
        workspace = folder / "workspace.yaml"
        workspace.write_text(json.dumps({"load_from": [{"python_module": module}]}))
        self.arguments = ["-w", str(workspace)]
        self.environment = {
            **os.environ,
            **fake_environment(folder),
            "DAGSTER_HOME": str(self.toy.folder / "dagster_home"),
            "TOKENUQ_HOME": str(self.toy.store.home),
            "TOY_FOLDER": str(folder),
            **environment,
        }

    def __enter__(self) -> "DevServer":
        command = ["-m", "tokenuq_pipeline.cli", "ui", *self.arguments, "--port", str(self.port)]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=ROOT,
            )
        self.wait(lambda: self.graphql("{ version }"), 90)
        return self

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL to all of Dagster's processes: webserver, daemon, code servers, run workers; not to stages."""
        for pid in self.descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def descendants(self) -> list[int]:
        """All processes below the command, without stages and what is below these."""
        children: dict[int, list[int]] = {}
        for pid, stat, command in all_processes():
            if not any(package in command for package in STAGE_PACKAGES):
                children.setdefault(stat.parent, []).append(pid)
        found = [self.process.pid]
        for pid in found:
            found += children.get(pid, [])
        return found[1:]

    def graphql(self, query: str, **variables) -> dict | None:
        """The answer's data; None where the server does not answer."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql", body, {"Content-Type": "application/json"} | self._login()
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                content = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None
        except OSError:
            return None
        assert "errors" not in content, content["errors"]
        return content["data"]

    def _login(self) -> dict[str, str]:
        token = self.environment.get(TOKEN_VARIABLE)
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    def launch(self, *assets: list[str], config: dict | None = None) -> str:
        """Materialises assets as the UI's button does; the run's id, or the messages of a refusal."""
        params = {
            "selector": {
                **REPOSITORY,
                "pipelineName": self.job,
                "assetSelection": [{"path": path} for path in assets],
                "assetCheckSelection": [],
            },
            "runConfigData": CONSOLE_CONFIG | (config or {}),
            "executionMetadata": {"tags": [{"key": "study", "value": STUDY}]},
        }
        result = self.graphql(LAUNCH, params=params)["launchRun"]
        if config is not None and result["__typename"] == "RunConfigValidationInvalid":
            return " ".join(error["message"] for error in result["errors"])
        assert result["__typename"] == "LaunchRunSuccess", result
        return result["run"]["runId"]

    def cancel(self, run_id: str) -> None:
        """The UI's button."""
        result = self.graphql(TERMINATE, id=run_id)["terminateRun"]
        assert result["__typename"] == "TerminateRunSuccess", result

    def stop_schedule(self, name: str) -> None:
        """The UI's switch."""
        selector = {**REPOSITORY, "scheduleName": name}
        found = self.graphql(SCHEDULE, selector=selector)["scheduleOrError"]
        result = self.graphql(STOP, id=found["scheduleState"]["id"])["stopRunningSchedule"]
        assert result["__typename"] == "ScheduleStateResult", result

    def runs(self) -> list:
        """All runs, the oldest first, as the instance has them."""
        with self.toy.instance() as instance:
            return list(reversed(instance.get_runs()))

    def status(self, run_id: str) -> str:
        with self.toy.instance() as instance:
            return instance.get_run_by_id(run_id).status.value

    def wait(self, condition, seconds: float = 120):
        """What `condition` gives as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.2)
        return found
