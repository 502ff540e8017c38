"""`tokenuq plan` as text and JSON: fresh stages cost nothing, and unknown sizes are reported."""

import json
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT
from tests.support.toy_pipeline import STUDY, Toy, toy_config
from tokenuq_ml.config import ModelSpec
from tokenuq_ml.costs.machine import Machine
from tokenuq_ml.disk_space import Space
from tokenuq_ml.errors import InputError
from tokenuq_pipeline import cli
from tokenuq_pipeline.commands import plan, plan_machine, status, units
from tokenuq_pipeline.commands.disk_space import Need

pytestmark = pytest.mark.slow

MACHINE = Machine(1e9, "cpu", "bfloat16", 2, "test", 512)
SIZES = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}
SIZES |= {"num_attention_heads": 4, "vocab_size": 97, "dtype": "bfloat16"}


def sized_config(**study):
    config = toy_config(**study)
    config.models["tiny"] = ModelSpec(name="tiny", source="path", path="/nowhere", config=SIZES)
    return config


def planned(toy, config, measure=lambda *_: MACHINE):
    with toy.instance() as instance:
        rows = status.status_rows(toy.defs(config), config, [STUDY], instance, toy.store)
        states = {row["asset"]: plan.STATES.get(row["state"], row["state"]) for row in rows}
        return plan.make_plan(config, STUDY, states, toy.store, measure)


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


def needs(made, free):
    """What a plan needs of a disk with so much free space."""
    return [Need(Space(Path("/d"), Path("/d"), 10**12, free, None), made.totals["disk"], {"all": made.totals["disk"]})]


def by_name(made):
    return {row["asset"]: row for row in made.stages}


def test_every_stage_of_an_empty_store_is_planned_and_totals_add_up(toy):
    made = planned(toy, sized_config())
    rows = by_name(made)
    assert {"models/tiny", "datasets/toy", f"{STUDY}/top/student", f"{STUDY}/ablation_report"} < set(rows)
    assert all(row["state"] == "missing" for row in rows.values())
    assert made.totals["flop"] == sum(row["flop"] for row in rows.values()) > 0
    assert made.totals["seconds"] == pytest.approx(sum(row["seconds"] for row in rows.values()))
    largest = rows[made.totals["largest"]]
    assert all(sum(row["memory"].values()) <= sum(largest["memory"].values()) for row in rows.values())
    # One process makes a student, its evaluation and its curriculum: it starts once.
    assert rows[f"{STUDY}/mle/student"]["seconds"] > 10 > rows[f"{STUDY}/mle/evaluation"]["seconds"]
    assert [source["name"] for source in made.sources][:1] == ["tiny"] and not made.sources[0]["ready"]


@pytest.mark.slow
def test_fresh_stages_cost_nothing(made_study):
    def never(*_):
        raise AssertionError("nothing to compute, and the machine is measured")

    made = planned(made_study, sized_config(), never)
    assert made.totals["stages"] == 0 and made.totals["flop"] == 0
    assert "up to date: nothing to compute" in plan.as_text(made, [])
    # Another quantile: one student is stale, what is made of it may follow, and nothing else.
    edited = sized_config(quantile=0.5)
    rows = by_name(planned(made_study, edited))
    assert rows[f"{STUDY}/top/student"]["state"] == "stale" and rows[f"{STUDY}/top/student"]["flop"] > 0
    assert rows[f"{STUDY}/top/evaluation"]["state"] == "may follow"
    still = {"baseline_teacher", "token_losses", "mle/student", "mle/evaluation"}
    assert all(rows[f"{STUDY}/{name}"]["state"] == "fresh" and not rows[f"{STUDY}/{name}"]["flop"] for name in still)


def test_without_a_model_config_sizes_are_reported_as_unknown(toy):
    made = planned(toy, toy_config())
    text = plan.as_text(made, [])
    assert made.machine is None and made.totals["flop"] is None and made.totals["tokens"] > 0
    assert "sizes of tiny: not known until its config can be read" in text and "  ?" in text


def test_the_text_warns_of_disk_and_memory(toy):
    made = planned(toy, sized_config())
    assert "too little" not in plan.as_text(made, needs(made, 10**12))
    text = plan.as_text(made, needs(made, 10))
    assert "Disk: the disk at /d has too little space: about " in text and "and 10 bytes of 1.0 TB are free" in text
    made.totals["memory"] = {"weights": 2**60}
    assert "This machine has" in plan.as_text(made, [])


@pytest.mark.slow
def test_the_command_writes_json_and_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path / "store"))
    monkeypatch.setattr(plan, "measure_machine", lambda *_: MACHINE)
    for variable in ("TOKENUQ_ALPACA", "TOKENUQ_GSM8K"):
        monkeypatch.delenv(variable, raising=False)
    assert cli.main(["plan", "--study", "alpaca_gemma_2_2b", "--format", "json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["parameters"] == pytest.approx(2.614e9, rel=1e-3) and made["machine"]["precision"] == "bfloat16"
    assert {"asset", "state", "tokens", "flop", "seconds", "disk", "memory", "passing_disk"} == set(made["stages"][0])
    assert not {source["name"]: source["ready"] for source in made["sources"]}["gemma_2_2b"]
    assert cli.main(["plan", "--study", "alpaca_gemma_2_2b"]) == 0
    text = capsys.readouterr().out
    assert "HF_HUB_OFFLINE" in text and "Assumptions" in text and "Largest process: " in text
    assert not (tmp_path / "store" / "models").exists()
    assert cli.main(["plan", "--study", "nope"]) == 2


def test_a_failed_measurement_is_a_one_line_error(monkeypatch):
    from tokenuq_ml.costs.flops import Architecture

    monkeypatch.setattr(plan_machine.sys, "executable", "/bin/false")
    with pytest.raises(InputError, match="could not be measured: exit code 1"):
        plan_machine.measure_machine(Architecture.from_config(SIZES), "auto")


@pytest.mark.parametrize(
    "seconds, words", [(0.4, "0 s"), (119, "119 s"), (120, "2.0 min"), (7200, "2.0 h"), (172_800, "2.0 days")]
)
def test_durations_are_shown_in_the_largest_unit_that_fits_twice(seconds, words):
    assert units.duration(seconds) == words


def test_disk_sizes_are_shown_in_decimal_units():
    assert [units.disk(size) for size in (1500, 2e6, 3e9)] == ["1.5 kB", "2.0 MB", "3.0 GB"]


def test_further_studies_do_not_change_the_versions_of_quickstart(tmp_path, monkeypatch):
    """Its versions are those of a configuration that holds nothing else."""
    import shutil

    from tokenuq_ml.config.load import load_config
    from tokenuq_pipeline.assets.graph import assets_by_name

    shipped = ROOT / "config"
    shutil.copytree(shipped, tmp_path / "config")
    (tmp_path / "config" / "comparisons.yaml").unlink()
    studies = yaml.safe_load((shipped / "studies.yaml").read_text())
    (tmp_path / "config" / "studies.yaml").write_text(yaml.safe_dump({"quickstart": studies["quickstart"]}))
    models = yaml.safe_load((shipped / "models.yaml").read_text())
    del models["smollm2_135m"]["config"]
    (tmp_path / "config" / "models.yaml").write_text(yaml.safe_dump({"smollm2_135m": models["smollm2_135m"]}))

    def versions(folder):
        assets = assets_by_name(load_config(folder))
        return {name: asset.code_version for name, asset in assets.items()}

    alone = versions(tmp_path / "config")
    assert alone.items() <= versions(shipped).items() and "quickstart/paper_top25/student" in alone


def test_a_model_that_would_be_refused_is_not_ready_and_says_why(toy, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    config = toy_config()
    config.models["tiny"] = ModelSpec(name="tiny", source="path", path=str(tmp_path / "model"))
    made = planned(toy, config)
    assert not made.sources[0]["ready"] and "refuses it: t5 is an encoder-decoder" in made.sources[0]["words"]
    assert "t5 is an encoder-decoder" in plan.as_text(made, [])


def test_a_maximum_length_beyond_the_models_positions_is_reported(toy):
    config = toy_config()
    sizes = {**SIZES, "model_type": "gpt2", "n_positions": 16}
    config.models["tiny"] = ModelSpec(name="tiny", source="path", path="/nowhere", config=sizes)
    (finding,) = planned(toy, config).template
    assert "has 16 positions" in finding and finding.endswith("set max_length: 16")
    assert finding in plan.as_text(planned(toy, config), [])


def test_a_posterior_that_would_be_refused_is_reported_before_anything_is_trained(toy):
    estimators = {"estimators": ["laplace_diag", "adapter_ensemble"], "members": 2, "samples": 1000}
    small, large = (planned(toy, sized_config(uncertainty={**estimators, "samples": count})) for count in (2, 100_000))
    refused = [words for words in large.assumptions if "uncertainty_estimates will be refused" in words]
    assert len(refused) == 1 and "'laplace_diag' would take" in refused[0]
    assert not [words for words in small.assumptions if "will be refused" in words]
    assert f"{STUDY}/teacher_s1001/ensemble_teacher" in by_name(large)


def test_a_plan_for_a_card_measures_nothing_and_finds_the_largest_micro_batch(toy):
    config = sized_config(train={"batch_size": 8, "micro_batch_size": 2})
    made = planned(toy, config, plan_machine.card_of("RTX 4090"))
    assert made.machine["card"] == "4090" and json.loads(json.dumps(vars(made)))["micro_batch"]["examples"] == 8
    text = plan.as_text(made, [])
    assert "One 4090 by its data sheet: 165.2 TFLOP/s in bfloat16, 82.6 TFLOP/s in float32; 22.4 GiB of memory" in text
    assert "Largest micro-batch that fits: 8 examples" in text and text.count("the study has 2") == 1
    assert "share of the card's peak that each kind of work reaches: train 0.4" in text and "assumed: " in text
    with pytest.raises(InputError, match="--device: 'h1000' is not known"):
        plan_machine.card_of("h1000")


def test_a_micro_batch_that_does_not_fit_comes_with_what_to_set(toy):
    made = planned(toy, sized_config(), plan_machine.card_of("L4"))
    made.micro_batch |= {"examples": 4, "asked": 8}
    assert "the study has 8, set train.micro_batch_size: 4" in plan.as_text(made, [])
    made.micro_batch |= {"examples": 0, "remedies": ["train.gradient_checkpointing: true", "quantization: nf4"]}
    text = plan.as_text(made, [])
    assert (
        "not even one example fits" in text and "set train.gradient_checkpointing: true and quantization: nf4" in text
    )
