"""What is checked before the first asset of a study is made: its trackers, and the disk space."""

import os
from collections.abc import Iterable


def check_before_run(assets: Iterable[str], config, study: str, store, ignore_disk_space: bool = False) -> None:
    """Check that a study can be run; takes some milliseconds.

    Args:
        assets: names of those that are to be made.
        config: the configuration.
        study: name of the study.
        store: where they are made.
        ignore_disk_space: do not compare the disk space with the estimate.

    Raises:
        InputError: a tracker that the study names cannot be used, or a disk has too little space.
    """
    from tokenuq_ml.errors import InputError
    from tokenuq_pipeline.commands.plan_rows import check_disk_space
    from tokenuq_pipeline.runtime.launch_command import TRAINED

    assets = list(assets)
    if any(name.rpartition("/")[2] in TRAINED for name in assets):
        if problems := tracking_findings(config.studies[study], store):
            raise InputError(problems[0])
    if not ignore_disk_space:
        check_disk_space(config, study, assets, store)


def tracking_findings(study, store) -> list[str]:
    """Return why trackers of a study cannot be used, each as a sentence with the remedy.

    On a cluster, packages are installed on other machines: a stage looks for them before it trains.

    Args:
        study: the `StudySpec`.
        store: where trackers write files by default.
    """
    from tokenuq_ml.tracking.availability import tracker_problems
    from tokenuq_pipeline.assets.tracking import has_tracking_folder
    from tokenuq_pipeline.runtime.launchers.choice import uses_ray

    has_folder, is_local = has_tracking_folder(store), not uses_ray()
    problems = tracker_problems(study.report_to, has_folder, os.environ, looks_for_packages=is_local)
    return [f"{study.name}: {problem}" for problem in problems]
