"""The stage `score_teacher`: shards do not change tables; above the cache budget, the teacher runs online."""

import json
from contextlib import nullcontext
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import yaml

from tests.support.reporter import RecordingReporter
from tests.support.tiny_study import CONFIG, STUDY, StagesInProcess, write_inputs
from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.config.load import load_config
from tokenuq_ml.data.stored_examples import read_examples
from tokenuq_ml.models.adapters import attach_adapter
from tokenuq_ml.models.load import load_model
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.scoring.token_losses import N_ALTERNATIVES
from tokenuq_ml.stages import losses_and_states, score_teacher, train_student
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.stages.versions import ablation_fields
from tokenuq_ml.tables.parquet import read_table
from tokenuq_ml.tables.scanning import scan
from tokenuq_pipeline.assets import uncertainty_checks
from tokenuq_pipeline.definitions import build_defs
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import table_path

pytestmark = pytest.mark.slow
ABLATION = "paper_top25"
TEACHER, STUDENT = dg.AssetKey([STUDY, "teacher_hidden"]), dg.AssetKey([STUDY, ABLATION, "student"])
OUTPUTS = {
    "token_losses": ("token_losses", "token_alternatives", "plots"),
    "token_uncertainty": ("token_uncertainty", "bald_reference", "plots"),
}


class StudyMadeTwice:
    """The tiny study up to one student, made twice: with a cache, then with a budget that none fits."""

    def __init__(self, folder):
        write_inputs(folder)
        self.folder, self.store = folder, Store(folder / "store")
        with dg.DagsterInstance.ephemeral() as instance:
            self.checks, self.manifests, self.logs = [], [], []
            for gigabytes in (1.0, 1e-6):
                self._run(instance, gigabytes)

    def _run(self, instance, gigabytes):
        study = {**CONFIG["studies"][STUDY], "ablations": [ABLATION], "evaluation": {"bootstrap": 50}}
        study |= {"ood": [], "teacher_cache_gigabytes": gigabytes}
        (self.folder / "studies.yaml").write_text(yaml.safe_dump({STUDY: study}))
        defs = build_defs(load_config(self.folder), self.store.home, StagesInProcess())
        keys = [dg.AssetKey(path) for path in (["models", "tiny_llama"], ["datasets", "sums"])]
        keys += [dg.AssetKey([STUDY, stage]) for stage in ("tokenized_dataset", "baseline_teacher", "token_losses")]
        if self.manifests:
            keys = []
        job = defs.resolve_job_def(STUDY)
        result = job.execute_in_process(instance=instance, asset_selection=[*keys, TEACHER, STUDENT])
        self.checks.append({check.check_name: check for check in result.get_asset_check_evaluations()})
        names = ("token_losses", "teacher_hidden", f"{ABLATION}/student")
        self.manifests.append({name: self.store.read_manifest(f"{STUDY}/{name}") for name in names})
        self.logs.append(scan("training_log", self.store.home, study=STUDY, ablation=ABLATION).collect())

    def request(self, folder, **fields):
        """For the stages `fields` names, each with further fields; float32 where they name no precision."""
        home, study = self.store.home, f"study={STUDY}"
        return StageRequest(
            entrypoint="score_teacher",
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
def made_twice(tmp_path_factory):
    return StudyMadeTwice(tmp_path_factory.mktemp("measure"))


def test_above_the_budget_the_metadata_says_that_nothing_is_cached(made_twice):
    cached, online = (manifests["teacher_hidden"] for manifests in made_twice.manifests)
    assert cached.metrics["stored"] == "hidden_states, mean_embeddings" and cached.metrics["cached"]
    assert online.metrics["tokens"] == cached.metrics["tokens"]
    # 32 numbers of 2 bytes, 32 of 4 and one of 4: of a token.
    needed = cached.metrics["tokens"] * (64 + 128 + 4)
    folder = made_twice.store.home / f"teacher_hidden/study={STUDY}"
    assert [path.name for path in folder.iterdir()] == ["online.json"]
    marker = json.loads((folder / "online.json").read_text())
    assert (marker["bytes"], marker["budget_bytes"]) == (needed, 1000)
    assert online.metrics["stored"] == f"nothing: {marker['why']}; students run the teacher online"
    assert marker["why"] == f"{needed / 1e9:.3g} GB is above the budget of 1e-06 GB"
    assert online.data_version != cached.data_version


def test_the_cache_check_passes_with_a_description(made_twice):
    cached, online = (checks["cached_teacher_matches_online"] for checks in made_twice.checks)
    assert cached.passed and "apart" in cached.description
    assert online.passed and "students run the teacher online" in online.description


def test_without_a_cache_the_student_runs_the_teacher_online_and_records_why(made_twice):
    cached, online = (manifests[f"{ABLATION}/student"].metrics for manifests in made_twice.manifests)
    assert cached["teacher_states"] == "mean_embeddings" and "teacher_states_reason" not in cached
    assert online["teacher_states"] == "online" and "above the budget" in online["teacher_states_reason"]
    first, second = (log["distill_loss"].to_numpy() for log in made_twice.logs)
    assert first.shape == second.shape and abs(first - second).max() < 0.02 and first.max() > 0.05


def test_the_budget_affects_only_the_version_of_the_cache(made_twice):
    before, after = made_twice.manifests
    assert before["teacher_hidden"].code_version != after["teacher_hidden"].code_version
    for name in ("token_losses", f"{ABLATION}/student"):
        assert before[name].code_version == after[name].code_version


def test_a_cache_of_exactly_the_budget_is_written(made_twice, tmp_path):
    needed = made_twice.manifests[0]["teacher_hidden"].metrics["tokens"] * (64 + 128 + 4)
    for gigabytes, kept in ((needed / 1e9, True), ((needed - 1) / 1e9, False)):
        folder, reporter = tmp_path / str(kept), RecordingReporter()
        score_teacher.run(made_twice.request(folder, teacher_hidden={"teacher_cache_gigabytes": gigabytes}), reporter)
        assert reporter.results[0].metrics["cached"] is kept
        assert (folder / "teacher_hidden/hidden.safetensors").exists() is kept


def test_alternatives_are_those_of_held_out_tokens_and_agree_with_the_losses(made_twice):
    losses, alternatives = (
        scan(name, made_twice.store.home, study=STUDY).collect().cast({"token": pl.String})
        for name in ("token_losses", "token_alternatives")
    )
    held_out = losses.filter(pl.col("split").cast(pl.String) != "train")
    keys = ["example_id", "position"]
    assert alternatives.select(keys).unique().sort(keys).equals(held_out.select(keys).sort(keys))
    of_token = alternatives.group_by(keys).agg(pl.len(), pl.col("probability").sum().alias("sum"), pl.col("choice"))
    assert set(of_token["len"]) == {N_ALTERNATIVES} and of_token["sum"].max() <= 1 + 1e-5
    assert set(map(tuple, of_token["choice"])) == {tuple(range(N_ALTERNATIVES))}
    same = alternatives.join(held_out, on=[*keys, "token_id"], suffix="_token")
    # A token among the first five is there with its own rank, loss and text, and no other is.
    assert same["choice"].to_list() == same["rank"].to_list()
    assert len(same) == held_out.filter(pl.col("rank") < N_ALTERNATIVES).height > 0
    assert (same["probability"] - (-same["loss"]).exp()).abs().max() < 1e-4
    assert same["token"].equals(same["token_token"], check_names=False)


def test_shards_of_any_size_give_the_same_tables(made_twice, tmp_path, monkeypatch):
    spec = {"samples": 3, "dropout": 0.2}
    monkeypatch.setattr(losses_and_states, "batch_tokens", lambda _: 20)
    tables = []
    for shard_batches in (1, 10**6):
        monkeypatch.setattr(losses_and_states, "SHARD_BATCHES", shard_batches)
        folder, count = tmp_path / str(shard_batches), []
        monkeypatch.setattr(losses_and_states, "release_free_memory", lambda count=count: count.append(1))
        score_teacher.run(
            made_twice.request(folder, token_losses={}, token_uncertainty={"uncertainty": spec}),
            RecordingReporter(),
        )
        assert (len(count) > 10) == (shard_batches == 1)
        tables.append([read_table(folder / name) for name in ("token_losses", "token_uncertainty")])
    numbers = (pl.Float32, pl.Float64)
    for small, large in zip(*tables, strict=True):
        # Batches of another shape round otherwise; which rows there are, and in what order, is the same.
        exact = [name for name, dtype in small.schema.items() if dtype not in numbers]
        assert small.select(exact).equals(large.select(exact))
        for name in set(small.columns) - set(exact):
            assert (small[name] - large[name]).abs().max() < 1e-4


def test_bald_is_float32_and_its_reference_samples_its_rows(made_twice, tmp_path):
    reporter, spec = RecordingReporter(), {"samples": 3, "dropout": 0.2}
    score_teacher.run(
        made_twice.request(tmp_path, token_uncertainty={"uncertainty": spec, "precision": "bfloat16"}), reporter
    )
    metrics, keys = reporter.results[0].metrics, ["example_id", "position"]
    assert metrics["precision"] == "float32" and metrics["precision_reason"].startswith("BALD is a difference")
    rows, reference = read_table(tmp_path / "token_uncertainty"), read_table(tmp_path / "bald_reference")
    both = reference.join(rows, on=keys, validate="1:1", suffix="_stored")
    assert len(both) == len(reference) == metrics["bald_noise_tokens"] > 50
    assert both["bald"].equals(both["bald_stored"], check_names=False)
    # Whole examples: each has all of its tokens there.
    assert len(reference) == rows.filter(pl.col("example_id").is_in(reference["example_id"].unique().to_list())).height
    floor = (reference["bald"].cast(pl.Float64) - reference["bald_float64"]).abs().mean()
    assert metrics["bald_noise_floor"] == pytest.approx(floor)
    assert metrics["bald_noise_share"] == pytest.approx(floor / rows["bald"].mean(), rel=1e-4)
    assert metrics["bald_noise_share"] < 0.001
    assert metrics["mean_bald_std_error"] == pytest.approx(rows["bald_std_error"].mean(), rel=1e-4)


def test_the_noise_check_fails_for_bald_computed_in_bfloat16(made_twice, tmp_path, monkeypatch):
    """As token_uncertainty was computed before: the passes round differently, and that is what is measured."""
    monkeypatch.setattr(score_teacher.AdaptedModel, "for_bald", lambda self: self.at("bfloat16"))
    monkeypatch.setattr(score_teacher, "float32_passes", lambda model: nullcontext(model.dtype))
    store = Store(tmp_path)
    places = {name: store.path(table_path(name, study=STUDY)) for name in ("token_uncertainty", "bald_reference")}
    request = made_twice.request(tmp_path, token_uncertainty={"uncertainty": {"samples": 3, "dropout": 0.01}})
    request.assets["token_uncertainty"].outputs.update({name: str(place) for name, place in places.items()})
    reporter = RecordingReporter()
    score_teacher.run(request, reporter)
    assert reporter.results[0].metrics["precision"] == "bfloat16"
    result = uncertainty_checks.bald_above_noise(store, STUDY)
    assert not result.passed and "less than 5% is allowed" in result.description


class TestPrecisionOfTables:
    """Training and tables are of one precision in the first made_twice; here the tables are not."""

    @pytest.fixture(scope="class")
    def made(self, made_twice, tmp_path_factory):
        """Both stages: in one pass of bfloat16, in a pass each, and the states alone."""
        budget, made = {"teacher_cache_gigabytes": 1.0, "precision": "bfloat16"}, {}
        for name, tables in {"both": "bfloat16", "apart": "float32", "states": None}.items():
            folder, reporter = tmp_path_factory.mktemp(name), RecordingReporter()
            stages = {"teacher_hidden": budget} if tables is None else {"token_losses": {"precision": tables}}
            score_teacher.run(made_twice.request(folder, **{**stages, "teacher_hidden": budget}), reporter)
            made[name] = folder, {result.stage: result for result in reporter.results}
        return made

    def test_each_asset_records_its_own_precision(self, made):
        for name, losses in {"both": "bfloat16", "apart": "float32"}.items():
            results = made[name][1]
            assert results["token_losses"].metrics["precision"] == losses
            assert results["teacher_hidden"].metrics["precision"] == "bfloat16"

    def test_cached_states_do_not_depend_on_the_precision_of_tables(self, made):
        """So that no student is trained again for another precision of the tables."""
        assert len({results["teacher_hidden"].data_version for _, results in made.values()}) == 1

    def test_losses_have_the_precision_of_tables(self, made, made_twice):
        truth = scan("token_losses", made_twice.store.home, study=STUDY).collect()
        apart, both = (read_table(made[name][0] / "token_losses") for name in ("apart", "both"))
        assert (apart["loss"] - truth["loss"]).abs().max() < 1e-5
        assert (both["loss"] - truth["loss"]).abs().max() > 1e-3


def test_the_curriculum_of_a_bfloat16_student_is_measured_in_float32(made_twice, tmp_path):
    """One child makes all three: training as the study says, evaluation as its tables, BALD in float32."""
    outputs = {
        "student": ("adapter", "snapshots", "selections", "training_log", "plots", "costs"),
        "evaluation": ("evaluations", "evaluation_examples", "evaluation_tokens", "plots"),
        "curriculum": ("curriculum", "curriculum_uncertainty", "plots"),
    }
    config = load_config(made_twice.folder)
    fields = {
        stage: ablation_fields(config, config.studies[STUDY], config.ablations[ABLATION], stage) for stage in outputs
    }
    fields["student"] |= {"precision": "bfloat16", "teacher_states": "online", "fractions": [0.0, 1.0]}
    fields["evaluation"]["precision"] = "bfloat16"
    fields["curriculum"]["curriculum"]["fractions"] = [0.0, 1.0]
    home, study = made_twice.store.home, f"study={STUDY}"
    request = StageRequest(
        entrypoint="train_student",
        study=STUDY,
        ablation=ABLATION,
        assets={
            stage: AssetRequest(
                fields=fields[stage],
                code_version="c",
                outputs={name: str(tmp_path / stage / name) for name in names},
            )
            for stage, names in outputs.items()
        },
        inputs={
            "model": str(home / "models/tiny_llama"),
            "teacher": str(home / "baseline_teacher" / study / "adapter"),
            "tokenized_dataset": str(home / "tokenized_dataset" / study),
            "token_losses": str(home / "token_losses" / study),
        },
        work_dir=str(tmp_path / "work"),
    )
    for asset in request.assets.values():
        for folder in asset.outputs.values():
            Path(folder).mkdir(parents=True)
    reporter = RecordingReporter()
    train_student.run(request, reporter)
    made = {result.stage: result.metrics["precision"] for result in reporter.results}
    assert made == {"student": "bfloat16", "evaluation": "bfloat16", "curriculum": "float32"}
    rows = read_table(tmp_path / "curriculum" / "curriculum_uncertainty").filter(pl.col("category") == "all")
    fresh, trained = rows.sort("step")["bald"]
    assert fresh < 1e-7 < trained
    adapter = tmp_path / "student" / "adapter"
    base, numerics = load_model(request.inputs["model"], "float32")
    model = attach_adapter(base, adapter, "default")
    examples = read_examples(request.inputs["tokenized_dataset"], ["validation"])
    sample = sorted(examples, key=lambda one: one.example_id)[: fields["curriculum"]["curriculum"]["examples"]]
    spec = UncertaintySpec(**fields["curriculum"]["uncertainty"])
    spec = spec.model_copy(update={"samples": fields["curriculum"]["curriculum"]["samples"]})
    expected = token_uncertainty(model, sample, spec, numerics)
    assert trained == pytest.approx(expected["bald"].mean(), rel=1e-3)
