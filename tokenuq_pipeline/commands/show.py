"""`tokenuq show`: examples with their tokens coloured by value, in the terminal and as an HTML page."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.schemas import TOKEN_KEY
from tokenuq_pipeline.commands.common import configuration, known_comparison, positive_integer
from tokenuq_pipeline.commands.json_output import add_json, print_json
from tokenuq_pipeline.runtime.paths import store_home

if TYPE_CHECKING:
    import polars as pl

    from tokenuq_pipeline.commands.study_tokens import StudyTokens

PIPED_WIDTH = 140
"""Columns of the output if it is not a terminal."""
DEFAULT_EXAMPLES = 3
BY = ("loss", "entropy", "bald", "selected")


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "show",
        help="print examples with tokens coloured by value, or the tables of a comparison",
        description="Prints examples with their response tokens coloured by the teacher's loss, entropy or BALD, or by "
        "what an ablation selected. Without --example: the examples with the highest mean BALD.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--study", metavar="STUDY", help="a study whose token tables exist")
    what.add_argument("--comparison", metavar="NAME", help="print the tables of this comparison of studies instead")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--example", action="append", metavar="ID", help="this example; may be given more than once")
    which.add_argument(
        "--most-uncertain",
        type=positive_integer,
        metavar="N",
        help=f"the N examples with the highest mean BALD; default: {DEFAULT_EXAMPLES}",
    )
    parser.add_argument("--by", choices=BY, default="loss", help="what colours the tokens; default: loss")
    parser.add_argument("--split", metavar="SPLIT", help="with --most-uncertain: only examples of this split")
    parser.add_argument(
        "--ablation",
        metavar="NAME",
        help="with --by selected: the ablation whose selection is shown; default: the first that leaves tokens out",
    )
    parser.add_argument(
        "--step",
        type=positive_integer,
        metavar="N",
        help="with --by selected: the training step; default: the last that trained on each example",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a self-contained HTML page")
    add_json(parser, "print JSON: a list of examples with all of their tokens, or the comparison's page")
    parser.set_defaults(function=show_command)


def show_command(options: argparse.Namespace) -> int:
    """Run `tokenuq show`."""
    _check(options)
    if options.comparison is not None:
        from tokenuq_pipeline.commands.run_comparison import comparison_as_json, print_comparison
        from tokenuq_pipeline.runtime.bucket_store import open_store

        store, name = open_store(), known_comparison(configuration(), options.comparison).name
        if options.json:
            print_json(comparison_as_json(store, name))
        else:
            print_comparison(store, name)
        return 0
    from tokenuq_pipeline.commands.study_tokens import StudyTokens

    study = StudyTokens(store_home(), options.study)
    ablation, selected = options.ablation, None
    if options.by == "selected":
        ablation = ablation or study.first_partial_ablation()
        selected = study.selected(ablation, options.step)
    ids = options.example or study.most_uncertain(options.most_uncertain or DEFAULT_EXAMPLES, options.split, selected)
    tokens = study.tokens_of(ids)
    prompts = study.prompts(tokens)
    shown = study.with_first_choice(tokens)
    if selected is not None:
        shown = shown.join(selected.collect(), on=TOKEN_KEY, how="left")
        _require_trained(shown, ids, ablation, options.step)
    if options.html:
        _write_page(options, study, tokens.lazy(), ids, prompts, ablation)
    if options.json:
        print_json(_as_json(shown, ids, prompts))
        return 0
    _print(shown, ids, prompts, options.by, ablation or "")
    if options.html:
        print(f"page: {options.html}")
    return 0


def _as_json(shown: "pl.DataFrame", ids: list[str], prompts: dict[str, str]) -> list[dict]:
    """Return each example with its prompt and its response tokens, with all of their columns."""
    import polars as pl

    of_example = ("study", "example_id", "dataset", "split")
    found = []
    for example_id in ids:
        rows = shown.filter(example_id=example_id).sort("position")
        # Categories are texts here.
        rows = rows.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))
        own = [name for name in of_example if name in rows.columns]
        tokens = rows.drop(own).to_dicts()
        found.append({**rows.select(own).row(0, named=True), "prompt": prompts.get(example_id, ""), "tokens": tokens})
    return found


_TOKEN_OPTIONS = {
    "example": None,
    "most_uncertain": None,
    "by": "loss",
    "split": None,
    "ablation": None,
    "step": None,
    "html": None,
}
"""Options about tokens, with their defaults."""


def _check(options: argparse.Namespace) -> None:
    """Reject options that do not go together.

    Raises:
        InputError: in one sentence.
    """
    given = [flag for flag, value in _TOKEN_OPTIONS.items() if getattr(options, flag) != value]
    if options.comparison is not None and given:
        named = ", ".join(f"--{flag.replace('_', '-')}" for flag in given)
        raise InputError(f"{named} goes with --study: a comparison has no tokens of its own")
    if options.by != "selected" and (options.ablation or options.step):
        raise InputError("--ablation and --step need --by selected")
    if options.split and options.example:
        raise InputError("--split goes with --most-uncertain, not with --example")
    if options.html and not options.html.absolute().parent.is_dir():
        raise InputError(f"--html {options.html}: there is no folder {options.html.absolute().parent}")


def _require_trained(shown: "pl.DataFrame", ids: list[str], ablation: str, step: int | None) -> None:
    """Reject examples that the ablation did not train on.

    Raises:
        InputError: for the first of them.
    """
    for example_id in ids:
        if shown.filter(example_id=example_id)["selected"].null_count():
            when = f" at step {step}; leave --step out" if step else "; choose an example of the split train"
            raise InputError(f"{ablation} did not train on {example_id}{when}")


def _print(shown: "pl.DataFrame", ids: list[str], prompts: dict[str, str], by: str, ablation: str) -> None:
    from rich.console import Console

    from tokenuq_ml.reports.token_text import example_text, full_colour

    top = full_colour(shown, by)

    class Output(Console):
        def on_broken_pipe(self) -> None:
            # The command line ends all commands alike if their reader is gone; rich would end this one as failed.
            raise BrokenPipeError

    console = Output(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    for example_id in ids:
        rows = shown.filter(example_id=example_id).sort("position")
        text = example_text(rows, by, top, prompts.get(example_id, ""), ablation)
        console.print(text, soft_wrap=not console.is_terminal)


def _write_page(
    options: argparse.Namespace,
    study: "StudyTokens",
    tokens: "pl.LazyFrame",
    ids: list[str],
    prompts: dict[str, str],
    ablation: str | None,
) -> None:
    from tokenuq_ml.reports import html
    from tokenuq_ml.reports.explorer import explorer
    from tokenuq_ml.reports.explorer_data import ExplorerTables
    from tokenuq_ml.reports.explorer_examples import means_of

    tables = ExplorerTables(tokens, study.alternatives(), prompts, study.students(ablation))
    content = explorer(tables, means_of(tokens, ids), options.by)
    heading = f"{len(ids)} example{'s' if len(ids) > 1 else ''} of the study {options.study}"
    options.html.write_text(html.page("Tokens", heading, [("Tokens", content)]), encoding="utf-8")
