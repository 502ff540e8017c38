"""`tokenuq run --export`: bring what an export reads of its study up to date, then the export."""

import argparse

from tokenuq_pipeline.commands.common import configuration, known_export, project
from tokenuq_pipeline.commands.json_output import print_json
from tokenuq_pipeline.commands.make_assets import Output, make
from tokenuq_pipeline.commands.run_comparison import make_of_study


def run_export(options: argparse.Namespace) -> int:
    """Run what the export needs of its study, then the export, and return the exit code.

    Raises:
        InputError: there is no such export, or `--ablation` was given.
    """
    from tokenuq_ml.errors import InputError
    from tokenuq_pipeline.assets.graph import assets_by_name
    from tokenuq_pipeline.assets.shown_studies import config_of
    from tokenuq_pipeline.automation.exports import export_key
    from tokenuq_pipeline.automation.staleness import ancestors, parents_of
    from tokenuq_pipeline.runtime.bucket_store import open_store
    from tokenuq_pipeline.runtime.store_layout import export_path

    if options.ablation:
        raise InputError("--ablation goes with --study: an export names its ablation itself")
    config, output = configuration(), Output.of(options)
    spec, store = known_export(config, options.export), open_store()
    assets = {asset.key: asset for asset in assets_by_name(config_of(config, [], exports=[spec.name])).values()}
    parents, key = parents_of(assets), export_key(spec.name)
    code = make_of_study(options, config, spec.study, ancestors(parents, parents[key]), output)
    code = code or _make_export(config, spec.name, output)
    folder = str(store.path(export_path(spec.name)))
    if output.as_json:
        print_json({"export": spec.name, "folder": folder, "exit_code": code, "runs": output.results})
    elif code == 0:
        output.say(f"\n{spec.study}/{spec.ablation}: {folder}")
    return code


def _make_export(config, name: str, output: Output) -> int:
    """Make an export whose study is up to date, and return the exit code."""
    from tokenuq_pipeline.assets.shown_studies import config_of
    from tokenuq_pipeline.automation.exports import export_job, export_key
    from tokenuq_pipeline.automation.study_runner import StudyRunner
    from tokenuq_pipeline.runtime.console import CONSOLE

    with project(config=config_of(config, [], exports=[name]), exports=[name]) as here:
        title = f"export {name}"
        runner = StudyRunner(here.defs, here.config, title, here.instance, here.store, CONSOLE, job=export_job(name))
        return make(runner, {export_key(name)}, output=output)
