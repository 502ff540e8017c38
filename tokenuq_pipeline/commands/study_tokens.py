"""What `tokenuq show` reads of a study: token tables, selections, prompts."""

import contextlib
import difflib
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from tokenuq_ml.config import REFERENCE_ROWS
from tokenuq_ml.errors import InputError
from tokenuq_ml.reports.explorer_data import Students
from tokenuq_ml.reports.explorer_examples import prompts_of
from tokenuq_ml.tables.partitions import complete_files, partition_of, store_home
from tokenuq_ml.tables.scanning import scan
from tokenuq_ml.tables.schemas import TABLES, TOKEN_KEY


class StudyTokens:
    """The token tables of a study.

    Attributes:
        losses: the table `token_losses`.
        uncertainty: the table `token_uncertainty`.

    Raises:
        InputError: the study has no token tables.
    """

    def __init__(self, home: Path, study: str):
        self._home, self._study = home, study
        try:
            self.losses = scan("token_losses", home, study=study)
            self.uncertainty = scan("token_uncertainty", home, study=study)
        except FileNotFoundError as error:
            raise InputError(f"study {study!r} has no token tables: {error}") from None

    def tokens_of(self, ids: list[str]) -> pl.DataFrame:
        """Return both tables joined, for some examples.

        Raises:
            InputError: there is no such example; the message names similar ones.
        """
        # Each table is filtered before the join, so that each is read only where these examples are.
        of_ids = pl.col("example_id").is_in(ids)
        tokens = self.losses.filter(of_ids).join(self.uncertainty.filter(of_ids).drop("study"), on=TOKEN_KEY).collect()
        known = set(tokens["example_id"])
        for example_id in ids:
            if example_id not in known:
                raise InputError(self._unknown(example_id))
        return tokens

    def _unknown(self, example_id: str) -> str:
        names = self.losses.select("example_id").unique().collect()["example_id"].to_list()
        near = difflib.get_close_matches(example_id, names, 3, 0.5) or sorted(names)[:3]
        return f"--example {example_id}: no such example; there are {len(names):,}, e.g. {', '.join(near)}"

    def most_uncertain(self, count: int, split: str | None, selected: pl.LazyFrame | None) -> list[str]:
        """Return the ids of the examples with the highest mean BALD.

        Args:
            count: how many.
            split: only examples of this split.
            selected: only examples that are in this table.

        Raises:
            InputError: there is no such example.
        """
        means = self.uncertainty.group_by("example_id").agg(pl.col("bald").mean())
        if split:
            of_split = self.losses.filter(pl.col("split").cast(pl.String) == split)
            means = means.join(of_split.select("example_id").unique(), on="example_id", how="semi")
        if selected is not None:
            means = means.join(selected.select("example_id").unique(), on="example_id", how="semi")
        means = means.top_k(count, by="bald").sort("bald", "example_id", descending=[True, False])
        ids = means.collect(engine="streaming")["example_id"].to_list()
        if not ids:
            raise InputError("no example has this split or step")
        return ids

    def first_partial_ablation(self) -> str:
        """Return the first ablation whose selection leaves tokens out; the first of all if none does.

        Raises:
            InputError: no student of the study is trained.
        """
        names = self._ablations("selections")
        if not names:
            raise InputError(f"study {self._study!r} has no selections: no student of it is trained")
        for name in names:
            selected = scan("selections", self._home, study=self._study, ablation=name).select(pl.col("selected").all())
            if not selected.collect().item():
                return name
        return names[0]

    def selected(self, ablation: str, step: int | None) -> pl.LazyFrame:
        """Return `example_id, position, selected` at a step, or at the last step that trained on each example.

        Raises:
            InputError: the study has no such student.
        """
        try:
            table = scan("selections", self._home, study=self._study, ablation=ablation)
        except FileNotFoundError as error:
            raise InputError(f"no selections of {ablation}: {error}") from None
        at_step = pl.col("step") == (step or pl.col("step").max().over("example_id"))
        return table.filter(at_step).select(*TOKEN_KEY, "selected")

    def prompts(self, tokens: pl.DataFrame) -> dict[str, str]:
        """Return example_id -> prompt, for the examples of `tokens` whose dataset is in the store."""
        try:
            table = scan("examples", self._home, dataset=tokens["dataset"].cast(pl.String).unique().to_list())
        except FileNotFoundError:
            return {}
        return prompts_of([table.filter(_same_examples(tokens)).collect()])

    def with_first_choice(self, tokens: pl.DataFrame) -> pl.DataFrame:
        """Add `first_choice`, the teacher's likeliest token, which is known for held-out tokens."""
        first = self.alternatives().filter(_same_examples(tokens) & (pl.col("choice") == 0))
        first = first.select(*TOKEN_KEY, pl.col("token").cast(pl.String).alias("first_choice")).collect()
        return tokens.join(first, on=TOKEN_KEY, how="left") if len(first) else tokens

    def alternatives(self) -> pl.LazyFrame:
        """Return the table `token_alternatives`; empty in a store of an earlier version."""
        try:
            return scan("token_alternatives", self._home, study=self._study)
        except FileNotFoundError:
            return pl.from_arrow(TABLES["token_alternatives"].schema.empty_table()).lazy()

    def selections(self) -> dict[str, pl.LazyFrame]:
        """Return ablation -> its table `selections`, for students that are complete."""
        found = {}
        for name in self._ablations("selections"):
            with contextlib.suppress(FileNotFoundError):
                found[name] = scan("selections", self._home, study=self._study, ablation=name)
        return found

    def students(self, first: str | None) -> Students:
        """Return the tables of every ablation of the study, with the ablation `first` at the beginning."""

        def tables(table: str) -> dict[str, pl.LazyFrame]:
            names = [name for name in self._ablations(table) if name not in REFERENCE_ROWS]
            names.sort(key=lambda name: name != first)
            return {name: scan(table, self._home, study=self._study, ablation=name) for name in names}

        return Students(tables("evaluation_tokens"), tables("selections"))

    def _ablations(self, table: str) -> list[str]:
        folders: Iterable[Path] = Path(self._home, table, f"study={self._study}").glob("ablation=*")
        # A mirror does not have all folders. An incomplete one in a folder is named by the error.
        partitions = (partition_of(file, table) for file in complete_files(store_home(self._home))[table])
        complete = {partition["ablation"] for partition in partitions if partition["study"] == self._study}
        return sorted({folder.name.partition("=")[2] for folder in folders} | complete)


def _same_examples(tokens: pl.DataFrame) -> pl.Expr:
    return pl.col("example_id").is_in(tokens["example_id"].unique().to_list())
