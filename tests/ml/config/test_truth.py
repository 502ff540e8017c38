"""Ablations that select by the truth need data that have one."""

import re

import pytest
import yaml

from tests.support.tiny_study import CONFIG, STUDY
from tokenuq_ml.config.load import load_config
from tokenuq_ml.errors import InputError


def write(folder, select: dict, **study) -> None:
    """Write the configuration of the tiny study, with one more ablation."""
    (folder / "llama").mkdir()
    entries = {
        **CONFIG,
        "ablations": {**CONFIG["ablations"], "oracle": {"select": select}},
        "studies": {STUDY: {**CONFIG["studies"][STUDY], "ablations": ["mle", "oracle"], **study}},
    }
    for kind, of_kind in entries.items():
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(of_kind))


@pytest.mark.parametrize("by", ["oracle_kl", "oracle_kl_student", "oracle_entropy"])
def test_an_oracle_on_data_without_a_truth_is_refused(tmp_path, by):
    write(tmp_path, {"by": by, "quantile": 0.25})
    said = (
        f"studies.yaml: {STUDY}.ablations: 'oracle' reads the true distribution of each token, and the dataset 'sums' "
        "has none; remove the ablation, or train on a dataset of format 'synthetic_language'"
    )
    with pytest.raises(InputError, match=re.escape(said)):
        load_config(tmp_path)


def test_a_study_without_an_oracle_needs_no_truth(tmp_path):
    write(tmp_path, {"by": "entropy", "quantile": 0.25})
    config = load_config(tmp_path)
    assert not config.has_truth(config.studies[STUDY])
