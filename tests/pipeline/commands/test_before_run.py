"""A study whose trackers cannot be used is refused before anything is made; a plan and the doctor say it too."""

from functools import partial

import pytest
import yaml

from tests.support.toy_pipeline import STUDY, Toy, toy_config
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.commands import run
from tokenuq_pipeline.commands.before_run import check_before_run, tracking_findings
from tokenuq_pipeline.commands.doctor_checks import examine
from tokenuq_pipeline.commands.plan import make_plan
from tokenuq_pipeline.commands.plan_text import as_text
from tokenuq_pipeline.runtime.store import Store

TRAINING = [f"{STUDY}/baseline_teacher"]


@pytest.fixture
def without_packages(monkeypatch):
    monkeypatch.setattr("tokenuq_ml.tracking.availability.is_installed", lambda package: False)
    for variable in ("TOKENUQ_LAUNCHER", "DISABLE_MLFLOW_INTEGRATION"):
        monkeypatch.delenv(variable, raising=False)


def check(config, assets, folder):
    check_before_run(assets, config, STUDY, Store(folder), ignore_disk_space=True)


def test_a_missing_package_refuses_what_is_trained_only(without_packages, tmp_path):
    config = toy_config(report_to=["wandb"])
    with pytest.raises(InputError, match=f"{STUDY}: `report_to` names wandb.*pip install wandb"):
        check(config, TRAINING, tmp_path)
    check(config, [f"{STUDY}/ablation_report"], tmp_path)
    check(toy_config(), TRAINING, tmp_path)


def test_on_a_cluster_the_packages_of_its_nodes_count(without_packages, monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENUQ_LAUNCHER", "ray")
    assert tracking_findings(toy_config(report_to=["wandb"]).studies[STUDY], Store(tmp_path)) == []


def test_the_disk_space_is_compared_unless_it_is_ignored(without_packages, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("tokenuq_pipeline.commands.plan_rows.check_disk_space", lambda *args: seen.append(args))
    config, store = toy_config(), Store(tmp_path)
    check_before_run(TRAINING, config, STUDY, store)
    check_before_run(TRAINING, config, STUDY, store, ignore_disk_space=True)
    assert seen == [(config, STUDY, TRAINING, store)]


@pytest.mark.slow
def test_a_run_is_refused_before_anything_is_made(without_packages, tmp_path):
    toy, config = Toy(tmp_path), toy_config(report_to=["mlflow"])
    check = partial(check_before_run, config=config, study=STUDY, store=toy.store, ignore_disk_space=True)
    with toy.instance() as instance, pytest.raises(InputError, match="names mlflow"):
        run.run_study(toy.defs(config), config, STUDY, [], instance, toy.store, check)
    assert toy.store.assets() == []


def test_the_doctor_names_the_study_and_the_command(without_packages, tmp_path, monkeypatch):
    study = {"model": "smollm2_135m", "dataset": "gsm_symbolic", "ablations": ["mle"]}
    (tmp_path / "studies.yaml").write_text(yaml.safe_dump({"my_study": {**study, "report_to": "trackio"}}))
    monkeypatch.setenv("TOKENUQ_CONFIG", str(tmp_path))
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path / "store"))
    (problem,) = [found for found in examine(["configuration"]) if found.state == "problem"]
    assert problem.found.startswith("my_study: `report_to` names trackio") and "pip install trackio" in problem.fix


def test_a_plan_says_it(without_packages, tmp_path):
    found = make_plan(toy_config(report_to=["wandb"]), STUDY, {}, Store(tmp_path))
    (problem,) = found.trackers
    assert "pip install wandb" in problem and problem in as_text(found, [])
