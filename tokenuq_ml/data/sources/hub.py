"""Rows of a dataset on the Hugging Face hub, by way of `datasets`; and single files of it, by `huggingface_hub`.

Small datasets are downloaded once and then come from the cache, large ones are streamed. Does not know what rows mean.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenuq_ml import hub_errors as refusals
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.sources.records import Record
from tokenuq_ml.errors import InputError

STREAMED_FROM = 2**30
"""Bytes of download from which a dataset is streamed; so is one that does not tell its size."""


class HubSource:
    """A dataset of the hub. `commit` is what was read of it, once something was and where the hub tells."""

    def __init__(self, spec: DatasetSpec):
        self.spec = spec
        self.commit: str | None = None

    def file(self) -> Path:
        """The file `spec.file` of the repository, downloaded if it is not in the cache.

        Raises:
            InputError: the hub cannot be reached, or holds no such file.
        """
        from huggingface_hub import hf_hub_download

        spec = self.spec
        with _explained(spec):
            path = Path(hf_hub_download(spec.id, spec.file, repo_type="dataset", revision=spec.revision))
        self._note(r"/snapshots/([0-9a-f]{40})/", path.as_posix())
        return path

    def rows(self, split: str) -> Iterator[Record]:
        """A record a row of one split of the hub's, in its order.

        Raises:
            InputError: the hub cannot be reached, has no such dataset, config or split, or a row cannot be read.
        """
        import datasets

        datasets.disable_progress_bars()
        spec = self.spec
        with _explained(spec):
            builder = datasets.load_dataset_builder(spec.id, spec.config, revision=spec.revision)
            self._note(r"@([0-9a-f]{40})(?:/|$)", str(builder.base_path))
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

    def _note(self, pattern: str, place: str) -> None:
        found = re.search(pattern, place)
        self.commit = found.group(1) if found else self.commit


def problem(spec: DatasetSpec) -> str | None:
    """Why the hub does not give the dataset, without downloading it; None where it would."""
    from huggingface_hub import dataset_info

    try:
        with _explained(spec):
            dataset_info(spec.id, revision=spec.revision, timeout=10)
    except InputError as error:
        return str(error)
    return None


@contextmanager
def _explained(spec: DatasetSpec) -> Iterator[None]:
    """What the hub's libraries raise, as one sentence with the mend."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"dataset {spec.name}: {_why(spec, error)}") from None


def _why(spec: DatasetSpec, error: Exception) -> str:
    said = refusals.first_line(error)
    if isinstance(error, ValueError) and "config" in said.lower():
        return f"{spec.id}: {said}; name one as `config:` of {spec.name} in datasets.yaml"
    if isinstance(error, ValueError) and "split" in said.lower():
        return f"{spec.id}: {said}; name the hub's splits in `drawn_from:` of {spec.name} in datasets.yaml"
    if refusals.is_hub_error(error) or isinstance(error, ConnectionError | FileNotFoundError):
        return refusals.explain(error, spec.id, "dataset")
    return f"{spec.id} cannot be read ({said}); fetch its files and name their folder as `path:` in datasets.yaml"
