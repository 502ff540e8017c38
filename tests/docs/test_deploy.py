"""The files of deploy/: programs of their own read them, their commands exist, and they agree with each other."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import tomllib

import pytest
import yaml

from tests.support.paths import ROOT
from tokenuq_pipeline import cli
from tokenuq_pipeline.runtime.dagster_settings import POSTGRES, POSTGRES_VARIABLE, SETTINGS, write_settings

DEPLOY = ROOT / "deploy"
OWN_VARIABLES = {"TOKENUQ_CODE_PORT"}
"""Variables that only files of deploy/ read."""


def documents(name):
    return [one for one in yaml.safe_load_all((DEPLOY / name).read_text()) if one]


def containers():
    """Every container of the Kubernetes files, by name."""
    cluster, (claim, deployment, _) = *documents("kubernetes/raycluster.yaml"), documents("kubernetes/tokenuq.yaml")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"], deployment["spec"]]
    return {one["name"]: (one, group["template"]["spec"]) for group in groups for one in _of(group)}, claim


def _of(group):
    return group["template"]["spec"]["containers"]


def commands():
    """The command lines of all files that start tokenuq or Dagster."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
    yield from (service["command"] for service in services if "command" in service)
    yield from (one["args"] for one, _ in containers()[0].values() if "args" in one)
    for unit in (DEPLOY / "systemd").glob("*.service"):
        (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
        yield shlex.split(line)


def test_dagsters_settings_are_tokenuqs_and_more_and_are_left_as_they_are(tmp_path):
    text = (DEPLOY / "dagster.yaml").read_text()
    settings = yaml.safe_load(text)
    for key, value in yaml.safe_load(SETTINGS + POSTGRES).items():
        if isinstance(value, dict):
            assert value.items() <= settings[key].items(), key
    (tmp_path / "dagster.yaml").write_text(text)
    write_settings(tmp_path, {POSTGRES_VARIABLE: "postgresql://tokenuq@localhost/tokenuq"})
    assert (tmp_path / "dagster.yaml").read_text() == text


def test_commands_are_accepted(capsys):
    found = list(commands())
    for words in found:
        program = os.path.basename(words[0])
        if program == "tokenuq":
            cli.parser().parse_args(words[1:])
        else:
            assert (program, words[1:4]) == ("dagster", ["code-server", "start", "-m"]), words
            assert words[4] == "tokenuq_pipeline.definitions"
    assert len(found) == 6


def test_variables_are_those_that_the_code_reads():
    code = "".join(path.read_text() for package in ("tokenuq_ml", "tokenuq_pipeline") for path in _python(package))
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            used = set(re.findall(r"\bTOKENUQ_[A-Z_]+", path.read_text())) - OWN_VARIABLES
            assert all(re.search(rf"\b{name}\b", code) for name in used), (path.name, used)


def _python(package):
    return (ROOT / package).rglob("*.py")


def test_code_servers_of_the_workspace_are_services_of_compose():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for entry in yaml.safe_load((DEPLOY / "workspace.yaml").read_text())["load_from"]:
        server = entry["grpc_server"]
        command = services[server["host"]]["command"]
        assert command[command.index("-p") + 1] == str(server["port"]) and command[command.index("-h") + 1] == "0.0.0.0"
        assert services[server["host"]]["environment"]["TOKENUQ_CONFIG"] == f"/config/{server['location_name']}"
    ports = services["ui"]["ports"]
    assert all(port.startswith("127.0.0.1:") for port in ports) and "TOKENUQ_UI_TOKEN" in services["ui"]["environment"]


def test_the_image_installs_extras_that_there_are():
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_compose_reads_its_file():
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed")
    secrets = {"POSTGRES_PASSWORD": "a", "TOKENUQ_UI_TOKEN": "b" * 24, "CONFIGURATIONS": "/srv"}
    command = [program, "-f", str(DEPLOY / "compose.yaml"), "config"]
    complete = subprocess.run(command, env=os.environ | secrets, capture_output=True, text=True)
    assert complete.returncode == 0, complete.stderr
    assert set(yaml.safe_load(complete.stdout)["services"]) == {"postgres", "research", "production", "ui"}
    # A password that is forgotten is not an empty one.
    del secrets["POSTGRES_PASSWORD"]
    forgotten = subprocess.run(command, env=os.environ | secrets, capture_output=True, text=True)
    assert forgotten.returncode and "set it to the password of the database" in forgotten.stderr


def test_kubernetes_files_agree_with_each_other_and_with_the_pins():
    (cluster,) = documents("kubernetes/raycluster.yaml")
    found, claim = containers()
    (pinned,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert cluster["spec"]["rayVersion"] == pinned and cluster["spec"]["authOptions"] == {"mode": "token"}
    for container, pod in found.values():
        assert f"--uid {pod['securityContext']['fsGroup']} " in (DEPLOY / "Dockerfile").read_text()
        claims = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
        assert claims == {claim["metadata"]["name"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
    assert {container["image"] for container, _ in found.values()} == {"tokenuq"}
    environment = {one["name"]: one for one in found["ui"][0]["env"]}
    name = cluster["metadata"]["name"]
    # KubeRay's name of the head's service, and of the secret with the token.
    assert environment["RAY_ADDRESS"]["value"] == f"http://{name}-head-svc:8265"
    secret = environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": name, "key": "auth_token"} and environment["RAY_AUTH_MODE"]["value"] == "token"
    mounts = {one["mountPath"] for one in found["ui"][0]["volumeMounts"]}
    assert {environment["TOKENUQ_HOME"]["value"], environment["DAGSTER_HOME"]["value"]} <= mounts


def test_systemd_accepts_the_units(tmp_path):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd is not installed")
    for name, instance in (
        ("tokenuq-ui.service", "tokenuq-ui.service"),
        ("tokenuq-code@.service", "tokenuq-code@a.service"),
    ):
        # Programs are looked for: `true` stands for those of an installation that is not here.
        text = re.sub(r"/opt/tokenuq/.venv/bin/\w+", shutil.which("true"), (DEPLOY / "systemd" / name).read_text())
        (tmp_path / instance).write_text(text)
        complete = subprocess.run([program, "verify", tmp_path / instance], capture_output=True, text=True)
        assert (complete.returncode, complete.stderr) == (0, "")


@pytest.mark.slow
def test_the_slurm_script_starts_ray_on_all_nodes_and_the_study_on_one(tmp_path):
    """With stand-ins for Slurm's programs, and for `ray`, which say what they were given."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    programs = {
        "scontrol": 'printf "node-1\\nnode-2\\n"',
        "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
        "ray": 'echo "$RAY_AUTH_MODE $TOKENUQ_LAUNCHER $RAY_ADDRESS | ray $*"',
    }
    for name, text in programs.items():
        path = tmp_path / (".venv/bin" if name == "ray" else "") / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "TOKENUQ_HOME": "/shared/store",
    }
    command = ["bash", str(DEPLOY / "slurm/run_study.sbatch"), "quickstart"]
    complete = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert complete.stdout == (
        "token ray http://127.0.0.1:8265 | ray symmetric-run --address node-1:6379 --min-nodes 2 --num-gpus 8 "
        "--disable-usage-stats -- tokenuq run --study quickstart\n"
    ), complete.stderr
    del environment["TOKENUQ_HOME"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert refused.returncode and "a folder on the shared file system, or s3://bucket/prefix" in refused.stderr
    unnamed = subprocess.run(command[:2], env=environment, capture_output=True, text=True)
    assert unnamed.returncode and "name a study" in unnamed.stderr
