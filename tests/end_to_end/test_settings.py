"""A study that tries several learning rates: what it makes, what it compares, and what another candidate changes."""

import copy
import json

import dagster as dg
import pytest
import yaml

from tests.support.pictures import leave_out_pictures
from tests.support.tiny_study import CONFIG, STUDY, StagesInProcess, write_inputs
from tokenuq_ml.config.load import load_config
from tokenuq_ml.tables.scanning import scan
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.definitions import build_defs
from tokenuq_pipeline.runtime.store import Store

pytestmark = pytest.mark.heavy


class Study:
    """The tiny study with one ablation at two learning rates, in this process."""

    def __init__(self, folder):
        self.folder, self.store = folder, Store(folder / "store")
        write_inputs(folder)
        self.instance = dg.DagsterInstance.ephemeral()

    def run(self, *teachers: float) -> set[str]:
        """Bring the study up to date with these candidates; return what was made."""
        study = copy.deepcopy(CONFIG["studies"][STUDY])
        study |= {"ablations": ["mle"], "evaluation": {"bootstrap": 50}, "sweep": {"learning_rate": [1e-4, 1e-2]}}
        study["teacher_sweep"] = {"learning_rate": list(teachers)}
        (self.folder / "studies.yaml").write_text(yaml.safe_dump({STUDY: study}))
        config = load_config(self.folder)
        before = self.made()
        defs = build_defs(config, self.store.home, StagesInProcess())
        assert run_study(defs, config, STUDY, [], self.instance, self.store) == 0
        return {name for name, at in self.made().items() if before.get(name) != at}

    def made(self) -> dict[str, int]:
        """Asset -> when its manifest was written."""
        root = self.store.home / ".manifests"
        return {
            path.relative_to(root).with_suffix("").as_posix(): path.stat().st_mtime_ns for path in root.rglob("*.json")
        }


def test_settings_are_chosen_on_validation_and_a_candidate_that_loses_changes_nothing(tmp_path, monkeypatch):
    leave_out_pictures(monkeypatch)
    study = Study(tmp_path)
    made = study.run(1e-4, 1e-2)
    own = {name.removeprefix(f"{STUDY}/") for name in made if name.startswith(f"{STUDY}/")}
    students = {f"mle_lr{rate}/{stage}" for rate in ("0p0001", "0p01") for stage in ("student", "evaluation")}
    assert students | {f"teacher_lr{rate}/candidate_teacher" for rate in ("0p0001", "0p01")} < own
    report = study.store.home / "ablation_report" / f"study={STUDY}"
    # Six steps of 0.0001 leave a random model as it was.
    families = json.loads((report / "family_table.json").read_text())
    assert {row["models"] for row in families} == {"base", "teacher", "mle_lr0p01"}
    teacher = scan("teacher_candidates", study.store.home).collect().filter("chosen")["candidate"].to_list()
    assert teacher == ["teacher_lr0p01"]
    measured = scan("validation_losses", study.store.home).collect()
    assert measured["ablation"].n_unique() == 4 and len(measured) == 4 * 4
    again = study.run(1e-4, 2e-4, 1e-2)
    assert again == {
        f"{STUDY}/{name}"
        for name in ("teacher_lr0p0002/candidate_teacher", "teacher_sweep", "baseline_teacher", "ablation_report")
    }
