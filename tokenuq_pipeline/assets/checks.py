"""The asset checks of the configured datasets and studies that have ops of their own, as plain data and for Dagster."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import dagster as dg

from tokenuq_ml.config import REFERENCE_ROWS, StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.config.token_tables import reads_change
from tokenuq_pipeline.assets.check_outcome import Outcome
from tokenuq_pipeline.assets.data_checks import (
    cached_teacher_matches_online,
    losses_finite,
    no_question_in_two_splits,
    no_tokens_in_two_splits,
    one_row_per_response_token,
)
from tokenuq_pipeline.assets.evaluation_checks import judge_is_consistent, ood_kept, quality_in_distribution
from tokenuq_pipeline.assets.evaluation_inputs import is_judged
from tokenuq_pipeline.assets.inputs import AssetPath
from tokenuq_pipeline.assets.uncertainty_checks import (
    bald_above_noise,
    bald_above_noise_by_category,
    changes_join_one_to_one,
    estimates_join_one_to_one,
    joins_one_to_one,
    uncertainty_bounds,
)
from tokenuq_pipeline.runtime.store import Store


@dataclass(frozen=True)
class TableCheck:
    """A check that reads tables of the store."""

    asset: AssetPath
    """The asset that is checked."""
    function: Callable[..., Outcome]
    """Gives the check its name and description. Called with the store and `arguments`."""
    arguments: tuple[str, ...]
    blocking: bool = True
    """A failure stops what is downstream."""
    also: AssetPath | None = None
    """Another asset that the function reads."""

    @property
    def key(self) -> dg.AssetCheckKey:
        """Return Dagster's key."""
        return dg.AssetCheckKey(dg.AssetKey(self.asset), self.function.__name__)

    def evaluate(self, store: Store) -> Outcome:
        """Read the tables and return the outcome."""
        return self.function(store, *self.arguments)


def build_checks(config: Config) -> list[dg.AssetChecksDefinition]:
    """Return the ops of all checks.

    One that blocks has an op of its own: what is downstream waits for it alone. The others of an asset share one, since
    a step takes a second, and a study may have hundreds of ablations.
    """
    ops: list[dg.AssetChecksDefinition] = []
    sharing: dict[tuple[AssetPath, AssetPath | None], list[TableCheck]] = {}
    for check in table_checks(config):
        if check.blocking:
            ops.append(_definition(check))
        else:
            sharing.setdefault((check.asset, check.also), []).append(check)
    return ops + [_definition(*checks) for checks in sharing.values()]


def table_checks(config: Config) -> Iterator[TableCheck]:
    """Yield the checks of all datasets, then of all studies."""
    for name in config.datasets:
        yield TableCheck(("datasets", name), no_question_in_two_splits, (name,))
    for study in config.studies.values():
        yield from _study_checks(config, study)
        if reads_change(config, study):
            changes, losses = (study.name, "teacher_change"), (study.name, "token_losses")
            yield TableCheck(changes, changes_join_one_to_one, (study.name,), also=losses)
        if study.uncertainty.measured:
            estimates, losses = (study.name, "uncertainty_estimates"), (study.name, "token_losses")
            yield TableCheck(estimates, estimates_join_one_to_one, (study.name,), also=losses)


def _study_checks(config: Config, study: StudySpec) -> Iterator[TableCheck]:
    name = study.name
    tokens, losses, uncertainty = (name, "tokenized_dataset"), (name, "token_losses"), (name, "token_uncertainty")
    yield TableCheck(tokens, no_tokens_in_two_splits, (name,))
    yield TableCheck(losses, one_row_per_response_token, (name,), also=tokens)
    yield TableCheck(losses, losses_finite, (name,))
    yield TableCheck((name, "teacher_hidden"), cached_teacher_matches_online, (name,))
    yield TableCheck(uncertainty, uncertainty_bounds, (name,))
    yield TableCheck(uncertainty, bald_above_noise, (name,))
    yield TableCheck(uncertainty, bald_above_noise_by_category, (name,), blocking=False, also=losses)
    yield TableCheck(uncertainty, joins_one_to_one, (name,), also=losses)
    reference = (name, "reference_evaluation")
    for ablation in study.ablations:
        evaluation = (name, ablation, "evaluation")
        yield TableCheck(evaluation, quality_in_distribution, (name, ablation), blocking=False, also=reference)
        yield TableCheck(evaluation, ood_kept, (name, ablation), blocking=False, also=reference)
    if study.evaluation.alpaca_eval is not None:
        yield TableCheck(reference, judge_is_consistent, (name, *REFERENCE_ROWS), blocking=False)
    for ablation in study.ablations:
        if study.evaluation.alpaca_eval is not None or is_judged(config, study, ablation):
            yield TableCheck((name, ablation, "evaluation"), judge_is_consistent, (name, ablation), blocking=False)


def _definition(*checks: TableCheck) -> dg.AssetChecksDefinition:
    """Return one op for checks of one asset that read the same other asset."""
    by_key = {check.key: check for check in checks}
    first = checks[0]
    also = [dg.AssetKey(first.also)] if first.also else []

    @dg.multi_asset_check(
        name=f"{'__'.join(first.asset)}_{first.key.name if len(checks) == 1 else 'checks'}",
        specs=[
            dg.AssetCheckSpec(
                key.name,
                asset=key.asset_key,
                additional_deps=also,
                blocking=check.blocking,
                description=" ".join((check.function.__doc__ or "").split()),
            )
            for key, check in by_key.items()
        ],
        can_subset=len(checks) > 1,
        required_resource_keys={"store"},
    )
    def evaluate(context) -> Iterator[dg.AssetCheckResult]:
        for key, check in by_key.items():
            if key in context.selected_asset_check_keys:
                found = check.evaluate(context.resources.store)
                yield found._replace(asset_key=key.asset_key, check_name=key.name)

    return evaluate
