"""Whether a study's models and datasets are available, and the sizes of its models.

Reads configs and file headers, and sends one HEAD request per source to the hub. Downloads no weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError

from tokenuq_ml import hub_errors
from tokenuq_ml.config import CuratedDatasetSpec, DatasetSpec, ModelSpec
from tokenuq_ml.costs.flops import Architecture
from tokenuq_ml.data import load
from tokenuq_ml.data.curation import read_review
from tokenuq_ml.data.first_rows import why_unusable
from tokenuq_ml.data.language.words import Words
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.gguf_files import find_parts
from tokenuq_ml.models.positions import most_positions
from tokenuq_ml.models.unsupported import why_unsupported

TIMEOUT_S = 5
STORED_BYTES = {"float32": 4, "float64": 8}
"""Bytes of a stored weight by dtype; all other dtypes take 2."""
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Source:
    """A model or a dataset, and whether it is available."""

    kind: Literal["model", "dataset"]
    name: str
    ready: bool
    words: str
    """Where it is, or why it is not available."""


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a model, from its config."""

    architecture: Architecture
    softcapped: bool
    stored_bytes: int
    """Bytes of a weight as stored."""
    origin: str
    """Where the config comes from."""
    positions: int | None = None
    """The most tokens of a text, of models whose positions end."""


def model_source(
    spec: ModelSpec, folder: Path, quick: bool = False, datasets: Mapping[str, DatasetSpec] | None = None
) -> tuple[Source, ModelSizes | None]:
    """Return whether the model is available, and its sizes; None if its config is missing or not understood.

    Args:
        spec: the model.
        folder: its place in the store.
        quick: ask no hub, and read no file whose header takes seconds; the sizes are then known of fewer models.
        datasets: the entries among which is the language of a model that is trained from scratch.
    """
    ready, words, config, origin = _model_config(spec, folder, quick)
    if config is None and spec.config is not None:
        config = {**spec.config, **_vocabulary(spec, datasets or {})}
        origin = f"`config:` of {spec.name} in models.yaml"
    if config is None:
        return Source("model", spec.name, ready, words), None
    refused = why_unsupported(config)
    if refused is not None:
        return Source("model", spec.name, False, f"{words}; tokenuq refuses it: {refused}"), None
    try:
        sizes = ModelSizes(
            Architecture.from_config(config),
            bool(config.get("text_config", config).get("final_logit_softcapping")),
            STORED_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 2),
            origin,
            most_positions(config),
        )
    except InputError as error:
        return Source("model", spec.name, ready, f"{words}; {origin}: {error}"), None
    return Source("model", spec.name, ready, words), sizes


def _vocabulary(spec: ModelSpec, datasets: Mapping[str, DatasetSpec]) -> dict[str, int]:
    """Return the number of words of the language that a model is trained on, as its config has it."""
    language = datasets.get(spec.language or "")
    if language is None or language.grammar is None:
        return {}
    return {"vocab_size": len(Words.of(language.grammar).vocabulary)}


def _model_config(spec: ModelSpec, folder: Path, quick: bool) -> tuple[bool, str, dict | None, str]:
    """Return whether the model is available, that in words, its config, and where the config comes from."""
    converted = _json(folder / "config.json")
    if converted is not None:
        return True, "already converted", converted, "the store"
    if spec.source == "hub":
        return _hub_model(spec, quick)
    if spec.source == "path":
        config = _json(Path(spec.path, "config.json"))
        return config is not None, f"{spec.path}{'' if config else ': no config.json'}", config, "its folder"
    if spec.source == "pretrain":
        return True, f"trained from scratch on {spec.language}", None, ""
    try:
        path = find_parts(spec)[0]
    except InputError as error:
        return False, str(error), None, ""
    if spec.parts:
        # A reader of GGUF files does not read the header of the first part alone.
        packages = ", ".join(dict.fromkeys(part.split("/")[0] for part in spec.parts))
        return True, f"in parts, in the packages {packages}", None, ""
    what = spec.path if spec.source == "gguf" else f"in the package {spec.package}"
    # Reading the header takes seconds, because of its long list of tokens, so it is skipped if the sizes are given.
    return True, what, None if spec.config or quick else gguf_config(path), "the GGUF file's header"


def _hub_model(spec: ModelSpec, quick: bool) -> tuple[bool, str, dict | None, str]:
    revision = spec.revision or "main"
    cached = lambda file: try_to_load_from_cache(spec.id, file, revision=revision)  # noqa: E731
    path = cached("config.json")
    config = _json(Path(path)) if isinstance(path, str) else None
    if config is not None and _weights_cached(cached):
        return True, f"{spec.id}: in the hub's cache", config, "the hub's cache"
    if quick:
        return False, f"{spec.id}: not in the hub's cache", config, "the hub's cache"
    if constants.is_offline_mode():
        return False, f"{spec.id} is not in the local cache, and HF_HUB_OFFLINE is set", config, "the hub's cache"
    try:
        get_hf_file_metadata(hf_hub_url(spec.id, "config.json", revision=revision), timeout=TIMEOUT_S)
        if config is None:
            config = _json(Path(hf_hub_download(spec.id, "config.json", revision=revision)))
    except Exception as error:
        # A plan is made in any case; it shows what failed.
        return False, hub_errors.explain(error, spec.id), config, "the hub's cache"
    return True, f"{spec.id}: reachable on the hub, not yet downloaded", config, "the hub"


def _weights_cached(cached) -> bool:
    """Return whether the weights are in the cache: one file, or every shard that the index names."""
    for file in WEIGHTS_FILES:
        if isinstance(cached(file), str):
            return True
        index = cached(f"{file}.index.json")
        named = (_json(Path(index)) or {}).get("weight_map") if isinstance(index, str) else None
        if named and all(isinstance(cached(shard), str) for shard in set(named.values())):
            return True
    return False


def gguf_config(path: Path) -> dict | None:
    """Return the sizes in a GGUF file's header by Hugging Face's names; None if it is no such file.

    The dtype is bfloat16, to which such weights are converted.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        kind = reader.fields["general.architecture"].contents()
        field = lambda key: reader.fields[f"{kind}.{key}"].contents()  # noqa: E731
        config = {
            "model_type": kind,
            "num_hidden_layers": int(field("block_count")),
            "hidden_size": int(field("embedding_length")),
            "intermediate_size": int(field("feed_forward_length")),
            "num_attention_heads": int(field("attention.head_count")),
            "num_key_value_heads": int(field("attention.head_count_kv")),
            "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
            "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
            "dtype": "bfloat16",
        }
        if f"{kind}.attention.key_length" in reader.fields:
            config["head_dim"] = int(field("attention.key_length"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return config


def dataset_source(spec: DatasetSpec, complete: bool) -> Source:
    """Return whether the dataset is available; `complete`: its asset is in the store."""
    if isinstance(spec, CuratedDatasetSpec) and (problem := _why_not_curated(spec)):
        # Also if the dataset was made before: a changed file makes it stale.
        return Source("dataset", spec.name, False, problem)
    if complete:
        return Source("dataset", spec.name, True, "already in the store")
    if spec.mix is not None:
        return Source("dataset", spec.name, True, f"a mix of {', '.join(spec.mix)}")
    if spec.on_hub:
        if _dataset_cached(spec.id):
            return Source("dataset", spec.name, True, f"{spec.id}: in the hub's cache")
        if constants.is_offline_mode():
            return Source(
                "dataset", spec.name, False, f"{spec.id} is not in the local cache, and HF_HUB_OFFLINE is set"
            )
        try:
            url = hf_hub_url(spec.id, spec.file or "README.md", repo_type="dataset", revision=spec.revision)
            get_hf_file_metadata(url, timeout=TIMEOUT_S)
        except RemoteEntryNotFoundError:
            # The repository exists, but has no README.md.
            pass
        except Exception as error:
            return Source("dataset", spec.name, False, hub_errors.explain(error, spec.id, "dataset"))
        return Source("dataset", spec.name, True, f"{spec.id}: reachable on the hub")
    if isinstance(spec, CuratedDatasetSpec):
        return Source("dataset", spec.name, True, f"{spec.made_from} as {spec.path} decides")
    problem = load.why_unavailable(spec)
    problem = problem or why_unusable(spec)
    generated = "generated" if spec.format == "synthetic_language" else f"generated by reasoning-gym ({spec.task})"
    where = spec.path or spec.package or generated
    return Source("dataset", spec.name, problem is None, problem or where)


def _why_not_curated(spec: CuratedDatasetSpec) -> str | None:
    try:
        read_review(str(spec.path))
    except InputError as error:
        return str(error)
    return None


def _dataset_cached(repo: str) -> bool:
    """Return whether the hub's cache has files of a dataset, or the cache of `datasets` has its rows."""
    owner_name = repo.replace("/", "--")
    files = Path(constants.HF_HUB_CACHE, f"datasets--{owner_name}", "snapshots")
    rows = Path(constants.HF_HOME, "datasets", repo.replace("/", "___").lower())
    # A README.md alone is no data.
    return any(path.name != "README.md" for path in files.glob("*/*")) or rows.is_dir()


def _json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
