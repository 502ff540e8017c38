"""`tokenuq plan --cluster`: estimate a study on a cluster that need not exist.

tokenuq plan --cluster nodes=64,gpus=8,card=h100                     # 10 B response tokens, Llama-3.1-70B
tokenuq plan --cluster nodes=2,gpus=8,card=a100,price=2 --study my_study
"""

import argparse

from tokenuq_ml.control_characters import escaped
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.commands.common import configuration, known_study
from tokenuq_pipeline.commands.json_output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of clusters to `tokenuq plan`."""
    parser.add_argument(
        "--cluster",
        metavar="KEY=VALUE,...",
        help="nodes=64,gpus=8,card=h100; optional: price= of a GPU-hour, network= GB/s per GPU, storage= GB/s, mtbf= "
        "hours between failures of a node, restart= seconds after a failure",
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="with --cluster: Llama-3.2-1B, Llama-3.1-8B, Llama-3.1-70B, or a config.json"
    )
    parser.add_argument(
        "--response-tokens", metavar="N", help="with --cluster: response tokens of the train split, for example 10e9"
    )


def require_no_cluster_options(options: argparse.Namespace) -> None:
    """Raise an InputError if options are given that only --cluster has, or neither a study nor a cluster."""
    for name in ("model", "response_tokens"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')}: only with --cluster, for example nodes=64,gpus=8,card=h100")
    if options.study is None and options.comparison is None:
        raise InputError("name a study with --study, or a cluster with --cluster nodes=64,gpus=8,card=h100")


def cluster_command(options: argparse.Namespace) -> int:
    """Run `tokenuq plan --cluster`."""
    from tokenuq_ml.costs.cluster import Cluster
    from tokenuq_ml.costs.cluster_plan import ClusterPlan
    from tokenuq_pipeline.commands.plan_cluster_text import as_json, as_text
    from tokenuq_pipeline.commands.plan_rows import study_groups

    if options.device is not None:
        raise InputError("--device: not with --cluster, which names its own card")
    if options.comparison is not None:
        raise InputError("--comparison: not with --cluster; plan its studies with --study, one by one")
    cluster = Cluster.parse(options.cluster)
    planner = _planner(options, cluster)
    groups = study_groups(planner.config, planner.study.name)
    assets = [
        (asset.name, asset.stage, asset.ablation or ("" if asset.study else asset.path[-1]))
        for group in groups
        for asset in group
    ]
    plan = ClusterPlan(planner, cluster, assets)
    if options.format == "json":
        print_json(as_json(plan))
    else:
        print(escaped(as_text(plan)))
    return 0


def _planner(options: argparse.Namespace, cluster):
    """Return the planner of the study that is named, or of the one that stands for internet scale."""
    from tokenuq_ml.costs import scale_study
    from tokenuq_ml.costs.planner import Planner

    config, tokens = configuration(), _tokens(options.response_tokens)
    if options.study is None:
        config, lengths = scale_study.scale_study(config, tokens or scale_study.RESPONSE_TOKENS)
        study = config.studies[scale_study.STUDY]
        sizes = {study.model: scale_study.published_sizes(options.model or scale_study.MODEL)}
        return Planner(config, study, sizes, lengths, cluster.machine(study.precision.training))
    study = config.studies[known_study(config, options.study)]
    sizes = _sizes(config, study)
    if options.model is not None:
        sizes[study.model] = scale_study.published_sizes(options.model)
    rows = scale_study.rows_of_tokens(tokens) if tokens else None
    machine = cluster.machine(study.precision.training)
    return Planner(config, study, sizes, _lengths(config, study.name), machine, train_rows=rows)


def _tokens(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        tokens = float(text)
    except ValueError:
        tokens = 0.0
    if not 1 <= tokens < 1e18:
        raise InputError(f"--response-tokens: {text!r} is not a number from 1 to 1e18, such as 10e9")
    return tokens


def _sizes(config, study) -> dict:
    """Return model -> its sizes, as far as they are known without a request."""
    from tokenuq_ml.costs.sources import model_source
    from tokenuq_pipeline.runtime.bucket_store import model_folder, open_store

    store = open_store()
    return {
        name: model_source(config.models[name], model_folder(store, name), True, config.datasets)[1]
        for name in config.models_of(study)
    }


def _lengths(config, study: str) -> dict:
    """Return the lengths of what is tokenised in the store."""
    from tokenuq_ml.costs.lengths import measured_lengths
    from tokenuq_pipeline.commands.plan_rows import tokenised_tables
    from tokenuq_pipeline.runtime.bucket_store import open_store

    return measured_lengths(tokenised_tables(config, study, open_store()))
