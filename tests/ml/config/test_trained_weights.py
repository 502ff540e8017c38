"""What a study trains and on which base: its keys, what goes together, and the versions that depend on it."""

import pytest
import yaml
from pydantic import ValidationError

from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.ablation import AblationSpec
from tokenuq_ml.config.load import load_config
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.versions import ablation_fields, study_fields

LATER = ("quantization", "adapter")


SIZES = {"train": 2, "validation": 1, "test": 1}
VALID = {
    "models": {"m": {"source": "hub", "id": "some/model"}},
    "datasets": {"d": {"format": "messages", "path": "$DATA/d.jsonl", "sizes": SIZES}},
    "studies": {"s": {"model": "m", "dataset": "d", "ablations": ["a"], "train": {"adapter": "none"}}},
}


def loaded(folder, **of_the_ablation):
    for name, entries in (VALID | {"ablations": {"a": {"select": "all", **of_the_ablation}}}).items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(entries))
    return load_config(folder)


def spec(**changes) -> StudySpec:
    return StudySpec(**({"name": "s", "model": "m", "dataset": "d", "ablations": ["a"]} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"quantization": "nf4", "train": {"adapter": "none"}},
            "freezes them as integers; set 'train.ada",
        ),
        ({"quantization": "int8", "sharding": "fsdp", "processes": 2}, "'sharding' fsdp does not share quantised"),
        ({"sharding": "fsdp", "processes": 2, "train": {"adapter": "none"}}, "'sharding' fsdp shares weights that are"),
        ({"train": {"adapter": "none", "lora": {"rank": 4}}}, "'lora' sets an adapter, and 'adapter' is none; remove"),
        (
            {"attention": "flex", "train": {"adapter": "none"}},
            "'attention' flex needs weights in 16 bits, and",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        spec(**changes)


def test_defaults_are_in_no_version_and_every_loader_of_the_base_depends_on_its_quantization(tmp_path):
    plain, quantised = spec(), spec(quantization="nf4")
    assert not any(key in str(plain.fields()) for key in LATER)
    config, ablation = loaded(tmp_path), AblationSpec(name="a", select="all")
    loaders = ("baseline_teacher", "token_losses", "teacher_hidden", "token_uncertainty", "reference_evaluation")
    for stage in (*loaders, "uncertainty_estimates", "true_divergence", "teacher_change"):
        assert "quantization" not in study_fields(config, plain, stage)
        assert study_fields(config, quantised, stage)["quantization"] == "nf4"
    for stage in ("student", "evaluation", "curriculum"):
        assert ablation_fields(config, quantised, ablation, stage)["quantization"] == "nf4"
    full = spec(train={"adapter": "none"})
    assert study_fields(config, full, "baseline_teacher")["train"]["adapter"] == "none"
    assert study_fields(config, full, "baseline_teacher")["drops_attention"] is False
    assert study_fields(config, full, "token_losses") == study_fields(config, plain, "token_losses")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"lora": {"rank": 8}}, "lora"),
        ({"train": {"lora": {"rank": 8}}}, "train.lora"),
        ({"rank_growth": {"start": 2, "fall": 0.5}}, "rank_growth"),
    ],
)
def test_an_ablation_that_changes_an_adapter_is_refused_in_a_study_without_one(changes, key, tmp_path):
    with pytest.raises(InputError, match=f"s.ablations: 'a' has '{key}', which changes an adapter, and the"):
        loaded(tmp_path, **changes)
