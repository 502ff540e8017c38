"""A complete study of real stages on a tiny random Llama: its tables, adapters, report and data versions."""

import copy
import json
import os
from pathlib import Path

import dagster as dg
import duckdb
import polars as pl
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.support.pictures import draw_each_layout_once
from tests.support.tiny_study import ABLATIONS, CONFIG, STUDY, StagesInProcess, write_inputs
from tokenuq_ml.config.load import load_config
from tokenuq_ml.tables.estimate_schemas import ESTIMATE_TABLES
from tokenuq_ml.tables.scanning import scan
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_ml.tables.truth_schemas import TRUTH_TABLES
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.definitions import build_defs
from tokenuq_pipeline.runtime.launcher import StageLauncher
from tokenuq_pipeline.runtime.store import Store

pytestmark = pytest.mark.slow
OF_OTHER_STUDIES = {
    *("teacher_candidates", "validation_losses", "teacher_change", "token_truth"),
    *("ifbench_answers", "lm_eval_samples", "pairwise_answers", "pairwise_verdicts"),
    *TRUTH_TABLES,
    *ESTIMATE_TABLES,
}
"""Tables of studies that try settings, read the teacher's change, evaluate by IFBench, lm-eval's tasks or a judge
between ablations, have a known truth, or measure BALD in more ways."""
IN_CHILDREN = "masked_mle_top25"
"""The ablation that child processes make, as `tokenuq run` makes every ablation."""


class TinyStudy:
    """A study of three ablations: child processes make the first and all that it needs, this process the others."""

    def __init__(self, folder: Path):
        self.folder, self.home = folder, folder / "store"
        write_inputs(folder)
        (folder / "dagster").mkdir()
        os.environ["DAGSTER_HOME"] = str(folder / "dagster")
        self.instance = dg.DagsterInstance.get()
        self.configure({"ablations": [IN_CHILDREN]})
        assert self.run(StageLauncher()) == 0
        self.in_children = self.versions()
        self.configure({})

    def configure(self, changes: dict) -> None:
        """Configure the study with `changes`."""
        (self.folder / "studies.yaml").write_text(yaml.safe_dump({STUDY: CONFIG["studies"][STUDY] | changes}))
        self.config = load_config(self.folder)

    def set_quantile(self, quantile: float) -> None:
        """Edit the ablation that was made by child processes."""
        ablations = copy.deepcopy(CONFIG["ablations"])
        ablations[IN_CHILDREN]["select"]["quantile"] = quantile
        (self.folder / "ablations.yaml").write_text(yaml.safe_dump(ablations))
        self.config = load_config(self.folder)

    def run(self, launcher=None) -> int:
        """Bring the study up to date and return the exit code."""
        defs = build_defs(self.config, self.home, launcher or StagesInProcess())
        preload = launcher is not None
        return run_study(defs, self.config, STUDY, [], self.instance, Store(self.home), preload=preload)

    def versions(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.home / ".manifests")): json.loads(path.read_text())["data_version"]
            for path in sorted((self.home / ".manifests").rglob("*.json"))
        }

    def table(self, name: str) -> pl.DataFrame:
        return scan(name, self.home).collect()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    before = dict(os.environ)
    study = TinyStudy(tmp_path_factory.mktemp("study"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            draw_each_layout_once(patch)
            assert study.run() == 0
            yield study
    finally:
        study.instance.dispose()
        os.environ.clear()
        os.environ.update(before)


def test_every_asset_is_materialised_and_every_check_passes(study):
    graph = build_defs(study.config, study.home).resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        assert study.instance.get_latest_materialization_event(key) is not None, key
    executions = study.instance.event_log_storage.get_latest_asset_check_execution_by_key(list(graph.asset_check_keys))
    assert set(executions) == set(graph.asset_check_keys)
    blocking = {key for key in graph.asset_check_keys if graph.get_check_spec(key).blocking}
    assert len(blocking) >= 3 + 6 + len(ABLATIONS)
    assert all(executions[key].status.value == "SUCCEEDED" for key in blocking)


def test_a_second_run_recomputes_nothing(study, capsys):
    before = study.versions()
    assert study.run() == 0
    assert "nothing to recompute" in capsys.readouterr().out
    assert study.versions() == before


@pytest.mark.parametrize("table", sorted(set(TABLES) - OF_OTHER_STUDIES))
def test_tables_follow_their_schemas(study, table):
    definition = TABLES[table]
    frame = study.table(table)
    assert set(frame.columns) == {*definition.columns, *definition.partitions}
    # Of whole data no row is left out.
    assert len(frame) or table in ("rejected_rows", "rejected_examples")


def test_token_tables_equal_a_plain_forward_of_the_published_models(study):
    """Loss, entropy and rank within 1e-3 nats of Hugging Face's own forward, for teacher and base."""
    tokens = study.table("tokenized_dataset").filter(pl.col("split") != "train").sort("example_id")
    losses = study.table("token_losses")
    base = AutoModelForCausalLM.from_pretrained(study.home / "models/tiny_llama", dtype=torch.float32).eval()
    teacher = PeftModel.from_pretrained(base, study.home / f"baseline_teacher/study={STUDY}/adapter").eval()
    for row in tokens.iter_rows(named=True):
        ids = torch.tensor([row["input_ids"]])
        positions = [i for i, response in enumerate(row["response_mask"]) if response]
        stored = losses.filter(pl.col("example_id") == row["example_id"]).sort("position")
        assert stored["position"].to_list() == positions
        assert stored["token_id"].to_list() == [row["input_ids"][p] for p in positions]
        with torch.no_grad():
            ours = teacher(ids).logits[0].log_softmax(-1)
            with teacher.disable_adapter():
                bare = teacher(ids).logits[0].log_softmax(-1)
        before, labels = [p - 1 for p in positions], stored["token_id"].to_list()
        for column, logp in (("loss", ours), ("base_loss", bare)):
            expected = -logp[before, labels]
            assert (torch.tensor(stored[column].to_list()) - expected).abs().max() < 1e-3
        entropy = -(ours.exp() * ours).sum(-1)[before]
        assert (torch.tensor(stored["entropy"].to_list()) - entropy).abs().max() < 1e-3
        ranks = (ours[before] > ours[before, labels][:, None]).sum(-1)
        assert stored["rank"].to_list() == ranks.tolist()


def test_the_end_of_turn_is_scored_and_the_prompt_is_not(study):
    """Trap 4: padding and end of turn share an id here, and the end of turn is a response token all the same."""
    losses = study.table("token_losses")
    last = losses.sort("position").group_by("example_id", maintain_order=True).last()
    assert set(last["category"].cast(pl.String)) == {"special"} and set(last["token"].cast(pl.String)) == {"<|im_end|>"}
    assert not losses.filter(pl.col("token").cast(pl.String) == "<|im_start|>").height


def test_uncertainty_joins_one_to_one(study):
    losses, uncertainty = study.table("token_losses"), study.table("token_uncertainty")
    joined = losses.join(uncertainty, on=["study", "example_id", "position"], validate="1:1")
    assert len(joined) == len(losses) == len(uncertainty)
    assert (uncertainty["bald"] >= 0).all() and (uncertainty["bald"] <= uncertainty["predictive_entropy"] + 1e-5).all()
    assert uncertainty["bald"].max() > 1e-5


def test_adapters_load_on_the_base_model(study):
    for ablation in ABLATIONS:
        base = AutoModelForCausalLM.from_pretrained(study.home / "models/tiny_llama")
        student = PeftModel.from_pretrained(base, study.home / f"student/study={STUDY}/ablation={ablation}/adapter")
        moved = [p.abs().max().item() for name, p in student.named_parameters() if "lora_B" in name]
        assert min(moved) > 0


def test_training_lowered_the_loss_of_the_teacher(study):
    losses = study.table("token_losses").filter(pl.col("split").cast(pl.String) == "train")
    assert losses["loss"].mean() < losses["base_loss"].mean()


def test_evaluations_have_every_model_and_metric(study):
    evaluations = study.table("evaluations")
    assert set(evaluations["ablation"]) == {"base", "teacher", *ABLATIONS}
    # Loss, accuracy and calibration in and out of distribution; IF-Eval, GSM8K, AlpacaEval with the judge's bias; of
    # students also how loss and entropy moved from the teacher's, in and out of distribution.
    per_model = dict(evaluations.group_by("ablation").len().iter_rows())
    assert per_model == dict.fromkeys(("base", "teacher"), 6 + 4 + 2 + 2) | dict.fromkeys(ABLATIONS, 6 + 4 + 2 + 2 + 4)
    assert (evaluations["ci_low"] <= evaluations["value"]).all() and (
        evaluations["value"] <= evaluations["ci_high"]
    ).all()


def test_examples_add_up_to_the_evaluations(study):
    keys = ["study", "ablation", "dataset", "split", "metric"]
    sums = study.table("evaluation_examples").group_by(keys).agg(pl.col("numerator", "denominator").sum(), pl.len())
    both = study.table("evaluations").join(sums, on=keys, validate="1:1")
    assert len(both) == len(sums) == len(study.table("evaluations"))
    assert (both["n"] == both["len"]).all()
    assert both["value"].to_list() == pytest.approx((both["numerator"] / both["denominator"]).to_list(), rel=1e-12)


def test_changes_are_those_of_the_token_tables(study):
    """The teacher against itself moves by nothing; a student by what its own and the teacher's rows differ by."""
    teacher = study.table("token_losses").select("example_id", "position", "dataset", loss="loss", entropy="entropy")
    own = study.table("evaluation_tokens").filter(pl.col("ablation").cast(pl.String) == "paper_top25")
    both = own.join(teacher, on=["example_id", "position"], suffix="_teacher", validate="1:1")
    means = both.group_by(pl.col("dataset").cast(pl.String)).agg(
        *(
            (pl.col(name).cast(pl.Float64) - pl.col(f"{name}_teacher").cast(pl.Float64)).mean().alias(f"{name}_change")
            for name in ("loss", "entropy")
        )
    )
    expected = {
        (row["dataset"], name): row[name] for row in means.to_dicts() for name in ("loss_change", "entropy_change")
    }
    rows = study.table("evaluations").filter(pl.col("ablation") == "paper_top25", pl.col("higher_is_better").is_null())
    measured = {(row["dataset"], row["metric"]): row["value"] for row in rows.to_dicts()}
    assert measured.pop(("chat", "position_bias")) >= 0
    assert measured == pytest.approx(expected, abs=1e-6) and all(expected.values())


def test_duckdb_alone_reads_and_joins_the_tables(study):
    """Without a function of this project."""
    rows = duckdb.sql(f"""
        SELECT category, count(*) AS n, avg(loss) AS loss, avg(bald) AS bald
        FROM read_parquet('{study.home}/token_losses/*/*.parquet', hive_partitioning = true) AS l
        JOIN read_parquet('{study.home}/token_uncertainty/*/*.parquet', hive_partitioning = true) AS u
        USING (study, example_id, position) WHERE study = '{STUDY}' GROUP BY category""").fetchall()
    assert sum(n for _, n, *_ in rows) == len(study.table("token_losses"))


def test_files_hold_their_code_version_and_column_descriptions(study):
    import pyarrow.parquet as pq

    path = study.home / f"token_losses/study={STUDY}/part-0.parquet"
    metadata = pq.read_metadata(path).metadata
    manifest = json.loads((study.home / f".manifests/{STUDY}/token_losses.json").read_text())
    assert metadata[b"tokenuq.code_version"].decode() == manifest["code_version"]
    assert json.loads(metadata[b"tokenuq.columns"])["loss"].endswith("nats")
    # The plain string, so that DuckDB and pandas see text.
    assert "dictionary<values=string, indices=int32" in str(pq.read_schema(path).field("token").type)


def test_nothing_published_is_a_pickle(study):
    """Trap 20: what others load is safetensors, Parquet and text."""
    kinds = {
        path.suffix
        for path in study.home.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(study.home).parts)
    }
    assert kinds <= {".safetensors", ".parquet", ".json", ".jinja", ".md", ".png", ".html", ".csv"}


def test_the_report_is_one_page_that_needs_nothing_else(study):
    page = (study.home / f"ablation_report/study={STUDY}/report.html").read_text()
    assert "http://" not in page and "https://" not in page and "<link" not in page and 'src="data:' in page
    for name in ("base", "teacher", *ABLATIONS):
        assert f">{name}<" in page
    # Text from data shows as text.
    assert "<b>now</b>" not in page
    event = study.instance.get_latest_materialization_event(dg.AssetKey([STUDY, "ablation_report"]))
    metadata = event.asset_materialization.metadata
    assert metadata["report_page"].value == (study.home / f"ablation_report/study={STUDY}/report.html").as_uri()
    assert metadata["Training curves"].value.startswith("![training_curves](data:image/png;base64,")
    assert isinstance(metadata["loss_sums_mle"].value, float)


def test_held_out_tokens_add_up_to_the_evaluations(study):
    dataset = pl.col("example_id").str.split("/").list.first()
    means = study.table("evaluation_tokens").group_by("ablation", dataset=dataset).agg(pl.col("loss").mean())
    losses = study.table("evaluations").filter(metric="loss").join(means, on=["ablation", "dataset"], validate="1:1")
    assert len(losses) == 2 * (2 + len(ABLATIONS))
    assert losses["value"].to_list() == pytest.approx(losses["loss"].to_list(), rel=1e-5)
    alternatives = study.table("token_alternatives").filter(pl.col("choice") == 0)
    tokens = study.table("token_losses").filter(pl.col("split").cast(pl.String) != "train")
    assert len(alternatives) == len(tokens)


def test_an_edit_recomputes_its_ablation_and_the_report(study):
    before = study.versions()
    study.set_quantile(0.5)
    assert study.run() == 0
    changed = {name for name, version in study.versions().items() if version != before[name]}
    assert changed == {f"{STUDY}/{IN_CHILDREN}/{stage}.json" for stage in ("student", "evaluation", "curriculum")} | {
        f"{STUDY}/ablation_report.json"
    }


def test_the_same_inputs_give_the_same_data_versions_in_another_process(study):
    """Child processes made the edited ablation at first. It is edited back and trained again in this process."""
    study.set_quantile(0.25)
    assert study.run() == 0
    versions = study.versions()
    made_again = f"{STUDY}/{IN_CHILDREN}/"
    assert [name for name in study.in_children if name.startswith(made_again)]
    for name, version in study.in_children.items():
        # The report showed one ablation at first.
        assert versions[name] == version or name == f"{STUDY}/ablation_report.json", name
