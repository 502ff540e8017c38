"""Does a teacher that is another model fit the student? Its vocabulary, tokenizer, dtype and weights are compared."""

from typing import Any

import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel

from tokenuq_ml.errors import InputError
from tokenuq_ml.models.forward import causal_lm, head_of


def check_teacher_fits(
    teacher: PreTrainedModel | PeftModel,
    student: PreTrainedModel | PeftModel,
    teacher_tokenizer: Any = None,
    student_tokenizer: Any = None,
    passes: torch.dtype | None = None,
) -> None:
    """Check that distributions of the teacher can be compared with the student's, id by id.

    Args:
        teacher: another model.
        student: the model that is trained.
        teacher_tokenizer: a tokenizer, or a processor that has one; None: the one in the folder or the local cache of
            the hub that the model was loaded from, if there is one.
        student_tokenizer: the same of the student.
        passes: the dtype in which both compute, by autocast; None: that of their weights.

    Raises:
        InputError: teacher and student share weights, or differ in dtype, tokenizer or (with unknown tokenizers) in
            the number of logits.
    """
    if {id(p) for p in teacher.parameters()} & {id(p) for p in student.parameters()}:
        # Also the base model that `get_peft_model` was given: PEFT adds its layers in place.
        raise InputError(
            "the teacher is a model that shares weights with the student, so it would be trained and frozen at once; "
            "leave teacher out for the model without its adapter, or load the teacher a second time"
        )
    dtypes = causal_lm(teacher).dtype, causal_lm(student).dtype
    if dtypes[0] not in (dtypes[1], passes):
        names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        raise InputError(
            f"the teacher's weights are {names[0]} and the student's {names[1]}, so their rounding would be part of "
            f"the divergence; load both in one dtype, e.g. teacher.to(torch.{names[1]})"
        )
    tokenizers = _tokenizer(teacher, teacher_tokenizer), _tokenizer(student, student_tokenizer)
    _check_vocabularies(head_of(teacher).vocabulary, head_of(student).vocabulary, *tokenizers)


def _tokenizer(model: PreTrainedModel | PeftModel, given: Any) -> Any:
    """Return the tokenizer that was given, or the one stored with the model; None if neither is known."""
    if given is not None:
        return getattr(given, "tokenizer", given)
    try:
        # Nothing is downloaded, and no code of the repository runs.
        path = causal_lm(model).name_or_path
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False) if path else None
    except (OSError, ImportError, RuntimeError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _check_vocabularies(theirs: int, ours: int, teacher_tokenizer: Any, student_tokenizer: Any) -> None:
    """Compare the tokens of every id; padding rows after them may differ in number."""
    if teacher_tokenizer is None or student_tokenizer is None:
        if theirs != ours:
            raise InputError(
                f"the teacher has {theirs} logits and the student {ours}; if they have one tokenizer and differ in "
                "padding rows only, pass it twice: SeparateTeacher(model, tokenizer=...) and the Trainer's "
                "processing_class=...; otherwise use a teacher with the student's vocabulary"
            )
        return
    their_tokens, our_tokens = teacher_tokenizer.get_vocab(), student_tokenizer.get_vocab()
    different = dict(our_tokens.items() ^ their_tokens.items())
    if different:
        token = min(different, key=different.__getitem__)
        raise InputError(
            f"the teacher's tokenizer differs from the student's in {len(different)} tokens: {token!r} is "
            f"{their_tokens.get(token, 'no token')} for the teacher and {our_tokens.get(token, 'no token')} for the "
            "student; use a teacher with the student's tokenizer, or, if the data never has these tokens, pass "
            "SeparateTeacher(model, tokenizer=...) the student's"
        )
    last = max(our_tokens.values())
    if last >= min(theirs, ours):
        raise InputError(
            f"the tokenizer has ids up to {last}, but the teacher has {theirs} logits and the student {ours}; resize "
            "the model that has too few (resize_token_embeddings)"
        )
