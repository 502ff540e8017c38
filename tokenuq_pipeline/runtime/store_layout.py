"""Paths of tables and other outputs, relative to the store. `docs/store_layout.md` lists them all."""

from tokenuq_ml.tables.schemas import table_dir


def table_path(table: str, **partitions: str) -> str:
    """Return the folder of one partition of a table: `token_losses/study=quickstart`."""
    return table_dir("", table, **partitions).as_posix()


def partition_path(output: str, **partitions: str) -> str:
    """Return the folder of an output that is not a table (adapter, plots, report): `plots/study=s/stage=x`."""
    return "/".join([output, *(f"{key}={value}" for key, value in partitions.items())])
