"""Families of ablations: the settings of one objective, and the seeds of each setting.

Settings of a family differ only in `train`: the learning rate, for example. A report compares families at the setting
that each of them does best with on the validation split.
"""

from collections.abc import Mapping, Sequence

from tokenuq_ml.config.ablation import AblationSpec
from tokenuq_ml.config.base import check_name
from tokenuq_ml.config.study import StudySpec
from tokenuq_ml.config.train import TrainSpec, TrainSweep


def settings_of(ablations: Mapping[str, AblationSpec]) -> dict[str, dict[str, list[str]]]:
    """Return family -> setting (a name without its seed) -> its ablations, in their order."""
    families: dict[str, dict[str, list[str]]] = {}
    for name, ablation in ablations.items():
        families.setdefault(ablation.family, {}).setdefault(ablation.setting, []).append(name)
    return families


def is_measured_on_validation(ablation: AblationSpec, ablations: Mapping[str, AblationSpec]) -> bool:
    """Return whether the ablation is one of several settings of its family, between which validation losses decide."""
    family, setting = ablation.family, ablation.setting
    # Names begin with their family. Compared first: a grid asks for thousands of ablations.
    return any(
        one.name.startswith(family) and one.setting != setting and one.family == family for one in ablations.values()
    )


def _at_settings(ablation: AblationSpec, sweep: TrainSweep) -> list[AblationSpec]:
    """Return the ablation at each setting of a sweep; names get the setting before the seed.

    Raises:
        ValueError: the ablation sets a key that is swept.
    """
    if own := [key for key in sweep.lists if getattr(ablation.train, key) is not None]:
        raise ValueError(
            f"'sweep' lists {own[0]}, which the ablation {ablation.name!r} sets in its 'train'; remove one of the two"
        )
    made = []
    for setting in sweep.settings:
        train = ablation.train.model_copy(update=setting.values)
        name = f"{ablation.setting}_{setting.label}" + (f"_s{ablation.seed}" if ablation.seed else "")
        made.append(ablation.model_copy(update={"name": check_name(name), "train": train}))
    return made


def _with_seeds(ablation: AblationSpec, seeds: int) -> list[AblationSpec]:
    """Return the ablation with the seeds 0 to `seeds - 1`."""
    setting = ablation.setting
    names = [setting] + [f"{setting}_s{seed}" for seed in range(1, seeds)]
    return [ablation.model_copy(update={"name": check_name(name), "seed": seed}) for seed, name in enumerate(names)]


def _added(made: Sequence[AblationSpec], key: str, ablations: dict[str, AblationSpec]) -> tuple[str, ...]:
    """Add what a key of a study makes to `ablations`, and return its names, each once.

    Raises:
        ValueError: a name is that of another ablation.
    """
    for one in made:
        if ablations.setdefault(one.name, one) != one:
            raise ValueError(f"{key!r} makes {one.name!r}, which ablations.yaml has; rename that one")
    return tuple(dict.fromkeys(one.name for one in made))


def with_settings(study: StudySpec, ablations: dict[str, AblationSpec]) -> StudySpec:
    """Return the study with one ablation per seed of `seeds` and setting of `sweep`, which are added to `ablations`.

    Raises:
        ValueError: an ablation sets a key that is swept, a name is taken, or settings of a family cannot be compared.
    """
    names = study.ablations
    if study.seeds is not None:
        seeded = [one for name in names for one in _with_seeds(ablations[name], study.seeds)]
        names = _added(seeded, "seeds", ablations)
    if study.sweep is not None:
        swept = [one for name in names for one in _at_settings(ablations[name], study.sweep)]
        names = _added(swept, "sweep", ablations)
    if taken := sorted(study.teacher_candidates.keys() & set(names)):
        raise ValueError(f"'teacher_sweep' makes {taken[0]!r}, which is an ablation too; rename the ablation")
    if taken := sorted(study.ensemble_teachers.keys() & {*names, *study.teacher_candidates}):
        raise ValueError(
            f"'uncertainty.estimators' makes the teacher {taken[0]!r}, which is another row too; rename the ablation, "
            "or set another 'teacher_seed'"
        )
    _check_families({name: ablations[name] for name in names}, study.train)
    return study.model_copy(update={"ablations": names})


def _check_families(ablations: Mapping[str, AblationSpec], train: TrainSpec) -> None:
    """Check that the settings of each family can be compared.

    Args:
        ablations: of a study.
        train: its training budget.

    Raises:
        ValueError: settings of a family differ in more than `train`, do not differ in it, or have different seeds.
    """
    for family, settings in settings_of(ablations).items():
        if len(settings) == 1:
            continue
        first, *others = settings
        one = ablations[settings[first][0]]
        for setting in others:
            other = ablations[settings[setting][0]]
            if _objective(one) != _objective(other):
                raise ValueError(
                    f"{first!r} and {setting!r} are named as two settings of the family {family!r}, and differ in more "
                    "than 'train'; rename one of them"
                )
        trained: dict[TrainSpec, str] = {}
        for setting, names in settings.items():
            budget = ablations[names[0]].train.of(train)
            if budget in trained:
                raise ValueError(f"{trained[budget]!r} and {setting!r} are trained alike; remove one of them")
            trained[budget] = setting
        seeds = {setting: sorted(ablations[name].seed for name in names) for setting, names in settings.items()}
        for setting in others:
            if seeds[setting] != seeds[first]:
                raise ValueError(
                    f"settings of a family need the same seeds, and {first!r} has {_listed(seeds[first])}, {setting!r} "
                    f"has {_listed(seeds[setting])}"
                )


def _objective(ablation: AblationSpec) -> dict:
    fields = ablation.fields()
    return {key: value for key, value in fields.items() if key not in ("name", "seed", "train")}


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))
