"""Build the Dagster asset checks of the configured datasets and studies."""

from collections.abc import Callable, Iterator

import dagster as dg

from tokenuq_ml.config import REFERENCE_ROWS, StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_pipeline.assets.check_outcome import Outcome
from tokenuq_pipeline.assets.data_checks import (
    cached_teacher_matches_online,
    losses_finite,
    no_question_in_two_splits,
    no_tokens_in_two_splits,
    one_row_per_response_token,
)
from tokenuq_pipeline.assets.evaluation_checks import judge_is_consistent, ood_kept, quality_in_distribution
from tokenuq_pipeline.assets.inputs import AssetPath
from tokenuq_pipeline.assets.uncertainty_checks import (
    bald_above_noise,
    bald_above_noise_by_category,
    joins_one_to_one,
    uncertainty_bounds,
)


def build_checks(config: Config) -> list[dg.AssetChecksDefinition]:
    """Return every check that runs in its own op."""
    checks = [_check(("datasets", name), no_question_in_two_splits, name) for name in config.datasets]
    for study in config.studies.values():
        checks += _study_checks(study)
    return checks


def _study_checks(study: StudySpec) -> Iterator[dg.AssetChecksDefinition]:
    name = study.name
    tokens, losses, uncertainty = (name, "tokenized_dataset"), (name, "token_losses"), (name, "token_uncertainty")
    yield _check(tokens, no_tokens_in_two_splits, name)
    yield _check(losses, one_row_per_response_token, name, also=tokens)
    yield _check(losses, losses_finite, name)
    yield _check((name, "teacher_hidden"), cached_teacher_matches_online, name)
    yield _check(uncertainty, uncertainty_bounds, name)
    yield _check(uncertainty, bald_above_noise, name)
    yield _check(uncertainty, bald_above_noise_by_category, name, also=losses, blocking=False)
    yield _check(uncertainty, joins_one_to_one, name, also=losses)
    reference = (name, "reference_evaluation")
    for ablation in study.ablations:
        evaluation = (name, ablation, "evaluation")
        yield _check(evaluation, quality_in_distribution, name, ablation, also=reference, blocking=False)
        yield _check(evaluation, ood_kept, name, ablation, also=reference, blocking=False)
    if study.evaluation.alpaca_eval is not None:
        yield _check(reference, judge_is_consistent, name, *REFERENCE_ROWS, blocking=False)
        for ablation in study.ablations:
            yield _check((name, ablation, "evaluation"), judge_is_consistent, name, ablation, blocking=False)


def _check(
    asset: AssetPath,
    function: Callable[..., Outcome],
    *arguments: str,
    blocking: bool = True,
    also: AssetPath | None = None,
) -> dg.AssetChecksDefinition:
    """Return the check that calls `function(store, *arguments)`.

    Args:
        asset: the asset that is checked.
        function: gives the check its name and description.
        *arguments: names, passed to the function.
        blocking: a failure stops what is downstream.
        also: another asset that the function reads.
    """

    @dg.asset_check(
        asset=dg.AssetKey(asset),
        name=function.__name__,
        blocking=blocking,
        description=" ".join((function.__doc__ or "").split()),
        required_resource_keys={"store"},
        additional_deps=[dg.AssetKey(also)] if also else [],
    )
    def check(context) -> dg.AssetCheckResult:
        return function(context.resources.store, *arguments)

    return check
