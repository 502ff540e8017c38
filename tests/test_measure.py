"""The stage `measure`: shards change nothing, and a teacher whose cache is above the budget is run online."""

import json

import dagster as dg
import polars as pl
import pytest
import yaml
from reporter import Silent
from test_ablation_matrix import InProcess
from test_end_to_end import CONFIG, STUDY, write_inputs

from tokenuq_ml.config import load_config
from tokenuq_ml.entrypoints import measure
from tokenuq_ml.stages import AssetRequest, StageRequest
from tokenuq_ml.tables import read_table, scan
from tokenuq_pipeline.definitions import build_defs
from tokenuq_pipeline.store import Store

ARM = "paper_top25"
TEACHER, STUDENT = dg.AssetKey([STUDY, "teacher_hidden"]), dg.AssetKey([STUDY, ARM, "student"])
OUTPUTS = {
    "token_losses": ("token_losses", "token_alternatives", "plots"),
    "token_uncertainty": ("token_uncertainty", "plots"),
}


class World:
    """The tiny study up to one student, made twice: with a cache, then with a budget that none fits."""

    def __init__(self, folder):
        write_inputs(folder)
        self.folder, self.store = folder, Store(folder / "store")
        with dg.DagsterInstance.ephemeral() as instance:
            self.checks, self.manifests, self.logs = [], [], []
            for gigabytes in (1.0, 1e-6):
                self._run(instance, gigabytes)

    def _run(self, instance, gigabytes):
        study = {**CONFIG["studies"][STUDY], "ablations": [ARM], "evaluation": {"bootstrap": 50}}
        study |= {"ood": [], "teacher_cache_gigabytes": gigabytes}
        (self.folder / "studies.yaml").write_text(yaml.safe_dump({STUDY: study}))
        defs = build_defs(load_config(self.folder), self.store.home, InProcess())
        keys = [dg.AssetKey(path) for path in (["models", "tiny_llama"], ["datasets", "sums"])]
        keys += [dg.AssetKey([STUDY, stage]) for stage in ("tokenized_dataset", "baseline_teacher", "token_losses")]
        if self.manifests:
            keys = []
        job = defs.resolve_job_def(STUDY)
        result = job.execute_in_process(instance=instance, asset_selection=[*keys, TEACHER, STUDENT])
        self.checks.append({check.check_name: check for check in result.get_asset_check_evaluations()})
        names = ("token_losses", "teacher_hidden", f"{ARM}/student")
        self.manifests.append({name: self.store.read_manifest(f"{STUDY}/{name}") for name in names})
        self.logs.append(scan("training_log", self.store.home, study=STUDY, ablation=ARM).collect())

    def request(self, folder, **fields):
        """For the stages `fields` names, each with fields beside the precision."""
        home, study = self.store.home, f"study={STUDY}"
        return StageRequest(
            entrypoint="measure",
            study=STUDY,
            assets={
                stage: AssetRequest(
                    fields={"precision": "float32", **more},
                    code_version="c",
                    outputs={name: str(folder / name) for name in OUTPUTS.get(stage, (stage,))},
                )
                for stage, more in fields.items()
            },
            inputs={
                "model": str(home / "models/tiny_llama"),
                "adapter": str(home / "baseline_teacher" / study / "adapter"),
                "tokenized_dataset": str(home / "tokenized_dataset" / study),
            },
            work_dir=str(folder),
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("measure"))


def test_above_the_budget_nothing_is_cached_and_the_metadata_says_so(world):
    cached, online = (manifests["teacher_hidden"] for manifests in world.manifests)
    assert cached["metrics"]["stored"] == "hidden_states, mean_embeddings" and cached["metrics"]["cached"]
    assert online["metrics"]["tokens"] == cached["metrics"]["tokens"]
    # 32 numbers of 2 bytes, 32 of 4 and one of 4: of a token.
    needed = cached["metrics"]["tokens"] * (64 + 128 + 4)
    folder = world.store.home / f"teacher_hidden/study={STUDY}"
    assert [path.name for path in folder.iterdir()] == ["online.json"]
    marker = json.loads((folder / "online.json").read_text())
    assert (marker["bytes"], marker["budget_bytes"]) == (needed, 1000)
    assert online["metrics"]["stored"] == f"nothing: {marker['why']}; students run the teacher online"
    assert marker["why"] == f"{needed / 1e9:.3g} GB is above the budget of 1e-06 GB"
    assert online["data_version"] != cached["data_version"]


def test_the_check_passes_with_a_sentence(world):
    cached, online = (checks["cached_teacher_matches_online"] for checks in world.checks)
    assert cached.passed and "apart" in cached.description
    assert online.passed and "students run the teacher online" in online.description


def test_the_student_runs_the_teacher_instead_and_records_why(world):
    cached, online = (manifests[f"{ARM}/student"]["metrics"] for manifests in world.manifests)
    assert cached["teacher_states"] == "mean_embeddings" and "teacher_states_reason" not in cached
    assert online["teacher_states"] == "online" and "above the budget" in online["teacher_states_reason"]
    first, second = (log["distill_loss"].to_numpy() for log in world.logs)
    assert first.shape == second.shape and abs(first - second).max() < 0.02 and first.max() > 0.05


def test_the_budget_is_part_of_the_cache_alone(world):
    before, after = world.manifests
    assert before["teacher_hidden"]["code_version"] != after["teacher_hidden"]["code_version"]
    for name in ("token_losses", f"{ARM}/student"):
        assert before[name]["code_version"] == after[name]["code_version"]


def test_a_budget_that_is_met_exactly_is_kept(world, tmp_path):
    needed = world.manifests[0]["teacher_hidden"]["metrics"]["tokens"] * (64 + 128 + 4)
    for gigabytes, kept in ((needed / 1e9, True), ((needed - 1) / 1e9, False)):
        folder, reporter = tmp_path / str(kept), Silent()
        measure.run(world.request(folder, teacher_hidden={"teacher_cache_gigabytes": gigabytes}), reporter)
        assert reporter.results[0].metrics["cached"] is kept
        assert (folder / "teacher_hidden/hidden.safetensors").exists() is kept


def test_alternatives_are_those_of_held_out_tokens_and_agree_with_the_losses(world):
    losses, alternatives = (
        scan(name, world.store.home, study=STUDY).collect().cast({"token": pl.String})
        for name in ("token_losses", "token_alternatives")
    )
    held_out = losses.filter(pl.col("split").cast(pl.String) != "train")
    keys = ["example_id", "position"]
    assert alternatives.select(keys).unique().sort(keys).equals(held_out.select(keys).sort(keys))
    of_token = alternatives.group_by(keys).agg(pl.len(), pl.col("probability").sum().alias("sum"), pl.col("choice"))
    assert set(of_token["len"]) == {measure.ALTERNATIVES} and of_token["sum"].max() <= 1 + 1e-5
    assert set(map(tuple, of_token["choice"])) == {tuple(range(measure.ALTERNATIVES))}
    same = alternatives.join(held_out, on=[*keys, "token_id"], suffix="_token")
    # A token among the first five is there with its own rank, loss and text, and no other is.
    assert same["choice"].to_list() == same["rank"].to_list()
    assert len(same) == held_out.filter(pl.col("rank") < measure.ALTERNATIVES).height > 0
    assert (same["probability"] - (-same["loss"]).exp()).abs().max() < 1e-4
    assert same["token"].equals(same["token_token"], check_names=False)


def test_shards_of_any_size_give_the_same_tables(world, tmp_path, monkeypatch):
    spec = {"samples": 3, "dropout": 0.2}
    monkeypatch.setattr(measure, "batch_tokens", lambda _: 20)
    tables = []
    for shard_batches in (1, 10**6):
        monkeypatch.setattr(measure, "SHARD_BATCHES", shard_batches)
        folder, count = tmp_path / str(shard_batches), []
        monkeypatch.setattr(measure, "release_free_memory", lambda count=count: count.append(1))
        measure.run(world.request(folder, token_losses={}, token_uncertainty={"uncertainty": spec}), Silent())
        assert (len(count) > 10) == (shard_batches == 1)
        tables.append([read_table(folder / name) for name in ("token_losses", "token_uncertainty")])
    numbers = (pl.Float32, pl.Float64)
    for small, large in zip(*tables, strict=True):
        # Batches of another shape round otherwise; which rows there are, and in what order, is the same.
        exact = [name for name, dtype in small.schema.items() if dtype not in numbers]
        assert small.select(exact).equals(large.select(exact))
        for name in set(small.columns) - set(exact):
            assert (small[name] - large[name]).abs().max() < 1e-4
