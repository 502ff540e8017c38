"""Reductions over the rows of a head product in one launch each, without a tensor of float32 logits.

A function per formula. Each is a custom operator of PyTorch (`tokenuq::...`), so that it has a shape on fake tensors,
counts as one operation under a dispatch mode, and runs inside `torch.compile`. Gradients replace the product that they
are the gradient of.

To fuse another formula: a kernel in `triton_kernels.py`, and a function here that launches it.

Written by hand, not by `torch.compile` of `formulas.py`: the compiler does not write a gradient in the place of the
logits, and compiles again for each number of rows. Liger's kernels for the same cross-entropy and KL take no bias,
soft-cap and weights per row together, and give no entropy or rank.

Imports Triton at the first launch, not before.

Shapes: C rows of a product, V vocabulary, K samples.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tokenuq_ml.kernels.head import Head, accumulation_dtype
from tokenuq_ml.kernels.launching import block_size, launch, power_of_two_from


class RowStatistics(NamedTuple):
    """What one pass over each row of a product gives; all but the first two are 0 without labels."""

    lse_C: Tensor
    """Log-sum-exp of the logits."""
    entropy_C: Tensor
    loss_C: Tensor
    """Cross-entropy of the label in nats."""
    rank_C: Tensor
    """int32: the number of ids that are likelier than the label."""
    is_top1_C: Tensor
    """Whether the label is the likeliest id; of several likeliest ones, the first counts."""


def row_statistics(
    product_CV: Tensor, head: Head, label_C: Tensor | None = None, columns: int | None = None, temperature: float = 1.0
) -> RowStatistics:
    """Return the statistics of each row's distribution.

    Args:
        product_CV: product with the head.
        head: its bias, scale and soft-cap.
        label_C: ids of the tokens.
        columns: how many of the first ids the distribution is over; default: all.
        temperature: divides the logits.
    """
    columns = product_CV.shape[1] if columns is None else columns
    values = _row_statistics(product_CV, head.bias_V, label_C, head.scale, head.softcap or 0.0, columns, temperature)
    return RowStatistics(*values)


def softmax_gradient(
    product_CV: Tensor, head: Head, lse_C: Tensor, label_C: Tensor | None = None, weight_C: Tensor | None = None
) -> None:
    """Replace a product by the gradient of `weight * cross-entropy`; without labels, of `weight * log-sum-exp`.

    Args:
        product_CV: product with the head; overwritten.
        head: its bias, scale and soft-cap.
        lse_C: log-sum-exp of its rows.
        label_C: ids of the tokens.
        weight_C: factor of each row; default: 1. Rows with 0 get a gradient of 0.
    """
    _softmax_gradient(product_CV, head.bias_V, lse_C, label_C, weight_C, head.scale, head.softcap or 0.0)


class Student(NamedTuple):
    """A student's product, and what is known of its rows."""

    product_CV: Tensor
    head: Head
    label_C: Tensor
    lse_C: Tensor


def forward_kl_gradient(
    student: Student,
    teacher_CV: Tensor,
    teacher_head: Head,
    distill_C: Tensor,
    mle_C: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Return `KL(teacher || student)`, and replace the student's product by the gradient of `mle * CE + distill * KL`.

    Costs one pass for the teacher's log-sum-exp, a further one for the student's if the temperature is not 1 or the
    vocabularies differ, and one for both products.

    Args:
        student: its product is overwritten.
        teacher_CV: the teacher's product with its head; may have another number of ids, of which both have the first.
        teacher_head: bias, scale and soft-cap of the teacher.
        distill_C: factor of each row's divergence.
        mle_C: factor of each row's cross-entropy; None: no cross-entropy.
        temperature: divides both logits in the divergence.
    """
    columns = student.product_CV.shape[1]
    common = min(columns, teacher_CV.shape[1])
    teacher_lse_C = row_statistics(teacher_CV, teacher_head, None, common, temperature).lse_C
    lse_at_t_C = student.lse_C
    if temperature != 1.0 or common != columns:
        lse_at_t_C = row_statistics(student.product_CV, student.head, None, common, temperature).lse_C
    return _forward_kl_gradient(
        student.product_CV,
        student.head.bias_V,
        student.lse_C,
        teacher_CV,
        teacher_head.bias_V,
        teacher_lse_C,
        lse_at_t_C,
        student.label_C,
        mle_C,
        distill_C,
        [student.head.scale, student.head.softcap or 0.0, teacher_head.scale, teacher_head.softcap or 0.0, temperature],
    )


def monte_carlo(product_KCV: Tensor, head: Head, label_C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the statistics of K samples of each token's distribution, as `formulas.monte_carlo` does.

    Two passes over the products: log-sum-exps, then everything else.

    Args:
        product_KCV: products with the head, contiguous.
        head: its bias, scale and soft-cap.
        label_C: ids of the tokens.
    """
    lse_C = row_statistics(product_KCV.flatten(0, 1), head).lse_C
    return _monte_carlo(product_KCV, head.bias_V, lse_C, label_C, head.scale, head.softcap or 0.0)


# The operators. Numbers without a tensor are part of the compiled kernel, because they are those of a model.


@torch.library.custom_op("tokenuq::row_statistics", mutates_args=())
def _row_statistics(
    product: Tensor,
    bias: Tensor | None,
    label: Tensor | None,
    scale: float,
    softcap: float,
    columns: int,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    outputs = _row_outputs(product)
    lse, entropy, loss, rank, is_top1 = outputs
    arguments = (product, product.stride(0), bias, label, lse, loss, entropy, rank, is_top1)
    constants = {"COLUMNS": columns, "SCALE": scale, "SOFTCAP": softcap, "TEMPERATURE": temperature}
    launch("row_statistics", (len(product),), product, arguments, constants | {"BLOCK": block_size(columns)})
    return outputs


@_row_statistics.register_fake
def _(
    product: Tensor,
    bias: Tensor | None,
    label: Tensor | None,
    scale: float,
    softcap: float,
    columns: int,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _row_outputs(product)


def _row_outputs(product: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, dtype = len(product), accumulation_dtype(product)
    numbers = (product.new_empty(rows, dtype=dtype) for _ in range(2))
    of_label = (product.new_zeros(rows, dtype=kind) for kind in (dtype, torch.int32, torch.bool))
    return (*numbers, *of_label)  # type: ignore[return-value]


@torch.library.custom_op("tokenuq::softmax_gradient", mutates_args=("product",))
def _softmax_gradient(
    product: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    label: Tensor | None,
    weight: Tensor | None,
    scale: float,
    softcap: float,
) -> None:
    columns, block = product.shape[1], block_size(product.shape[1])
    constants = {"COLUMNS": columns, "SCALE": scale, "SOFTCAP": softcap, "BLOCK": block}
    grid = (len(product), -(-columns // block))
    arguments = (product, product.stride(0), bias, lse, label, weight)
    launch("softmax_gradient", grid, product, arguments, constants)


@_softmax_gradient.register_fake
def _(
    product: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    label: Tensor | None,
    weight: Tensor | None,
    scale: float,
    softcap: float,
) -> None:
    return None


@torch.library.custom_op("tokenuq::forward_kl_gradient", mutates_args=("product",))
def _forward_kl_gradient(
    product: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    teacher: Tensor,
    teacher_bias: Tensor | None,
    teacher_lse: Tensor,
    lse_at_t: Tensor,
    label: Tensor,
    mle: Tensor | None,
    distill: Tensor,
    constants: list[float],
) -> Tensor:
    columns, common = product.shape[1], min(product.shape[1], teacher.shape[1])
    divergence = torch.empty_like(lse)
    own = (product, product.stride(0), bias, lse)
    theirs = (teacher, teacher.stride(0), teacher_bias, teacher_lse, lse_at_t)
    arguments = (*own, *theirs, label, mle, distill, divergence)
    names = ("SCALE", "SOFTCAP", "TEACHER_SCALE", "TEACHER_SOFTCAP", "TEMPERATURE")
    settings = dict(zip(names, constants, strict=True)) | {"COLUMNS": columns, "COMMON": common}
    launch("forward_kl_gradient", (len(product),), product, arguments, settings | {"BLOCK": block_size(columns, 2)})
    return divergence


@_forward_kl_gradient.register_fake
def _(
    product: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    teacher: Tensor,
    teacher_bias: Tensor | None,
    teacher_lse: Tensor,
    lse_at_t: Tensor,
    label: Tensor,
    mle: Tensor | None,
    distill: Tensor,
    constants: list[float],
) -> Tensor:
    return torch.empty_like(lse)


@torch.library.custom_op("tokenuq::monte_carlo", mutates_args=())
def _monte_carlo(
    product: Tensor, bias: Tensor | None, lse: Tensor, label: Tensor, scale: float, softcap: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    samples, rows, columns = product.shape
    outputs = _sample_outputs(product)
    arguments = (product, product.stride(0), product.stride(1), bias, lse, label, *outputs, rows, samples)
    padded = power_of_two_from(samples)
    constants = {
        "COLUMNS": columns,
        "SCALE": scale,
        "SOFTCAP": softcap,
        "TINY": torch.finfo(outputs[0].dtype).tiny,
        "SAMPLES": padded,
    } | {"BLOCK": block_size(columns, padded)}
    launch("monte_carlo", (rows,), product, arguments, constants)
    return outputs


@_monte_carlo.register_fake
def _(
    product: Tensor, bias: Tensor | None, lse: Tensor, label: Tensor, scale: float, softcap: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _sample_outputs(product)


def _sample_outputs(product: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, dtype = product.shape[1], accumulation_dtype(product)
    return tuple(product.new_empty(rows, dtype=dtype) for _ in range(5))  # type: ignore[return-value]
