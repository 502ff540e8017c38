"""`tokenuq show`: examples with their tokens coloured by value, in the terminal and as a page of its own."""

import argparse
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenuq_ml.config import REFERENCE_ROWS
from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.schemas import TOKEN_KEY
from tokenuq_pipeline.runtime.paths import store_home

if TYPE_CHECKING:
    import polars as pl

    from tokenuq_ml.reports.explorer import Students

PIPED_WIDTH = 140
BY = ("loss", "entropy", "bald", "selected")


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "show",
        help="the text of examples, tokens coloured by value",
        description="Prints examples with their response tokens coloured by what the teacher makes of them, or by "
        "what an ablation selected. Without --example: those with the highest mean BALD.",
    )
    parser.add_argument("--study", required=True, metavar="STUDY", help="a study whose token tables are there")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--example", action="append", metavar="ID", help="this example; may be given more than once")
    which.add_argument("--most-uncertain", type=_count, metavar="N", help="the N with the highest mean BALD (3)")
    parser.add_argument("--by", choices=BY, default="loss", help="what colours the tokens (loss)")
    parser.add_argument("--split", metavar="SPLIT", help="with --most-uncertain: of this split")
    parser.add_argument(
        "--ablation", metavar="NAME", help="with --by selected: whose selection (the first that leaves tokens out)"
    )
    parser.add_argument("--step", type=_count, metavar="N", help="with --by selected: at this step (each one's last)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page that needs nothing else")
    parser.set_defaults(function=show_command)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def show_command(options: argparse.Namespace) -> int:
    """`tokenuq show`."""
    import polars as pl
    from rich.console import Console

    from tokenuq_ml.reports.token_text import example_text, full_colour
    from tokenuq_ml.tables.scanning import scan

    home, study = store_home(), options.study
    _check(options)
    try:
        losses, uncertainty = (scan(table, home, study=study) for table in ("token_losses", "token_uncertainty"))
    except FileNotFoundError as error:
        raise InputError(f"study {study!r} has no token tables: {error}") from None
    selected = _selected(home, options) if options.by == "selected" else None
    ids = options.example or _most_uncertain(losses, uncertainty, selected, options)
    # Each table is filtered by itself, so that both are read where these examples are and nowhere else.
    of_ids = pl.col("example_id").is_in(ids)
    tokens = losses.filter(of_ids).join(uncertainty.filter(of_ids).drop("study"), on=TOKEN_KEY)
    rows = tokens.collect()
    _known(ids, rows, losses)
    prompts = _prompts(home, rows)
    shown = _with_first_choice(rows, home, study)
    if selected is not None:
        shown = shown.join(selected.collect(), on=TOKEN_KEY, how="left")
    top = full_colour(shown, options.by)
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    for example_id in ids:
        of_example = shown.filter(pl.col("example_id") == example_id).sort("position")
        if selected is not None and of_example["selected"].null_count():
            raise InputError(
                f"{options.ablation} did not train on {example_id}"
                + (f" at step {options.step}; leave --step out" if options.step else "; choose an example of train")
            )
        console.print(
            example_text(of_example, options.by, top, prompts.get(example_id, ""), options.ablation or ""),
            soft_wrap=not console.is_terminal,
        )
    if options.html:
        _write_page(options, rows.lazy(), ids, prompts, home)
        console.print(f"page: {options.html}", soft_wrap=True)
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.by != "selected" and (options.ablation or options.step):
        raise InputError("--ablation and --step go with --by selected")
    if options.split and options.example:
        raise InputError("--split goes with --most-uncertain, not with --example")
    if options.html and not options.html.absolute().parent.is_dir():
        raise InputError(f"--html {options.html}: there is no folder {options.html.absolute().parent}")


def _selected(home: Path, options: argparse.Namespace) -> "pl.LazyFrame":
    """`example_id, position, selected` at the step that is asked for, or the last at which training met the example."""
    import polars as pl

    from tokenuq_ml.tables.scanning import scan

    options.ablation = options.ablation or _one_that_leaves_tokens_out(home, options.study)
    try:
        table = scan("selections", home, study=options.study, ablation=options.ablation)
    except FileNotFoundError as error:
        raise InputError(f"no selections of {options.ablation}: {error}") from None
    at = pl.col("step") == (options.step or pl.col("step").max().over("example_id"))
    return table.filter(at).select(*TOKEN_KEY, "selected")


def _one_that_leaves_tokens_out(home: Path, study: str) -> str:
    import polars as pl

    from tokenuq_ml.tables.scanning import scan

    names = _ablations(home, "selections", study)
    if not names:
        raise InputError(f"study {study!r} has no selections: no student of it has been trained")
    for name in names:
        if not scan("selections", home, study=study, ablation=name).select(pl.col("selected").all()).collect().item():
            return name
    return names[0]


def _ablations(home: Path, table: str, study: str) -> list[str]:
    return sorted(folder.name.partition("=")[2] for folder in Path(home, table, f"study={study}").glob("ablation=*"))


def _most_uncertain(
    losses: "pl.LazyFrame", uncertainty: "pl.LazyFrame", selected: "pl.LazyFrame | None", options: argparse.Namespace
) -> list[str]:
    """Ids of the examples with the highest mean BALD, of the split and the step that are asked for."""
    import polars as pl

    means = uncertainty.group_by("example_id").agg(pl.col("bald").mean())
    if options.split:
        of_split = losses.filter(pl.col("split").cast(pl.String) == options.split)
        means = means.join(of_split.select("example_id").unique(), on="example_id", how="semi")
    if selected is not None:
        means = means.join(selected.select("example_id").unique(), on="example_id", how="semi")
    means = means.top_k(options.most_uncertain or 3, by="bald")
    ids = means.sort("bald", "example_id", descending=[True, False]).collect(engine="streaming")["example_id"].to_list()
    if not ids:
        raise InputError("no such example: nothing is there of this split or step")
    return ids


def _known(ids: Iterable[str], rows: "pl.DataFrame", tokens: "pl.LazyFrame") -> None:
    there = set(rows["example_id"])
    for example_id in ids:
        if example_id not in there:
            names = tokens.select("example_id").unique().collect()["example_id"].to_list()
            near = difflib.get_close_matches(example_id, names, 3, 0.5) or sorted(names)[:3]
            raise InputError(
                f"--example {example_id}: no such example; there are {len(names):,}, e.g. {', '.join(near)}"
            )


def _prompts(home: Path, rows: "pl.DataFrame") -> dict[str, str]:
    """What the model was asked, where the dataset is still in the store."""
    import polars as pl

    from tokenuq_ml.reports.explorer import prompts_of
    from tokenuq_ml.tables.scanning import scan

    try:
        table = scan("examples", home, dataset=rows["dataset"].cast(pl.String).unique().to_list())
    except FileNotFoundError:
        return {}
    return prompts_of([table.filter(pl.col("example_id").is_in(rows["example_id"].unique().to_list())).collect()])


def _with_first_choice(rows: "pl.DataFrame", home: Path, study: str) -> "pl.DataFrame":
    """Adds `first_choice`, the teacher's likeliest token, known of held-out tokens."""
    import polars as pl

    first = _alternatives(home, study).filter(pl.col("choice") == 0)
    first = first.filter(pl.col("example_id").is_in(rows["example_id"].unique().to_list()))
    first = first.select(*TOKEN_KEY, pl.col("token").cast(pl.String).alias("first_choice")).collect()
    return rows.join(first, on=TOKEN_KEY, how="left") if len(first) else rows


def _alternatives(home: Path, study: str) -> "pl.LazyFrame":
    import polars as pl

    from tokenuq_ml.tables.scanning import scan
    from tokenuq_ml.tables.schemas import TABLES

    try:
        return scan("token_alternatives", home, study=study)
    except FileNotFoundError:
        # Made by an earlier version: there are none, and nothing else depends on them.
        return pl.from_arrow(TABLES["token_alternatives"].schema.empty_table()).lazy()


def _write_page(
    options: argparse.Namespace, tokens: "pl.LazyFrame", ids: list[str], prompts: dict[str, str], home: Path
) -> None:
    from tokenuq_ml.reports import html
    from tokenuq_ml.reports.explorer import explorer, means_of

    content = explorer(
        tokens,
        means_of(tokens, ids),
        _alternatives(home, options.study),
        prompts,
        _students(home, options),
        options.by,
    )
    heading = f"{len(ids)} example{'s' if len(ids) > 1 else ''} of the study {options.study}"
    options.html.write_text(html.page("Tokens", heading, [("Tokens", content)]), encoding="utf-8")


def _students(home: Path, options: argparse.Namespace) -> "Students":
    """What is known of every ablation of the study; the one that was named comes first."""
    from tokenuq_ml.reports.explorer import Students
    from tokenuq_ml.tables.scanning import scan

    def of(table: str) -> dict[str, "pl.LazyFrame"]:
        names = [name for name in _ablations(home, table, options.study) if name not in REFERENCE_ROWS]
        names.sort(key=lambda name: name != options.ablation)
        return {name: scan(table, home, study=options.study, ablation=name) for name in names}

    return Students(of("evaluation_tokens"), of("selections"))
