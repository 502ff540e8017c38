"""`tokenuq run --comparison`: bring the studies of a comparison up to date, then its page, and print what it found."""

import argparse
from collections.abc import Callable
from functools import partial

from tokenuq_ml.control_characters import escaped
from tokenuq_pipeline.commands.common import configuration, known_comparison, project
from tokenuq_pipeline.commands.json_output import print_json
from tokenuq_pipeline.commands.make_assets import Output, make


def run_comparison(options: argparse.Namespace) -> int:
    """Run what the comparison needs of each study, one Dagster run after the other, then the comparison.

    If the comparison then asks for further ablations, they are made, and the comparison again.

    Raises:
        InputError: there is no such comparison, or `--ablation` was given.
    """
    from tokenuq_ml.errors import InputError
    from tokenuq_pipeline.automation.comparison_targets import study_targets
    from tokenuq_pipeline.runtime.bucket_store import open_store

    if options.ablation:
        raise InputError("--ablation goes with --study: a comparison needs what it reads of all its studies")
    config, output = configuration(), Output.of(options)
    comparison, store = known_comparison(config, options.comparison), open_store()
    targets = study_targets(config, comparison, store)

    def end(code: int) -> int:
        if output.as_json:
            page = comparison_as_json(store, comparison.name) if code == 0 else {"comparison": comparison.name}
            print_json({**page, "exit_code": code, "runs": output.results})
        return code

    while True:
        for number, (study, keys) in enumerate(targets.items(), 1):
            output.say(f"{comparison.name}: study {number} of {len(targets)}")
            if code := make_of_study(options, config, study, keys, output):
                return end(code)
        if code := _make_page(config, comparison.name, output):
            return end(code)
        further = _further(store, comparison.name)
        if not further:
            output.say("")
            print_comparison(store, comparison.name, output.say)
            return end(0)
        count, studies = sum(map(len, further.values())), len(further)
        output.say(
            f"{comparison.name}: {count} more training{'s' if count > 1 else ''} in {studies} "
            f"stud{'ies' if studies > 1 else 'y'}, for what is undecided"
        )
        targets = {name: study_targets(config, comparison, store, further)[name] for name in further}


def _further(store, name: str) -> dict[str, list[str]]:
    """Return study -> ablations that a comparison asks for, which the store does not have."""
    from tokenuq_ml.config.comparison import FURTHER
    from tokenuq_ml.json_files import read_json
    from tokenuq_pipeline.runtime.bucket_store import fetch
    from tokenuq_pipeline.runtime.store_layout import COMPARISONS, comparison_path

    fetch(store, f"{COMPARISONS}/{name}", lambda path: path.endswith(FURTHER))
    file = store.path(comparison_path(name)) / FURTHER
    return read_json(file) if file.is_file() else {}


def make_of_study(options: argparse.Namespace, config, study: str, keys: set, output: Output) -> int:
    """Bring some assets of a study up to date, and return the exit code."""
    from tokenuq_pipeline.assets.shown_studies import config_of
    from tokenuq_pipeline.automation.study_runner import StudyRunner
    from tokenuq_pipeline.commands.before_run import check_before_run
    from tokenuq_pipeline.commands.plan_rows import estimates_of
    from tokenuq_pipeline.commands.run_steps import recipe
    from tokenuq_pipeline.runtime.console import CONSOLE
    from tokenuq_pipeline.runtime.trash import Trash

    # Of this study only: what is asked of all studies of a large grid takes seconds each time.
    with project(study, config=config_of(config, [study])) as here:
        Trash(here.store.home).empty_old()
        runner = StudyRunner(here.defs, here.config, study, here.instance, here.store, CONSOLE, preload=True)
        own = {"study": study, "store": here.store, "ignore_disk_space": options.ignore_disk_space}
        runner.before_first_wave = partial(check_before_run, config=here.config, **own)
        estimate = partial(estimates_of, config=here.config, study=study, store=here.store)
        in_steps = recipe(here.config, here.store, study)
        return make(runner, keys, in_steps=in_steps, output=output, estimate=estimate)


def _make_page(config, name: str, output: Output) -> int:
    """Make the page of a comparison whose studies are up to date, and return the exit code."""
    from tokenuq_pipeline.assets.shown_studies import config_of
    from tokenuq_pipeline.automation.comparison_targets import comparison_key
    from tokenuq_pipeline.automation.jobs import comparison_job
    from tokenuq_pipeline.automation.study_runner import StudyRunner
    from tokenuq_pipeline.runtime.console import CONSOLE

    with project(config=config_of(config, [], comparisons=[name]), comparisons=[name]) as here:
        runner = StudyRunner(
            here.defs,
            here.config,
            f"comparison {name}",
            here.instance,
            here.store,
            CONSOLE,
            job=comparison_job(name),
        )
        return make(runner, {comparison_key(name)}, output=output)


def print_comparison(store, name: str, say: Callable[[str], None] = print) -> None:
    """Print the Markdown page of a comparison as it was last built, and the path of its HTML page.

    Args:
        store: the store.
        name: of the comparison.
        say: prints a text.

    Raises:
        InputError: a file is damaged, or the comparison was never made.
    """
    found = comparison_as_json(store, name)
    say(escaped(found["markdown"]))
    say(f"page: {found['page']}")


def comparison_as_json(store, name: str) -> dict[str, str]:
    """Return the Markdown page of a comparison as it was last built, and the path of its HTML page.

    Raises:
        InputError: a file is damaged, or the comparison was never made.
    """
    from tokenuq_ml.errors import InputError
    from tokenuq_pipeline.runtime.bucket_store import fetch
    from tokenuq_pipeline.runtime.repair import require_undamaged
    from tokenuq_pipeline.runtime.store_layout import COMPARISONS, comparison_path

    asset, folder = f"{COMPARISONS}/{name}", store.path(comparison_path(name))
    require_undamaged(store, asset)
    if not store.is_complete(asset):
        raise InputError(f"{asset}: was never made; run `tokenuq run --comparison {name}`")
    fetch(store, asset, lambda path: path.endswith((".md", ".html", ".png")))
    markdown = (folder / "comparison.md").read_text(encoding="utf-8")
    return {"comparison": name, "markdown": markdown, "page": str(folder / "comparison.html")}
