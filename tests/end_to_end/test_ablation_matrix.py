"""The shipped ablations through the complete asset graph on a tiny random Llama, with all stages in this process.

Of ablations that differ by their share only, the one of 25% stands for all; of the rivals, there are some that use what
the others do not.
"""

import json
import shutil
from dataclasses import dataclass

import dagster as dg
import pytest
import yaml

from tests.support.paths import ROOT
from tests.support.pictures import draw_each_layout_once
from tests.support.tiny_study import CONFIG, STUDY, StagesInProcess, write_inputs
from tokenuq_ml.config.load import Config, load_config
from tokenuq_ml.costs.record import CostRecord
from tokenuq_ml.tables.scanning import scan
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.assets.inputs import costs_path
from tokenuq_pipeline.automation.staleness import Records, staleness
from tokenuq_pipeline.definitions import build_defs
from tokenuq_pipeline.runtime.store import Store

pytestmark = pytest.mark.slow
SHIPPED = ROOT / "config" / "ablations.yaml"
STEPS = 3
OTHER_SHARES = ("_top10", "_top50", "_top75")
RIVALS = ("asft", "change_top25")
"""A sum with another teacher, and one more table."""


def _of_the_matrix() -> tuple[str, ...]:
    return load_config(ROOT / "config").studies["ablation_matrix"].ablations


@dataclass(frozen=True)
class Matrix:
    """The study of all ablations after one run."""

    config: Config
    names: tuple[str, ...]
    defs: dg.Definitions
    store: Store
    instance: dg.DagsterInstance
    result: dg.ExecuteInProcessResult


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    write_inputs(folder)
    shutil.copy(SHIPPED, folder / "ablations.yaml")
    datasets = {name: spec for name, spec in CONFIG["datasets"].items() if name != "checks"}
    (folder / "datasets.yaml").write_text(yaml.safe_dump(datasets))
    study = {**CONFIG["studies"][STUDY], "evaluation": {"bootstrap": 200}}
    study["curriculum"] = {"examples": 1, "samples": 2, "fractions": [0.0, 1.0]}
    study["train"] = {**study["train"], "epochs": 1, "lora": {"rank": 8, "alpha": 16, "dropout": 0.1}}
    others = set(load_config(ROOT / "config").studies["rivals"].ablations) - {*RIVALS, *_of_the_matrix()}
    # These data have no known truth to select by, and this study has one teacher.
    others |= {name for name in yaml.safe_load(SHIPPED.read_text()) if name.startswith(("oracle_", "ensemble_"))}
    study["ablations"] = [name for name in yaml.safe_load(SHIPPED.read_text()) if name not in others | {"p_power"}]
    (folder / "studies.yaml").write_text(yaml.safe_dump({STUDY: study}))
    config = load_config(folder)
    # Every family once, and one of them with a second seed.
    names = tuple(
        name
        for name in config.studies[STUDY].ablations
        if (config.ablations[name].seed == 0 or name == "mle_s1") and not name.endswith(OTHER_SHARES)
    )
    config.studies[STUDY] = config.studies[STUDY].model_copy(update={"ablations": names})
    store = Store(folder / "store")
    defs = build_defs(config, store.home, StagesInProcess())
    with dg.DagsterInstance.ephemeral() as instance, pytest.MonkeyPatch.context() as patch:
        draw_each_layout_once(patch)
        job = defs.resolve_job_def(STUDY)
        result = job.execute_in_process(instance=instance, raise_on_error=False)
        yield Matrix(config, names, defs, store, instance, result)


def test_the_whole_graph_succeeds_and_nothing_is_stale(matrix):
    assert matrix.result.success, [e.message for e in matrix.result.all_events if e.is_failure]
    records = Records.of(matrix.defs.resolve_asset_graph(), matrix.config, matrix.instance, matrix.store)
    found = staleness(records, records.assets)
    assert not found and not found.unrecorded
    checks = matrix.result.get_asset_check_evaluations()
    assert {c.check_name for c in checks} >= {"selected_share", "bald_above_noise", "changes_join_one_to_one"}
    assert [c for c in checks if not c.passed and c.severity == dg.AssetCheckSeverity.ERROR] == []


def test_every_ablation_has_its_student_its_rows_and_its_costs(matrix):
    home, names, config = matrix.store.home, matrix.names, matrix.config
    assert len(names) == len({config.ablations[name].family for name in names}) + 1 >= 21
    evaluations = scan("evaluations", home).collect()
    assert set(evaluations["ablation"]) == {"base", "teacher", *names}
    log = scan("training_log", home).collect()
    steps = log.group_by("ablation").len()
    assert set(steps["len"]) == {STEPS}
    for name in names:
        record = CostRecord.read(matrix.store.path(costs_path(STUDY, name)) / "costs.json")
        ablation = config.ablations[name]
        assert record.steps == STEPS and record.selection == ablation.selection_kind
        assert (record.distilled_tokens > 0) == (ablation.distillation is not None)
        trained = record.mle_tokens + record.distilled_tokens - record.summed_tokens
        assert record.seconds.total > 0 and trained <= record.response_tokens


def test_lineage_names_what_each_student_was_made_from(matrix):
    assets = assets_by_name(matrix.config)
    reads = lambda name: {path[-1] for path in assets[f"{STUDY}/{name}/student"].reads}  # noqa: E731
    common = {"tiny_llama", "tokenized_dataset"}
    assert reads("mle") == reads("random25") == common
    assert reads("paper_top25") == common | {"baseline_teacher", "teacher_hidden"}
    assert reads("bald_top25") == common | {"baseline_teacher", "teacher_hidden", "token_uncertainty"}
    assert reads("stm") == common | {"token_losses"}
    # The base model is the teacher.
    assert reads("asft") == common
    assert reads("change_top25") == common | {"baseline_teacher", "teacher_hidden", "teacher_change"}


def test_the_report_has_a_row_for_each(matrix):
    folder = matrix.store.home / f"ablation_report/study={STUDY}"
    page = (folder / "report.html").read_text()
    rows = json.loads((folder / "ablation_table.json").read_text())
    assert {row["model"] for row in rows} == {"base", "teacher", *matrix.names}
    assert all(f">{name}<" in page for name in (*matrix.names, "dft+distill"))
    assert len(page) < 10e6
