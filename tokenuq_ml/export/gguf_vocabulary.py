"""The vocabulary of a GGUF file from a tokenizer of the library `tokenizers`.

Two kinds are written: byte-level BPE, whose way to split text llama.cpp knows by a name, and SentencePiece's BPE, which
llama.cpp merges by scores. Of the latter, the library keeps merges in the order of scores, so scores are their ranks.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

from tokenuq_ml.errors import InputError
from tokenuq_ml.export.gguf_settings import REMEDY

SPACE = "\u2581"
"""SentencePiece's mark of a space."""
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = (
    gguf.TokenType.NORMAL,
    gguf.TokenType.UNKNOWN,
    gguf.TokenType.CONTROL,
    gguf.TokenType.USER_DEFINED,
    gguf.TokenType.UNUSED,
    gguf.TokenType.BYTE,
)
SPLIT_NAMES = ("llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o")
"""Names of llama.cpp for ways to split text by one regular expression, which transformers' reader of GGUF has."""
WITH_MERGES = {"llama-bpe": "dbrx"}
"""Name under which a complete word of the vocabulary is one token without its merges -> name with the same split."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer."""

    model: str
    """llama.cpp's name of the algorithm."""
    pre: str
    """Its name of how text is split first."""
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    space_prefix: bool | None = None


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """Return the vocabulary of a tokenizer.

    Args:
        tokenizer: of the model.
        rows: of the model's embedding; ids without a token are filled.

    Raises:
        InputError: the tokenizer is of another kind, or has more tokens than the embedding has rows.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"GGUF: {type(tokenizer).__name__} is not a tokenizer of the library tokenizers; {REMEDY}")
    content = json.loads(backend.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise InputError(f"GGUF: a vocabulary of kind {model['type']} is not written here, only BPE; {REMEDY}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise InputError(f"GGUF: the tokenizer's {key} {model[key]!r} has no key in GGUF; {REMEDY}")
    tokens, types = _tokens(tokenizer, content, rows)
    if _kinds(content["pre_tokenizer"]) & {"ByteLevel"}:
        pre = _split_name(content)
        return Vocabulary("gpt2", pre, tokens, types, merges=[" ".join(pair) for pair in _pairs(model)])
    if model.get("byte_fallback"):
        scores = _scores(tokens, _pairs(model), model["vocab"])
        both = list(zip(tokens, types, strict=True))
        types = [int(BYTE) if _is_byte(token) and kind == NORMAL else kind for token, kind in both]
        # llama.cpp looks for these in the text itself, before it marks spaces.
        tokens = [token.replace(SPACE, " ") if kind == USER else token for token, kind in both]
        return Vocabulary("llama", "default", tokens, types, scores=scores, space_prefix=_has_space_prefix(content))
    raise InputError(
        f"GGUF: a BPE vocabulary of neither bytes nor SentencePiece (pre_tokenizer "
        f"{json.dumps(content['pre_tokenizer'])[:80]}) is not written here; {REMEDY}"
    )


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int, end: int | None) -> None:
    """Write the vocabulary, the special tokens, and the chat template.

    Args:
        writer: of the file.
        tokenizer: of the model.
        rows: of the model's embedding.
        end: the token with which the chat template ends a turn.
    """
    found = vocabulary_of(tokenizer, rows)
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.types)
    if found.scores is not None:
        writer.add_token_scores(found.scores)
    if found.merges is not None:
        writer.add_token_merges(found.merges)
    if found.space_prefix is not None:
        writer.add_add_space_prefix(found.space_prefix)
    for id_, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
        (end if end != tokenizer.eos_token_id else None, writer.add_eot_token_id),
    ):
        if id_ is not None:
            add(id_)
    plain, ids = (tokenizer("x", add_special_tokens=added)["input_ids"] for added in (False, True))
    writer.add_add_bos_token(len(ids) > len(plain) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(len(ids) > len(plain) and ids[-1] == tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(str(tokenizer.chat_template))


def _tokens(tokenizer: PreTrainedTokenizerBase, content: Mapping, rows: int) -> tuple[list[str], list[int]]:
    """Return the text and the type of each id; ids without a token are unused."""
    vocabulary = tokenizer.get_vocab()
    if (last := max(vocabulary.values())) >= rows:
        raise InputError(f"GGUF: the tokenizer has the id {last}, and the model's embedding only {rows} rows")
    added = {token["id"]: token for token in content["added_tokens"]}
    texts = {id_: text for text, id_ in vocabulary.items()}
    tokens, types = [], []
    for id_ in range(rows):
        tokens.append(texts.get(id_, f"[PAD{id_}]"))
        if id_ not in texts:
            types.append(UNUSED)
        elif id_ == tokenizer.unk_token_id:
            types.append(UNKNOWN)
        elif id_ in added:
            types.append(CONTROL if added[id_]["special"] else USER)
        else:
            types.append(NORMAL)
    return tokens, [int(kind) for kind in types]


def _split_name(content: Mapping) -> str:
    """Return llama.cpp's name of how a byte-level tokenizer splits text.

    Raises:
        InputError: it has none that is known here.
    """
    given, ignores = content["pre_tokenizer"], bool(content["model"].get("ignore_merges"))
    parts = given["pretokenizers"] if given["type"] == "Sequence" else [given]
    kinds = [part["type"] for part in parts]
    shown = json.dumps(given, ensure_ascii=False)
    if parts[-1].get("add_prefix_space"):
        raise InputError(f"GGUF: a byte-level tokenizer that adds a space before a text has no name; {REMEDY}")
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] and parts[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not parts[1].get("use_regex", True) and parts[0]["behavior"] == "Isolated":
        expression = parts[0]["pattern"].get("Regex")
        for name, known in _known_splits().items():
            if known == expression and not parts[0]["invert"]:
                return name if ignores or name not in WITH_MERGES else WITH_MERGES[name]
    raise InputError(f"GGUF: no name is known for how the tokenizer splits text: {shown[:200]}; {REMEDY}")


def _known_splits() -> dict[str, str]:
    """Return llama.cpp's name -> the regular expression."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as splits
    except ImportError:
        # Of a transformers whose own reader does not know them either.
        return {}
    return {name: splits[name] for name in SPLIT_NAMES if name in splits}


def _pairs(model: Mapping) -> list[tuple[str, str]]:
    """Return the merges, which older files hold as texts with a space."""
    return [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]


def _kinds(part: Any) -> set[str]:
    """Return the types of a part of a tokenizer, and of what it consists of."""
    if part is None:
        return set()
    inner = [each for key in ("pretokenizers", "normalizers") for each in part.get(key, ())]
    return {part["type"]}.union(*map(_kinds, inner))


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(tokens: Sequence[str], pairs: Sequence[tuple[str, str]], vocabulary: Mapping[str, int]) -> list[float]:
    """Return the score of each token: the earlier its first merge, the higher.

    Raises:
        InputError: merges are not in an order of scores, so that llama.cpp would merge otherwise.
    """
    first: dict[str, int] = {}
    latest = ""
    for rank, (left, right) in enumerate(pairs):
        whole = left + right
        if whole in first and whole != latest:
            raise InputError(
                f"GGUF: the tokenizer's merges are not in an order of scores (at {whole!r}), as SentencePiece's are; "
                f"{REMEDY}"
            )
        first.setdefault(whole, rank)
        latest = whole
    # Tokens that no merge gives are characters, bytes and special tokens: llama.cpp compares no score of theirs.
    ids = {id_: text for text, id_ in vocabulary.items()}
    return [float(-first[ids[id_]]) if ids.get(id_) in first else float(-len(pairs)) for id_ in range(len(tokens))]


def _has_space_prefix(content: Mapping) -> bool:
    """Return whether SentencePiece's mark is put before a text."""
    before = content["pre_tokenizer"]
    scheme = before.get("prepend_scheme") if before is not None and before["type"] == "Metaspace" else None
    return "Prepend" in _kinds(content["normalizer"]) or scheme in ("first", "always")
