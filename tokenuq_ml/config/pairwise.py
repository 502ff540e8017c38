"""Which model of a study the others are compared with by a judge: `evaluation.pairwise.versus`."""

from collections.abc import Mapping

from tokenuq_ml.config.ablation import AblationSpec
from tokenuq_ml.config.base import REFERENCE_ROWS


def compared_with(versus: str, ablations: Mapping[str, AblationSpec]) -> dict[str, str | None]:
    """Return ablation -> the model that its outputs are compared with; None for those that others are compared with.

    Args:
        versus: `base` or `teacher`; an ablation; or a name without seed, whose seeds are compared with equal seeds.
        ablations: of the study.

    Raises:
        ValueError: there is no such model, or a seed has no counterpart.
    """
    if versus in REFERENCE_ROWS:
        return dict.fromkeys(ablations, versus)
    by_seed = _members(versus, ablations)
    if len(by_seed) == 1:
        (only,) = by_seed.values()
        return {name: None if name == only else only for name in ablations}
    others = {name: one.seed for name, one in ablations.items() if name not in by_seed.values()}
    if missing := next((name for name, seed in others.items() if seed not in by_seed), None):
        raise ValueError(
            f"{versus!r} has the seeds {', '.join(map(str, sorted(by_seed)))}, and {missing!r} has seed "
            f"{others[missing]}; give both the same seeds, or name one ablation such as {by_seed[min(by_seed)]!r}"
        )
    return {name: by_seed[others[name]] if name in others else None for name in ablations}


def _members(versus: str, ablations: Mapping[str, AblationSpec]) -> dict[int, str]:
    """Return seed -> ablation, of those that a name stands for; of a single ablation, its own seed.

    Raises:
        ValueError: it stands for none, or for several settings.
    """
    of_setting = {one.seed: name for name, one in ablations.items() if one.setting == versus}
    if of_setting:
        return of_setting
    first_seed = versus.removesuffix("_s0")
    for name in (versus, first_seed):
        if name in ablations and (name == versus or ablations[name].seed == 0):
            return {ablations[name].seed: name}
    settings = sorted({one.setting for one in ablations.values() if one.family == versus})
    if settings:
        raise ValueError(f"{versus!r} has several settings; name one: {', '.join(settings)}")
    raise ValueError(f"{versus!r} is no model of the study; allowed: {', '.join((*REFERENCE_ROWS, *ablations))}")
