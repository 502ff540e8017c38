"""The whole asset graph, real stages in real child processes, on a tiny random Llama and a tiny tokenizer."""

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

from tests.support.tiny_study import ABLATIONS, STUDY, write_inputs
from tokenuq_ml.config.load import load_config
from tokenuq_ml.tables.scanning import scan
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.definitions import build_defs
from tokenuq_pipeline.runtime.store import Store


class World:
    """A study that has been run once."""

    def __init__(self, folder: Path):
        self.folder, self.home = folder, folder / "store"
        write_inputs(folder)
        self.config = load_config(folder)
        (folder / "dagster").mkdir()
        os.environ["DAGSTER_HOME"] = str(folder / "dagster")
        self.instance = dg.DagsterInstance.get()

    def run(self) -> int:
        return run_study(build_defs(self.config, self.home), self.config, STUDY, [], self.instance, Store(self.home))

    def versions(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.home / ".manifests")): json.loads(path.read_text())["data_version"]
            for path in sorted((self.home / ".manifests").rglob("*.json"))
        }

    def table(self, name: str) -> pl.DataFrame:
        return scan(name, self.home).collect()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    before = dict(os.environ)
    world = World(tmp_path_factory.mktemp("world"))
    try:
        assert world.run() == 0
        yield world
    finally:
        world.instance.dispose()
        os.environ.clear()
        os.environ.update(before)


def test_every_asset_is_materialised_and_every_check_passes(world):
    graph = build_defs(world.config, world.home).resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        assert world.instance.get_latest_materialization_event(key) is not None, key
    executions = world.instance.event_log_storage.get_latest_asset_check_execution_by_key(list(graph.asset_check_keys))
    assert set(executions) == set(graph.asset_check_keys)
    blocking = {key for key in graph.asset_check_keys if graph.get_check_spec(key).blocking}
    assert len(blocking) >= 3 + 6 + len(ABLATIONS)
    assert all(executions[key].status.value == "SUCCEEDED" for key in blocking)


def test_a_second_run_recomputes_nothing(world, capsys):
    before = world.versions()
    assert world.run() == 0
    assert "nothing to recompute" in capsys.readouterr().out
    assert world.versions() == before


@pytest.mark.parametrize("table", sorted(TABLES))
def test_tables_follow_their_schemas(world, table):
    definition = TABLES[table]
    frame = world.table(table)
    assert set(frame.columns) == {*definition.columns, *definition.partitions}
    # Of whole data no row is left out.
    assert len(frame) or table in ("rejected_rows", "rejected_examples")


def test_token_tables_equal_a_plain_forward_of_the_published_models(world):
    """Loss, entropy and rank within 1e-3 nats of Hugging Face's own forward, for teacher and base."""
    tokens = world.table("tokenized_dataset").filter(pl.col("split") != "train").sort("example_id")
    losses = world.table("token_losses")
    base = AutoModelForCausalLM.from_pretrained(world.home / "models/tiny_llama", dtype=torch.float32).eval()
    teacher = PeftModel.from_pretrained(base, world.home / f"baseline_teacher/study={STUDY}/adapter").eval()
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


def test_the_end_of_turn_is_scored_and_the_prompt_is_not(world):
    """Trap 4: padding and end of turn share an id here, and the end of turn is a response token all the same."""
    losses = world.table("token_losses")
    last = losses.sort("position").group_by("example_id", maintain_order=True).last()
    assert set(last["category"].cast(pl.String)) == {"special"} and set(last["token"].cast(pl.String)) == {"<|im_end|>"}
    assert not losses.filter(pl.col("token").cast(pl.String) == "<|im_start|>").height


def test_uncertainty_joins_one_to_one(world):
    losses, uncertainty = world.table("token_losses"), world.table("token_uncertainty")
    joined = losses.join(uncertainty, on=["study", "example_id", "position"], validate="1:1")
    assert len(joined) == len(losses) == len(uncertainty)
    assert (uncertainty["bald"] >= 0).all() and (uncertainty["bald"] <= uncertainty["predictive_entropy"] + 1e-5).all()
    assert uncertainty["bald"].max() > 1e-5


def test_adapters_load_on_the_base_model(world):
    for ablation in ABLATIONS:
        base = AutoModelForCausalLM.from_pretrained(world.home / "models/tiny_llama")
        student = PeftModel.from_pretrained(base, world.home / f"student/study={STUDY}/ablation={ablation}/adapter")
        moved = [p.abs().max().item() for name, p in student.named_parameters() if "lora_B" in name]
        assert min(moved) > 0


def test_training_lowered_the_loss_of_the_teacher(world):
    losses = world.table("token_losses").filter(pl.col("split").cast(pl.String) == "train")
    assert losses["loss"].mean() < losses["base_loss"].mean()


def test_evaluations_have_the_five_rows(world):
    evaluations = world.table("evaluations")
    assert set(evaluations["ablation"]) == {"base", "teacher", *ABLATIONS}
    # Loss, accuracy and calibration in and out of distribution; IF-Eval, GSM8K, AlpacaEval with the judge's bias; of
    # students also how loss and entropy moved from the teacher's, in and out of distribution.
    per_model = dict(evaluations.group_by("ablation").len().iter_rows())
    assert per_model == dict.fromkeys(("base", "teacher"), 6 + 4 + 2 + 2) | dict.fromkeys(ABLATIONS, 6 + 4 + 2 + 2 + 4)
    assert (evaluations["ci_low"] <= evaluations["value"]).all() and (
        evaluations["value"] <= evaluations["ci_high"]
    ).all()


def test_examples_add_up_to_the_evaluations(world):
    keys = ["study", "ablation", "dataset", "split", "metric"]
    sums = world.table("evaluation_examples").group_by(keys).agg(pl.col("numerator", "denominator").sum(), pl.len())
    both = world.table("evaluations").join(sums, on=keys, validate="1:1")
    assert len(both) == len(sums) == len(world.table("evaluations"))
    assert (both["n"] == both["len"]).all()
    assert both["value"].to_list() == pytest.approx((both["numerator"] / both["denominator"]).to_list(), rel=1e-12)


def test_changes_are_those_of_the_token_tables(world):
    """The teacher against itself moves by nothing; a student by what its own and the teacher's rows differ by."""
    teacher = world.table("token_losses").select("example_id", "position", "dataset", loss="loss", entropy="entropy")
    own = world.table("evaluation_tokens").filter(pl.col("ablation").cast(pl.String) == "paper_top25")
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
    rows = world.table("evaluations").filter(pl.col("ablation") == "paper_top25", pl.col("higher_is_better").is_null())
    measured = {(row["dataset"], row["metric"]): row["value"] for row in rows.to_dicts()}
    assert measured.pop(("chat", "position_bias")) >= 0
    assert measured == pytest.approx(expected, abs=1e-6) and all(expected.values())


def test_duckdb_reads_the_tables_as_they_lie(world):
    """The promise of the layout: no help of ours."""
    rows = duckdb.sql(f"""
        SELECT category, count(*) AS n, avg(loss) AS loss, avg(bald) AS bald
        FROM read_parquet('{world.home}/token_losses/*/*.parquet', hive_partitioning = true) AS l
        JOIN read_parquet('{world.home}/token_uncertainty/*/*.parquet', hive_partitioning = true) AS u
        USING (study, example_id, position) WHERE study = '{STUDY}' GROUP BY category""").fetchall()
    assert sum(n for _, n, *_ in rows) == len(world.table("token_losses"))


def test_files_say_what_they_were_made_from(world):
    import pyarrow.parquet as pq

    path = world.home / f"token_losses/study={STUDY}/part-0.parquet"
    metadata = pq.read_metadata(path).metadata
    manifest = json.loads((world.home / f".manifests/{STUDY}/token_losses.json").read_text())
    assert metadata[b"tokenuq.code_version"].decode() == manifest["code_version"]
    assert json.loads(metadata[b"tokenuq.columns"])["loss"].endswith("nats")
    # The plain string, so that DuckDB and pandas see text.
    assert "dictionary<values=string, indices=int32" in str(pq.read_schema(path).field("token").type)


def test_nothing_published_is_a_pickle(world):
    """Trap 20: what others load is safetensors, Parquet and text."""
    kinds = {
        path.suffix
        for path in world.home.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(world.home).parts)
    }
    assert kinds <= {".safetensors", ".parquet", ".json", ".jinja", ".md", ".png", ".html", ".csv"}


def test_the_report_is_one_page_that_needs_nothing_else(world):
    page = (world.home / f"ablation_report/study={STUDY}/report.html").read_text()
    assert "http://" not in page and "https://" not in page and "<link" not in page and 'src="data:' in page
    for name in ("base", "teacher", *ABLATIONS):
        assert f">{name}<" in page
    # Text from data shows as text.
    assert "<b>now</b>" not in page
    event = world.instance.get_latest_materialization_event(dg.AssetKey([STUDY, "ablation_report"]))
    metadata = event.asset_materialization.metadata
    assert metadata["report_page"].value == (world.home / f"ablation_report/study={STUDY}/report.html").as_uri()
    assert metadata["Training curves"].value.startswith("![training_curves](data:image/png;base64,")
    assert isinstance(metadata["loss_sums_mle"].value, float)


def test_held_out_tokens_add_up_to_the_evaluations(world):
    dataset = pl.col("example_id").str.split("/").list.first()
    means = world.table("evaluation_tokens").group_by("ablation", dataset=dataset).agg(pl.col("loss").mean())
    losses = world.table("evaluations").filter(metric="loss").join(means, on=["ablation", "dataset"], validate="1:1")
    assert len(losses) == 2 * (2 + len(ABLATIONS))
    assert losses["value"].to_list() == pytest.approx(losses["loss"].to_list(), rel=1e-5)
    alternatives = world.table("token_alternatives").filter(pl.col("choice") == 0)
    tokens = world.table("token_losses").filter(pl.col("split").cast(pl.String) != "train")
    assert len(alternatives) == len(tokens)


def test_stores_agree_and_an_edit_recomputes_only_its_own(world, tmp_path_factory):
    """The same inputs give the same data versions; a new quantile makes one student anew, and the report."""
    before = world.versions()
    edited = yaml.safe_load((world.folder / "ablations.yaml").read_text())
    edited["masked_mle_top25"]["select"]["quantile"] = 0.5
    (world.folder / "ablations.yaml").write_text(yaml.safe_dump(edited))
    world.config = load_config(world.folder)
    assert world.run() == 0
    changed = {name for name, version in world.versions().items() if version != before[name]}
    assert changed == {
        f"{STUDY}/masked_mle_top25/{stage}.json" for stage in ("student", "evaluation", "curriculum")
    } | {f"{STUDY}/ablation_report.json"}
    edited["masked_mle_top25"]["select"]["quantile"] = 0.25
    (world.folder / "ablations.yaml").write_text(yaml.safe_dump(edited))
    world.config = load_config(world.folder)
    assert world.run() == 0
    # Trained again from scratch, everything comes out as it was.
    assert world.versions() == before
