"""`tokenuq curate`: rank suspect training examples of a study, and write a file to review.

What is suspect is decided in `tokenuq_ml/scoring/suspects.py`, the file's columns in `tokenuq_ml/scoring/review.py`.
"""

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.data.token_categories import CATEGORIES
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.commands.common import configuration, known_study
from tokenuq_pipeline.commands.json_output import add_json, print_json
from tokenuq_pipeline.runtime.paths import store_home

if TYPE_CHECKING:
    import polars as pl

    from tokenuq_ml.scoring.review import StudyTables

DEFAULT_TOP = 0.05
SHOWN, WIDTH = 10, 140
"""Rows and columns that are printed."""


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "curate",
        help="rank suspect training examples and write a file to review",
        description="Ranks the training examples of a study by its token tables: wrong labels, near repeats, outliers "
        "of the change of loss, and examples that no ablation has selected. Writes them to a file with reasons and "
        "text, in which you fill in keep, weight or mask. A dataset entry applies the file: docs/curation.md.",
    )
    parser.add_argument("--study", required=True, metavar="STUDY", help="a study whose token tables exist")
    parser.add_argument(
        "--share",
        "--top",
        dest="top",
        type=_share,
        default=DEFAULT_TOP,
        metavar="SHARE",
        help=f"share of the examples that each signal may list; default: {DEFAULT_TOP}",
    )
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        default="train",
        help="which examples of the study's dataset; default: train",
    )
    parser.add_argument(
        "--tokens",
        nargs="+",
        choices=CATEGORIES,
        metavar="CATEGORY",
        help="look for wrong labels among tokens of these categories only, e.g. `number` for answers that are "
        f"calculations: {', '.join(CATEGORIES)}; default: all tokens",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="a .csv or .parquet file to write; without it, the first rows are printed only",
    )
    add_json(parser, "print JSON: every example to review, with its reasons")
    parser.set_defaults(function=curate_command)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and at most 1")
    return share


def curate_command(options: argparse.Namespace) -> int:
    """Run `tokenuq curate`."""
    from tokenuq_ml.scoring.review import SIGNALS, review_table

    home = store_home()
    _check_output(options.output, home)
    config = configuration()
    study = config.studies[known_study(config, options.study)]
    tables = study_tables(home, study.name, study.dataset, options.split, options.tokens)
    examples = tables.tokens["example_id"].n_unique()
    review, counts = review_table(tables, options.top)
    if options.json:
        if options.output:
            _write(review, options.output)
        print_json(
            {
                "study": study.name,
                "dataset": study.dataset,
                "split": options.split,
                "examples": examples,
                "signals": counts,
                "to_review": review.select("rank", "example_id", "reasons").to_dicts(),
                "output": options.output,
            }
        )
        return 0
    print(f"{study.name}: {len(review):,} of {examples:,} examples of {study.dataset} ({options.split}) to review")
    for signal, count in counts.items():
        print(f"  {count:>6,}  {signal}: {SIGNALS[signal]}")
    for rank, example_id, reasons in review.select("rank", "example_id", "reasons").head(SHOWN).iter_rows():
        line = f"{rank:>4}  {example_id}  {reasons}"
        print(line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…")
    if options.output:
        _write(review, options.output)
        print(f"{options.output}: fill in keep, weight or mask, then name it in a dataset: docs/curation.md")
    else:
        print("nothing is written; name a file with --output")
    return 0


def study_tables(
    home: Path, study: str, dataset: str, split: str, categories: Collection[str] | None = None
) -> "StudyTables":
    """Read what a review needs.

    Args:
        home: of the store.
        study: whose token tables are read.
        dataset: the study's dataset.
        split: whose examples are ranked.
        categories: of the tokens among which wrong labels are looked for; default: all.

    Raises:
        InputError: the store lacks the study's token tables, the dataset, or examples of the split; or raw texts are
            divided into pieces.
    """
    import polars as pl

    from tokenuq_ml.scoring.review import StudyTables
    from tokenuq_ml.tables.scanning import scan
    from tokenuq_pipeline.commands.study_tokens import StudyTokens

    tables = StudyTokens(home, study)
    of_split = (pl.col("split").cast(pl.String) == split) & (pl.col("dataset").cast(pl.String) == dataset)
    losses = tables.losses.filter(of_split)
    columns = tables.uncertainty.select("example_id", "position", "bald")
    tokens = losses.join(columns, on=["example_id", "position"]).drop("study").collect(engine="streaming")
    if not len(tokens):
        raise InputError(f"study {study}: no token of dataset {dataset} is in split {split!r}; name another --split")
    if categories is not None and not tokens["category"].cast(pl.String).is_in(list(categories)).any():
        found = ", ".join(sorted(tokens["category"].cast(pl.String).unique()))
        raise InputError(f"study {study}: no token of split {split!r} is of {', '.join(categories)}; it has {found}")
    try:
        examples = scan("examples", home, dataset=dataset).collect()
    except FileNotFoundError as error:
        raise InputError(f"dataset {dataset}: its examples are not in the store: {error}") from None
    divided = tokens.join(examples, on="example_id", how="anti")["example_id"].n_unique()
    if divided:
        raise InputError(
            f"dataset {dataset}: {divided} pieces of raw texts that are longer than the study's `max_length` have no "
            "row of their own to review; divide these texts into rows, or raise `max_length` in studies.yaml"
        )
    alternatives = tables.alternatives().filter(pl.col("example_id").is_in(tokens["example_id"].unique().to_list()))
    return StudyTables(study, tokens, examples, tables.selections(), alternatives.collect(), categories)


def _check_output(output: Path | None, home: Path) -> None:
    """Reject a file that cannot be written, before the tables are read.

    Raises:
        InputError: in one sentence.
    """
    if output is None:
        return
    if output.suffix.lower() not in (".csv", ".parquet"):
        raise InputError(f"--output {output}: name a file that ends with .csv or .parquet")
    if output.exists():
        raise InputError(f"--output {output}: exists, and may hold decisions; name another file or delete it")
    if output.resolve().is_relative_to(home):
        raise InputError(
            f"--output {output}: is in the store, which only the pipeline writes to; name another path, such as the "
            "folder curation/ of your configuration"
        )
    if not output.absolute().parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.absolute().parent}; create it")


def _write(review: "pl.DataFrame", output: Path) -> None:
    with atomic_write(output, durable=False) as file:
        if output.suffix.lower() == ".csv":
            # With a byte order mark, so that spreadsheets read it as UTF-8.
            review.write_csv(file, include_bom=True)
        else:
            review.write_parquet(file)
