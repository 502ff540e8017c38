"""Settings of a training: names and families, what a study's sweep makes, and which settings cannot be compared."""

import copy
import re

import pytest
import yaml

from tests.support.tiny_study import CONFIG, STUDY
from tokenuq_ml.config import AblationSpec, LoraSpec, TrainChange, TrainSpec, TrainSweep
from tokenuq_ml.config.families import settings_of
from tokenuq_ml.config.load import load_config
from tokenuq_ml.config.sweeps import expand
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.versions import ablation_fields, candidate_fields, study_fields


def load(folder, added=None, *, others=None, **study):
    """Load the tiny study with other keys, and after it other studies that differ from it in the given keys."""
    config = copy.deepcopy(CONFIG)
    before = config["studies"][STUDY]
    config["studies"] |= {name: {**before, **keys} for name, keys in (others or {}).items()}
    config["studies"][STUDY] = {**before, **study}
    config["ablations"].update(added or {})
    (folder / "llama").mkdir()
    for kind, entries in config.items():
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(entries))
    return load_config(folder)


@pytest.mark.parametrize(
    ("entry", "families"),
    [
        # YAML reads 1e-4 as a word.
        ({"train": {"learning_rate": ["1e-4", 0.0005]}}, {"a": ["a_lr0p0001", "a_lr0p0005"]}),
        ({"train": {"epochs": [1, 2], "weight_decay": 0.1}}, {"a": ["a_epochs1", "a_epochs2"]}),
        ({"train": {"lora": {"rank": [8, 16]}}}, {"a": ["a_rank8", "a_rank16"]}),
        ({"lora": {"rank": [8, 16]}}, {"a_rank8": ["a_rank8"], "a_rank16": ["a_rank16"]}),
        ({"train": {"learning_rate": 0.1}}, {"a": ["a"]}),
        (
            {"train": {"learning_rate": [0.1, 0.2]}, "select": {"by": "loss", "quantile": [0.1, 0.25]}},
            {"a10": ["a10_lr0p1", "a10_lr0p2"], "a25": ["a25_lr0p1", "a25_lr0p2"]},
        ),
    ],
)
def test_what_train_sweeps_are_settings_of_one_family(entry, families):
    made = expand("a", {"select": "all", "seed": [0, 1], **entry})
    specs = {name: AblationSpec(name=name, **single) for name, single in made.items()}
    found = settings_of(specs)
    assert {family: list(settings) for family, settings in found.items()} == families
    assert all(names == [name, f"{name}_s1"] for settings in found.values() for name, names in settings.items())


def test_numbers_that_yaml_reads_as_words_are_compared_as_numbers():
    with pytest.raises(ValueError, match="holds a value twice"):
        expand("a", {"train": {"learning_rate": ["1e-3", 0.001]}})


def test_a_change_is_applied_to_the_budget():
    train = TrainSpec(learning_rate=1e-3, epochs=2, lora=LoraSpec(rank=8, alpha=16, dropout=0.2))
    changed = TrainChange(learning_rate=0.1, lora={"rank": 4}).of(train)
    assert changed == train.model_copy(update={"learning_rate": 0.1, "lora": LoraSpec(rank=4, alpha=8, dropout=0.2)})
    assert TrainChange().of(train) == train


def test_only_what_is_set_is_part_of_the_version(tmp_path):
    config = load(tmp_path, {"fast": {"select": "all", "train": {"learning_rate": 0.5}}}, ablations=["mle", "fast"])
    study = config.studies[STUDY]
    plain, fast = (ablation_fields(config, study, config.ablations[name], "student") for name in ("mle", "fast"))
    assert not {"train", "budget"} & plain["ablation"].keys() and plain["train"] == study.train.fields()
    assert fast["ablation"]["train"] == {"learning_rate": 0.5}
    # The study's own learning rate is none of it.
    slower = study.model_copy(update={"train": study.train.model_copy(update={"learning_rate": 0.1})})
    assert ablation_fields(config, slower, config.ablations["fast"], "student") == fast
    assert ablation_fields(config, slower, config.ablations["mle"], "student") != plain
    assert "validation" not in ablation_fields(config, study, config.ablations["fast"], "evaluation")


def test_seeds_of_a_study_stand_for_those_of_the_ablations(tmp_path):
    config = load(tmp_path, {"mle": {"select": "all", "seed": [0, 4]}}, ablations=["mle", "paper_top25"], seeds=3)
    study = config.studies[STUDY]
    families = settings_of({name: config.ablations[name] for name in study.ablations})
    assert families == {
        "mle": {"mle": ["mle", "mle_s1", "mle_s2"]},
        "paper_top25": {"paper_top25": ["paper_top25", "paper_top25_s1", "paper_top25_s2"]},
    }
    assert [config.ablations[name].seed for name in study.ablations] == [0, 1, 2] * 2
    # The key is no part of any version: one more seed leaves the others as they were.
    mle = config.ablations["mle"]
    more = study.model_copy(update={"seeds": 4})
    assert ablation_fields(config, more, mle, "student") == ablation_fields(config, study, mle, "student")


def test_what_one_study_makes_is_no_part_of_another(tmp_path):
    both = {"seeds": 2, "sweep": {"learning_rate": [0.1, 0.2]}}
    config = load(tmp_path, ablations=["mle"], others={"other": {"ablations": ["mle"]}}, **both)
    assert config.studies[STUDY].ablations == ("mle_lr0p1", "mle_lr0p2", "mle_lr0p1_s1", "mle_lr0p2_s1")
    assert config.studies["other"].ablations == ("mle",)


def test_a_study_cannot_name_what_another_makes(tmp_path):
    with pytest.raises(InputError, match="other.ablations: 'mle_s1' is not in ablations.yaml"):
        load(tmp_path, ablations=["mle"], seeds=2, others={"other": {"ablations": ["mle_s1"]}})


def test_a_name_that_seeds_would_make_is_not_taken_over(tmp_path):
    other = {"paper_top25_s1": {"select": "all", "seed": 0}}
    with pytest.raises(InputError, match="'seeds' makes 'paper_top25_s1', which ablations.yaml has"):
        load(tmp_path, other, ablations=["paper_top25"], seeds=2)


def test_a_studys_sweep_trains_every_ablation_at_each_setting(tmp_path):
    seeds = {"mle": {"select": "all", "seed": [0, 1]}}
    config = load(tmp_path, seeds, ablations=["mle", "paper_top25"], sweep={"learning_rate": ["1e-3", 0.01]})
    study = config.studies[STUDY]
    assert set(study.ablations) == {
        *("mle_lr0p001", "mle_lr0p001_s1", "mle_lr0p01", "mle_lr0p01_s1"),
        *("paper_top25_lr0p001", "paper_top25_lr0p01"),
    }
    one = config.ablations["mle_lr0p01_s1"]
    assert (one.seed, one.family, one.setting, one.train.learning_rate) == (1, "mle", "mle_lr0p01", 0.01)
    assert ablation_fields(config, study, one, "evaluation")["validation"] is True
    assert ablation_fields(config, study, one, "student")["train"]["learning_rate"] == 0.01


def test_candidates_of_the_teacher_have_versions_of_their_own(tmp_path):
    config = load(tmp_path, teacher_sweep={"learning_rate": [0.001, 0.01], "epochs": [1]})
    study = config.studies[STUDY]
    rows = [f"teacher_lr{rate}_epochs1" for rate in ("0p001", "0p01")]
    assert list(study.teacher_candidates) == rows
    first = candidate_fields(config, study, rows[0])
    assert (first["train"]["learning_rate"], first["train"]["epochs"], first["seed"]) == (0.001, 1, 1000)
    assert study_fields(config, study, "baseline_teacher") == {
        "candidates": {
            rows[0]: {"learning_rate": 0.001, "epochs": 1},
            rows[1]: {"learning_rate": 0.01, "epochs": 1},
        }
    }


@pytest.mark.parametrize(
    ("added", "study", "said"),
    [
        ({}, {"sweep": {"learning_rate": [0.1]}}, "at least two settings"),
        ({}, {"sweep": {"learning_rate": [0.1, 0.1]}}, "values that differ"),
        ({}, {"teacher_sweep": {"epochs": []}}, "values that differ"),
        ({}, {"sweep": {"rank": [8, 16]}}, "sweep.rank: unknown key; allowed: learning_rate, epochs, weight_decay"),
        (
            {"mle": {"select": "all", "train": {"learning_rate": 0.1}}},
            {"sweep": {"learning_rate": [0.1, 0.2]}},
            "which the ablation 'mle' sets in its 'train'",
        ),
        (
            {"mle_lr0p1": {"select": "all", "selected": "dft"}},
            {"sweep": {"learning_rate": [0.1, 0.2]}},
            "'sweep' makes 'mle_lr0p1', which ablations.yaml has",
        ),
        (
            {"teacher_lr0p1": {"select": "all"}},
            {"teacher_sweep": {"learning_rate": [0.1, 0.2]}, "ablations": ["mle", "teacher_lr0p1"]},
            "'teacher_sweep' makes 'teacher_lr0p1', which is an ablation too",
        ),
        (
            {"mle_lr0p1": {"select": "all", "selected": "dft", "train": {"learning_rate": 0.1}}},
            {"ablations": ["mle", "mle_lr0p1"]},
            "two settings of the family 'mle', and differ in more than 'train'",
        ),
        (
            {"mle_lr0p01": {"select": "all", "train": {"learning_rate": 0.01}}},
            {"ablations": ["mle", "mle_lr0p01"]},
            "'mle' and 'mle_lr0p01' are trained alike",
        ),
        (
            {"mle_lr0p1": {"select": "all", "train": {"learning_rate": 0.1}, "seed": [0, 1]}},
            {"ablations": ["mle", "mle_lr0p1"]},
            "the same seeds, and 'mle' has 0, 'mle_lr0p1' has 0, 1",
        ),
        ({"a": {"select": "all", "train": {"batch_size": 4}}}, {}, "train.batch_size: unknown key; allowed"),
        ({"a": {"select": "all", "train": {"learning_rate": 0}}}, {}, "a.train.learning_rate"),
        (
            {"a": {"select": "all", "lora": {"rank": 4}, "train": {"lora": {"rank": 8}}}},
            {},
            "'lora' and 'train.lora' both change the adapter",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, added, study, said):
    with pytest.raises(InputError, match=re.escape(said)):
        load(tmp_path, added, **study)


def test_an_error_names_the_file_once(tmp_path):
    with pytest.raises(InputError) as caught:
        load(tmp_path, ablations=["nope"], sweep={"epochs": [1, 2]})
    assert str(caught.value).count("studies.yaml") == 1


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"select": "all"}, "needs a selection that leaves tokens out"),
        ({"select": {"by": "loss", "quantile": 0.5}, "rest": "distill"}, "rest 'none'"),
        ({"select": {"by": "loss", "keep": "above", "threshold": 1.0}}, "not a threshold"),
    ],
)
def test_equal_tokens_needs_a_share_that_is_known_and_a_rest_that_is_not_trained(entry, said):
    with pytest.raises(ValueError, match=said):
        AblationSpec(name="a", budget="equal_tokens", **entry)


def test_equal_tokens_takes_steps_by_the_selected_share():
    top = AblationSpec(name="a", select={"by": "loss", "quantile": 0.25}, budget="equal_tokens")
    falling = {"by": "loss", "quantile": {"start": 0.75, "end": 0.25}}
    assert top.steps(10) == 40 and AblationSpec(name="a", select="all").steps(10) == 10
    assert AblationSpec(name="a", select=falling, budget="equal_tokens").steps(10) == 20


def test_settings_are_every_combination():
    sweep = TrainSweep(learning_rate=[0.1, 0.2], epochs=[1, 3])
    assert [setting.label for setting in sweep.settings] == [
        f"lr0p{rate}_epochs{epochs}" for rate in (1, 2) for epochs in (1, 3)
    ]
