"""Which checks share an op, and that each of them can be evaluated alone."""

import dagster as dg
import pytest

from tests.support.toy_pipeline import toy_config
from tokenuq_pipeline.assets.check_outcome import outcome
from tokenuq_pipeline.assets.checks import TableCheck, _definition, build_checks, table_checks

EVALUATION = ("study", "mle", "evaluation")


def gains(store, ablation):
    """Check that it gains."""
    return outcome(True, f"{ablation} gains", figure=1)


def keeps(store, ablation):
    """Check that it keeps."""
    return outcome(False, f"{ablation} forgets", warn=True)


def crashes(store, ablation):
    """Check nothing."""
    raise ValueError("no such table")


def evaluated(functions, *names):
    """Return the outcomes of the named checks of an op for `functions`, in order."""
    also = ("study", "reference_evaluation")
    op = _definition(*(TableCheck(EVALUATION, function, ("mle",), blocking=False, also=also) for function in functions))
    keys = [dg.AssetCheckKey(dg.AssetKey(EVALUATION), name) for name in names]
    job = dg.define_asset_job("job", selection=dg.AssetSelection.checks(*keys))
    definitions = dg.Definitions(asset_checks=[op], jobs=[job], resources={"store": None})
    result = definitions.resolve_job_def("job").execute_in_process(raise_on_error=False)
    return {one.check_name: one for one in result.get_asset_check_evaluations()}


def test_checks_of_one_op_have_their_own_outcomes():
    found = evaluated([gains, keeps], "gains", "keeps")
    assert list(found) == ["gains", "keeps"]
    assert found["gains"].passed and found["gains"].metadata["figure"].value == 1
    assert not found["keeps"].passed and found["keeps"].severity == dg.AssetCheckSeverity.WARN
    assert found["keeps"].description == "mle forgets"


@pytest.mark.parametrize("name", ["gains", "keeps"])
def test_one_of_them_can_be_evaluated_alone(name):
    assert list(evaluated([gains, keeps], name)) == [name]


def test_what_came_before_a_crash_is_kept():
    assert list(evaluated([gains, crashes, keeps], "gains", "crashes", "keeps")) == ["gains"]


def test_an_evaluation_has_one_step_for_its_checks_and_what_blocks_has_its_own():
    config = toy_config()
    ops = [{(key.asset_key, key.name) for key in op.check_keys} for op in build_checks(config)]
    assert sorted(map(len, ops))[-1] == 2
    for check in table_checks(config):
        op = next(keys for keys in ops if (check.key.asset_key, check.key.name) in keys)
        if check.blocking:
            assert len(op) == 1
        elif check.asset[-1] == "evaluation":
            assert {name for _, name in op} == {"quality_in_distribution", "ood_kept"}
    assert len(set().union(*ops)) == len(list(table_checks(config)))
