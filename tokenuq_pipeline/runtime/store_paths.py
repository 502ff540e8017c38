"""Where tables and other outputs are stored, relative to the store."""

from tokenuq_ml.tables.schemas import table_dir


def table_path(table: str, **partitions: str) -> str:
    """Folder of a table's partition, relative to the store."""
    return table_dir("", table, **partitions).as_posix()


def partition_path(name: str, **partitions: str) -> str:
    """Folder of what is not a table (an adapter, plots, a report), laid out like one."""
    return "/".join([name, *(f"{key}={value}" for key, value in partitions.items())])
