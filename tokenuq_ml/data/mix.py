"""Load a mix: a dataset that is drawn from the examples of other datasets by weight."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.examples import Example, rows_by_split, template_overlap
from tokenuq_ml.data.load import LoadedExamples
from tokenuq_ml.data.sources.draw import requested_rows
from tokenuq_ml.data.sources.pool import ExamplePool
from tokenuq_ml.data.sources.records import RowLocation
from tokenuq_ml.data.sources.rejected_rows import RejectedRows
from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.parquet import stream_table
from tokenuq_ml.tables.schemas import TABLES


def load_mix(
    spec: DatasetSpec,
    tables: Mapping[str, str | Path],
    scratch: str | Path | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> LoadedExamples:
    """Draw a mix from the tables `examples` of its datasets.

    A split of the mix is drawn from the rows that are in this split of each dataset, so that what one of them holds out
    is not trained on. The id of an example is the mix's name and its id there; `source` names both.

    Args:
        spec: the mix.
        tables: dataset -> the folder of its table `examples`.
        scratch: folder of temporary files; default: the system's.
        progress: called with a line per dataset.

    Raises:
        InputError: a split has too few rows in a dataset, or in all.
    """
    assert spec.mix is not None
    pool, rejected, read = ExamplePool(scratch), RejectedRows(scratch), 0
    # Sorted: the order of keys is no part of an entry's version, so rows must not depend on it.
    for name in sorted(spec.mix):
        for number, example in enumerate(_examples(tables[name]), 1):
            source = {**example.source, "dataset": name, "example_id": example.id}
            mixed = replace(example, id=f"{spec.name}/{example.id}", split="", source=source)
            pool.add(mixed, example.split, f"datasets/{name}", RowLocation(number, None), name)
            read += 1
        progress(f"{spec.name}: {read:,} rows read, up to dataset {name}")
    where = f"dataset {spec.name}"
    groups, _ = requested_rows(spec, pool.parts)
    missing = [split for split in groups if split not in pool.parts]
    if missing:
        raise InputError(
            f"{where}: its datasets {', '.join(sorted(spec.mix))} have no rows of split {missing[0]!r}; remove it from "
            f"`sizes` of {spec.name}, or add it to `sizes` of one of them"
        )
    drawn = pool.draw(spec, groups, where, rejected)
    metrics: dict[str, int | str] = {
        **rows_by_split(drawn.examples),
        **_rows_by_dataset(drawn.examples),
        "rows_read": read,
        **drawn.metrics,
        **rejected.metrics,
        **template_overlap(drawn.examples),
    }
    return LoadedExamples(drawn.examples, metrics, rejected)


def _examples(table: str | Path) -> Iterator[Example]:
    for rows in stream_table(table, list(TABLES["examples"].columns)):
        yield from map(Example.from_row, rows.to_pylist())


def _rows_by_dataset(examples: list[Example]) -> dict[str, int]:
    """Return `rows_<split>_<dataset>` -> number of examples."""
    counts = Counter(f"rows_{example.split}_{example.source['dataset']}" for example in examples)
    return dict(sorted(counts.items()))
