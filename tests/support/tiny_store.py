"""A small store with two studies, published as the pipeline does it: what queries read."""

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import polars as pl

from tests.support import tiny_tables
from tokenuq_ml.tables.parquet import TableWriter, write_table
from tokenuq_pipeline.runtime.manifest import Manifest
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import table_path

STUDIES = ("quickstart", "other")
ABLATIONS = ("mle", "masked_mle_top25", "paper_top25")
EXAMPLES, EPOCHS = 16, 3


def publish(store: Store, asset: str, frames: dict[str, pl.DataFrame], **partitions: str) -> None:
    """The asset's tables and its manifest."""
    with store.staging() as staging:
        for table, frame in frames.items():
            write_table(frame, table, staging / table, spec_hash="s", code_version="1-s")
        outputs = {table: table_path(table, **partitions) for table in frames}
        staged = {table: staging / table for table in frames}
        files = store.settle(staged, outputs)
        store.publish(manifest(asset, outputs=outputs, files=files), staged)


def manifest(asset: str, **parts) -> Manifest:
    """A manifest whose versions say nothing."""
    known = {"data_version": "d", "code_version": "1-s", "spec_hash": "s", "fields": {}, "input_data_versions": {}}
    return Manifest(**{"asset": asset, **known, "metrics": {}, "outputs": {}, "files": [], **parts})


def put(store: Store, table: str, rows, **partitions: str) -> None:
    """Write one table from rows, without a manifest; by default that of the study `s`.

    Numbers that are not finite are written too, as stores may hold them that earlier versions have written.
    """
    path = table_path(table, **(partitions or {"study": "s"}))
    with patch.object(TableWriter, "_require_finite"):
        write_table(pl.DataFrame(rows), table, store.path(path), spec_hash="h", code_version="1-h")


def make_store(home: Path) -> Store:
    """Examples, token tables, selections and evaluations; other tables have not been made."""
    store = Store(home)
    publish(store, "datasets/toy", {"examples": examples()}, dataset="toy")
    for seed, study in enumerate(STUDIES):
        losses, uncertainty = tiny_tables.losses_and_uncertainty(EXAMPLES, seed)
        publish(store, f"{study}/token_losses", {"token_losses": losses}, study=study)
        made = {"token_uncertainty": uncertainty, "bald_reference": tiny_tables.bald_reference(uncertainty)}
        publish(store, f"{study}/token_uncertainty", made, study=study)
        for number, ablation in enumerate(ABLATIONS):
            made = {"selections": selections(losses, 10 * seed + number)}
            publish(store, f"{study}/{ablation}/student", made, study=study, ablation=ablation)
        for number, model in enumerate(("base", "teacher", *ABLATIONS)):
            made = {"evaluations": tiny_tables.evaluations(2.0 - 0.1 * number, 0.05)}
            publish(store, f"{study}/{model}/evaluation", made, study=study, ablation=model)
    return store


def examples() -> pl.DataFrame:
    """The conversations that the token tables are of."""
    return pl.DataFrame(
        [
            {
                "example_id": f"toy/{number:03d}",
                "split": tiny_tables.SPLITS[number % 4],
                "messages": [
                    {"role": "user", "content": f"question {number}?"},
                    {"role": "assistant", "content": f"answer\n{number}"},
                ],
                "source": json.dumps({"row": number}),
            }
            for number in range(EXAMPLES)
        ]
    )


def selections(losses: pl.DataFrame, seed: int) -> pl.DataFrame:
    """A step an example and epoch: losses that fall, the top quarter selected; of the first example never any."""
    draw = np.random.default_rng(seed)
    train = losses.filter(pl.col("split") == "train").select("example_id", "position", "loss")
    names = train["example_id"].unique().sort().to_list()
    steps = []
    for epoch in range(EPOCHS):
        for number, name in enumerate(names):
            rows = train.filter(pl.col("example_id") == name).with_columns(
                step=pl.lit(epoch * len(names) + number + 1),
                epoch=pl.lit(epoch + (number + 1) / len(names)),
                loss=pl.col("loss") / (epoch + 1) * pl.Series(draw.uniform(0.5, 1.0, tiny_tables.LENGTH)),
            )
            selected = (pl.col("loss").rank("ordinal", descending=True) <= pl.len() / 4) & pl.lit(number > 0)
            steps.append(rows.with_columns(selected=selected))
    objective = pl.when("selected").then(pl.lit("mle")).otherwise(pl.lit("distill"))
    return pl.concat(steps).with_columns(objective=objective)
