"""Build the Dagster asset checks of the configured datasets and studies."""

from collections.abc import Callable

import dagster as dg

from tokenuq_ml.config import REFERENCE_ROWS, StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_pipeline.assets.check_outcome import Outcome
from tokenuq_pipeline.assets.check_rules import (
    cached_teacher_matches_online,
    judge_is_consistent,
    losses_finite,
    no_question_in_two_splits,
    no_tokens_in_two_splits,
    one_row_per_response_token,
    ood_kept,
    quality_in_distribution,
)
from tokenuq_pipeline.assets.uncertainty_checks import (
    bald_above_noise,
    bald_above_noise_by_category,
    joins_one_to_one,
    uncertainty_bounds,
)


def build_checks(config: Config) -> list[dg.AssetChecksDefinition]:
    """Every check that has an op of its own."""
    checks = [_check(("datasets", name), no_question_in_two_splits, name) for name in config.datasets]
    for study in config.studies.values():
        checks += _study_checks(config, study)
    return checks


def _study_checks(config: Config, study: StudySpec) -> list[dg.AssetChecksDefinition]:
    name = study.name
    losses, uncertainty = (name, "token_losses"), (name, "token_uncertainty")
    checks = [
        _check((name, "tokenized_dataset"), no_tokens_in_two_splits, name),
        _check(losses, one_row_per_response_token, name, also=[(name, "tokenized_dataset")]),
        _check(losses, losses_finite, name),
        _check((name, "teacher_hidden"), cached_teacher_matches_online, name),
        _check(uncertainty, uncertainty_bounds, name),
        _check(uncertainty, bald_above_noise, name),
        _check(uncertainty, bald_above_noise_by_category, name, blocking=False, also=[losses]),
        _check(uncertainty, joins_one_to_one, name, also=[losses]),
    ]
    for arm in study.ablations:
        for function in (quality_in_distribution, ood_kept):
            checks.append(
                _check(
                    (name, arm, "evaluation"),
                    function,
                    name,
                    arm,
                    blocking=False,
                    also=[(name, "reference_evaluation")],
                )
            )
    if study.evaluation.alpaca_eval is not None:
        checks.append(
            _check((name, "reference_evaluation"), judge_is_consistent, name, *REFERENCE_ROWS, blocking=False)
        )
        for arm in study.ablations:
            checks.append(_check((name, arm, "evaluation"), judge_is_consistent, name, arm, blocking=False))
    return checks


def _check(
    asset: tuple[str, ...],
    function: Callable[..., Outcome],
    *arguments: str,
    blocking: bool = True,
    also: list[tuple[str, ...]] | None = None,
) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=dg.AssetKey(asset),
        name=function.__name__,
        blocking=blocking,
        description=" ".join((function.__doc__ or "").split()),
        required_resource_keys={"store"},
        additional_deps=[dg.AssetKey(key) for key in also or []],
    )
    def check(context) -> dg.AssetCheckResult:
        return function(context.resources.store, *arguments)

    return check
