"""Selection by the student's own distributions: at each step by its divergence from the truth."""

import polars as pl
import pytest
import torch

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import examples, tiny_peft
from tests.support.tiny_truth import plain_kl, truth_of
from tests.support.training import training_setup
from tokenuq_ml.config import AblationSpec, registry
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.data.batching import collate
from tokenuq_ml.errors import InputError
from tokenuq_ml.scoring.token_truth import TokenTruth
from tokenuq_ml.training.student_columns import STUDENT_COLUMNS
from tokenuq_ml.training.trainer import train

ORACLE = AblationSpec(name="o", select={"by": "oracle_kl_student", "quantile": 0.25}, rest={"distill": {}})
TRUTH = truth_of(examples(11))


def trained(folder, micro=4, ablation=ORACLE, truth=TRUTH) -> pl.DataFrame:
    """Return the selections of a training that starts from a trained adapter."""
    setup = training_setup(ablation, micro, truth=None if truth is None else TokenTruth(truth))
    return train(tiny_peft(), setup, folder, RecordingReporter(), "x").selections()


def test_the_registry_has_the_columns_that_are_implemented():
    assert set(STUDENT_COLUMNS) == set(registry.STUDENT_COLUMNS)
    read = {name for score in registry.SELECTORS.values() for name in score.student_columns}
    assert read == set(STUDENT_COLUMNS)


def test_the_tokens_furthest_from_the_truth_at_the_first_step_are_selected(tmp_path):
    first = trained(tmp_path).filter(step=1)
    rows = {row.example_id: row for row in examples(11)}
    model, scores = tiny_peft(), []
    for name in first["example_id"].unique():
        positions = rows[name].positions
        with torch.no_grad():
            logits = model(input_ids=collate([rows[name]]).input_ids_BT).logits[0, [at - 1 for at in positions]]
        scores += [(kl, name, at) for kl, at in zip(plain_kl(logits, TRUTH, rows[name]), positions, strict=True)]
    expected = sorted(scores, reverse=True)[: count_selected(0.25, len(first))]
    found = first.filter("selected").select("example_id", "position").rows()
    assert sorted(found) == sorted((name, at) for _, name, at in expected)
    by_loss = first.sort("loss", descending=True).head(len(expected)).select("example_id", "position").rows()
    assert sorted(by_loss) != sorted(found)


def test_micro_batches_select_as_the_complete_batch_does(tmp_path):
    whole, parts = trained(tmp_path / "a"), trained(tmp_path / "b", micro=1)
    keys = ["step", "example_id", "position", "selected"]
    assert whole.select(keys).equals(parts.select(keys))
    # At later steps another student selects.
    steps = [set(whole.filter("selected", step=step).select(keys[1:3]).rows()) for step in (1, 4)]
    assert all(steps)


@pytest.mark.parametrize("truth", [None, truth_of(examples(10))])
def test_a_token_without_a_truth_is_refused(tmp_path, truth):
    with pytest.raises(InputError, match="true distribution of each trained token, which the data do not have"):
        trained(tmp_path, truth=truth)


def test_it_is_dynamic_and_reads_the_truth():
    assert ORACLE.selection_kind == "dynamic" and ORACLE.needs_student_losses and ORACLE.needs_truth
    assert ORACLE.tables_read == ("token_truth",) and ORACLE.columns_read == ()
    static = AblationSpec(name="s", select={"by": "oracle_kl", "quantile": 0.25})
    assert static.selection_kind == "static" and static.tables_read == ("true_divergence",) and static.needs_truth
    entropy = AblationSpec(name="s", select={"by": "oracle_entropy", "quantile": 0.25})
    assert entropy.tables_read == ("token_truth",) and not entropy.needs_student_losses
    assert not AblationSpec(name="s", select={"by": "entropy"}).needs_truth
    with pytest.raises(ValueError, match="'oracle_kl_student' changes at each step"):
        AblationSpec(name="s", select={"by": "oracle_kl_student", "quantile": 0.25, "scope": "dataset"})
