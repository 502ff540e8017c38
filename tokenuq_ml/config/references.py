"""Checks of what entries of the configuration name: other entries, splits and files."""

from collections.abc import Mapping
from pathlib import Path

from tokenuq_ml.config.configuration import Config
from tokenuq_ml.config.curated import CuratedDatasetSpec
from tokenuq_ml.config.estimated import unmeasured_estimator
from tokenuq_ml.config.pairwise import compared_with
from tokenuq_ml.config.study import StudySpec
from tokenuq_ml.config.train import LoraChange
from tokenuq_ml.config.truth import LANGUAGE, first_oracle, without_truth
from tokenuq_ml.errors import InputError

Origins = Mapping[tuple[str, str], Path]
"""(kind, name of an entry) -> the file that it is in."""


def check_references(config: Config, origins: Origins) -> None:
    """Check that what entries name exists: datasets of mixes, models and datasets of studies, files of models.

    Raises:
        InputError: something does not; the message names the file and the key, and says what is allowed.
    """
    _check_mixes(config, origins)
    _check_studies(config, origins)
    _check_model_files(config, origins)


def _check_mixes(config: Config, origins: Origins) -> None:
    """Check that the datasets that mixes name exist, and that no mix is made of itself, also by way of others.

    Raises:
        InputError: one does not, or is.
    """
    for name, spec in config.datasets.items():
        where = f"{origins['datasets', name]}: {name}.mix"
        if isinstance(spec, CuratedDatasetSpec):
            continue
        for part in spec.made_of:
            if part not in config.datasets:
                raise InputError(
                    f"{where}: {part!r} is not in datasets.yaml; allowed: "
                    f"{', '.join(other for other in config.datasets if other != name) or 'none'}"
                )
        seen, following = set[str](), list(spec.made_of)
        while following:
            part = following.pop()
            if part == name:
                raise InputError(f"{where}: {name} is made of itself; remove it from the mixes that it names")
            if part not in seen and part in config.datasets:
                seen.add(part)
                following += config.datasets[part].made_of


def _check_studies(config: Config, origins: Origins) -> None:
    """Check that the models, datasets and splits that studies name exist.

    Raises:
        InputError: one does not.
    """
    for study in config.studies.values():
        named = [("model", study.model, "models"), ("dataset", study.dataset, "datasets")]
        named += [("ood", name, "datasets") for name in study.ood]
        named += [(f"evaluation.{key}", name, "datasets") for key, name in study.evaluation.datasets.items()]
        judges = study.evaluation.judge_models.items()
        named += [(f"evaluation.{key}.judge.local_model", name, "models") for key, name in judges]
        for key, name, kind in named:
            if name not in getattr(config, kind):
                raise InputError(
                    f"{origins['studies', study.name]}: {study.name}.{key}: {name!r} is not in {kind}.yaml; "
                    f"allowed: {', '.join(getattr(config, kind)) or 'none'}"
                )
        _check_asked(config, study, origins)
        _check_versus(config, study, origins)
        splits = config.datasets[study.dataset].splits
        missing = [split for split in ("train", "validation", "test") if splits is not None and split not in splits]
        if missing:
            raise InputError(
                f"{origins['datasets', study.dataset]}: {study.dataset}.sizes: has no {missing[0]!r} split, "
                f"which study {study.name} needs"
            )
        _check_adapter_changes(config, study, origins)
        problem, oracle = unmeasured_estimator(study, config.ablations), first_oracle(study, config.ablations)
        if oracle is not None and config.datasets[study.dataset].format != LANGUAGE:
            problem = without_truth(oracle, study.dataset)
        if problem:
            raise InputError(f"{origins['studies', study.name]}: {study.name}.ablations: {problem}")


def _check_adapter_changes(config: Config, study: StudySpec, origins: Origins) -> None:
    """Check that no ablation of a study without an adapter changes the adapter.

    Raises:
        InputError: one does.
    """
    if study.train.adapter != "none":
        return
    for name in study.ablations:
        ablation = config.ablations[name]
        changes = {
            "lora": ablation.lora != LoraChange(),
            "train.lora": ablation.train.lora is not None,
            "rank_growth": ablation.rank_growth is not None,
        }
        for key in (key for key, is_set in changes.items() if is_set):
            raise InputError(
                f"{origins['studies', study.name]}: {study.name}.ablations: {name!r} has {key!r}, which changes an "
                "adapter, and the study's 'train.adapter' is none; leave the ablation out, or set 'adapter' to lora"
            )


def _check_asked(config: Config, study: StudySpec, origins: Origins) -> None:
    """Check that evaluations that ask questions name datasets of single questions."""
    for key, name in study.evaluation.datasets.items():
        dataset = config.datasets[name]
        rows = dataset.original if isinstance(dataset, CuratedDatasetSpec) else dataset
        if rows.turns_joined > 1:
            raise InputError(
                f"{origins['studies', study.name]}: {study.name}.evaluation.{key}: {name!r} joins rows into "
                "conversations (`turns_joined`), and evaluations ask single questions; name a dataset without it"
            )


def _check_versus(config: Config, study: StudySpec, origins: Origins) -> None:
    """Check that every ablation has a model that its outputs are compared with.

    Raises:
        InputError: one has none.
    """
    if study.evaluation.pairwise is None:
        return
    try:
        compared_with(study.evaluation.pairwise.versus, {name: config.ablations[name] for name in study.ablations})
    except ValueError as error:
        where = f"{origins['studies', study.name]}: {study.name}.evaluation.pairwise.versus"
        raise InputError(f"{where}: {error}") from None


def _check_model_files(config: Config, origins: Origins) -> None:
    """Check that the files and folders of models exist.

    Files of datasets may arrive later: they are checked when the dataset is materialised.

    Raises:
        InputError: one is missing.
    """
    for name, spec in config.models.items():
        for key in ("path", "chat_template"):
            value = getattr(spec, key)
            if value is not None and "$" not in value and not Path(value).exists():
                raise InputError(
                    f"{origins['models', name]}: {name}.{key}: {value}: no such file or folder; correct {key}"
                )
