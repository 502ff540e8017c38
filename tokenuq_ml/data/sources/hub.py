"""Rows of a dataset on the Hugging Face Hub, read by `datasets`, and single files, downloaded by `huggingface_hub`.

Small datasets are downloaded once and then read from the cache; large ones are streamed.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenuq_ml import hub_errors
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.sources.records import Record
from tokenuq_ml.errors import InputError
from tokenuq_ml.system_errors import is_system_error

STREAMED_FROM = 2**30
"""Download size in bytes from which a dataset is streamed; one of unknown size is streamed as well."""


class HubSource:
    """A dataset of the hub.

    Attributes:
        commit: the commit that was read; None before reading, or if the hub does not report it.
    """

    def __init__(self, spec: DatasetSpec):
        self.spec = spec
        self.commit: str | None = None

    def download_file(self) -> Path:
        """Return the file `spec.file` of the repository, downloaded if it is not in the cache.

        Raises:
            InputError: the hub cannot be reached, or has no such file.
        """
        from huggingface_hub import hf_hub_download

        spec = self.spec
        assert spec.id is not None and spec.file is not None
        with _input_errors(spec):
            path = Path(hf_hub_download(spec.id, spec.file, repo_type="dataset", revision=spec.revision))
        self._store_commit(r"/snapshots/([0-9a-f]{40})/", path.as_posix())
        return path

    def rows(self, split: str) -> Iterator[Record]:
        """Yield a record per row of a hub split, in its order.

        Raises:
            InputError: the hub cannot be reached, has no such dataset, config or split, or a row cannot be read.
        """
        import datasets

        datasets.disable_progress_bars()
        spec = self.spec
        with _input_errors(spec):
            builder = datasets.load_dataset_builder(spec.id, spec.config, revision=spec.revision)
            self._store_commit(r"@([0-9a-f]{40})(?:/|$)", str(builder.base_path))
            size = builder.info.download_size
            rows = datasets.load_dataset(
                spec.id,
                spec.config,
                split=split,
                revision=self.commit or spec.revision,
                streaming=size is None or size >= STREAMED_FROM,
            )
            for index, row in enumerate(rows):
                yield Record(index, None, row)

    def _store_commit(self, pattern: str, location: str) -> None:
        found = re.search(pattern, location)
        self.commit = found.group(1) if found else self.commit


def why_unavailable(spec: DatasetSpec) -> str | None:
    """Return why the dataset cannot be downloaded, without a download; None if it can."""
    from huggingface_hub import dataset_info

    assert spec.id is not None
    try:
        with _input_errors(spec):
            dataset_info(spec.id, revision=spec.revision, timeout=10)
    except InputError as error:
        return str(error)
    return None


@contextmanager
def _input_errors(spec: DatasetSpec) -> Iterator[None]:
    """Turn errors of the hub's libraries in the block into InputErrors that say what to do."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if is_system_error(error):
            raise
        raise InputError(f"dataset {spec.name}: {_explanation(spec, error)}") from None


def _explanation(spec: DatasetSpec, error: Exception) -> str:
    assert spec.id is not None
    message = hub_errors.first_line(error)
    if isinstance(error, ValueError) and "config" in message.lower():
        return f"{spec.id}: {message}; name one as `config:` of {spec.name} in datasets.yaml"
    if isinstance(error, ValueError) and "split" in message.lower():
        return f"{spec.id}: {message}; name the hub's splits in `drawn_from:` of {spec.name} in datasets.yaml"
    if hub_errors.is_hub_error(error) or isinstance(error, ConnectionError | FileNotFoundError):
        return hub_errors.explain(error, spec.id, "dataset")
    return f"{spec.id} cannot be read ({message}); download its files and name their folder as `path:` in datasets.yaml"
