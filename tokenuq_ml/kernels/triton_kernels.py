"""Triton kernels that reduce rows of logits while they are in a head product, and write gradients in its place.

Each reads the product in the head's dtype and sums in `SUM`, float32 (float64 for a float64 head). Bias, scale and
soft-cap of the head are applied to what is read, so that no tensor of float32 logits exists. `fused.py` and
`fused_random.py` have the functions that launch them, through `launching.py`, the only module that imports this one.

Shapes: C rows of a product, V vocabulary, K samples.
"""

import triton
import triton.language as tl


@triton.jit
def _capped(z, SOFTCAP: tl.constexpr):
    """Return `SOFTCAP * tanh(z / SOFTCAP)`; the device's library of functions is not in the interpreter."""
    e = tl.exp(-2.0 * tl.abs(z / SOFTCAP))
    return SOFTCAP * tl.where(z < 0, -1.0, 1.0) * (1.0 - e) / (1.0 + e)


@triton.jit
def _logits(row, bias, offsets, mask, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, SUM: tl.constexpr):
    """Return the logits of some ids of a row, as `Head.finish` does."""
    z = tl.load(row + offsets, mask=mask, other=0.0).to(SUM)
    if bias is not None:
        z += tl.load(bias + offsets, mask=mask, other=0.0).to(SUM)
    if SCALE != 1.0:
        z *= SCALE
    if SOFTCAP != 0.0:
        z = _capped(z, SOFTCAP)
    return z


@triton.jit
def _slope(z, SCALE: tl.constexpr, SOFTCAP: tl.constexpr):
    """Return the derivative of the logits with respect to the product."""
    slope = tl.full(z.shape, SCALE, z.dtype)
    if SOFTCAP != 0.0:
        slope *= 1.0 - (z / SOFTCAP) * (z / SOFTCAP)
    return slope


@triton.jit
def row_statistics(
    product, stride, bias, label, lse, loss, entropy, rank, is_top1,
    COLUMNS: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, TEMPERATURE: tl.constexpr,
    SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Reduce one row in one pass: a running maximum, and sums that are rescaled when it grows."""
    c = tl.program_id(0).to(tl.int64)
    row = product + c * stride
    lanes = tl.arange(0, BLOCK)
    top = tl.full((), -1e30, SUM)
    total = tl.zeros((BLOCK,), SUM)
    shifted = tl.zeros((BLOCK,), SUM)
    if label is not None:
        y = tl.load(label + c)
        z_label = _logits(row, bias, y, y >= 0, SCALE, SOFTCAP, SUM) / TEMPERATURE
        above = tl.zeros((BLOCK,), tl.int32)
        before = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, COLUMNS, BLOCK):
        offsets = start + lanes
        mask = offsets < COLUMNS
        z = _logits(row, bias, offsets, mask, SCALE, SOFTCAP, SUM) / TEMPERATURE
        z = tl.where(mask, z, -1e30)
        higher = tl.maximum(top, tl.max(z, 0))
        alpha = tl.exp(top - higher)
        e = tl.where(mask, tl.exp(z - higher), 0.0)
        # With the maximum at 0, both terms of the entropy are positive, so nothing cancels.
        shifted = alpha * (shifted + (top - higher) * total) + e * tl.where(e > 0, z - higher, 0.0)
        total = alpha * total + e
        top = higher
        if label is not None:
            above += (mask & (z > z_label)).to(tl.int32)
            before += (mask & (z == z_label) & (offsets < y)).to(tl.int32)
    sum_e = tl.sum(total, 0)
    log_sum = tl.log(sum_e)
    tl.store(lse + c, top + log_sum)
    tl.store(entropy + c, log_sum - tl.sum(shifted, 0) / sum_e)
    if label is not None:
        tl.store(loss + c, log_sum - (z_label - top))
        tl.store(rank + c, tl.sum(above, 0))
        tl.store(is_top1 + c, tl.sum(above, 0) + tl.sum(before, 0) == 0)


@triton.jit
def softmax_gradient(
    product, stride, bias, lse, label, weight,
    COLUMNS: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Replace a part of a row by `weight * (p - onehot(label))`, times the slope of the logits."""
    c = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < COLUMNS
    row = product + c * stride
    z = _logits(row, bias, offsets, mask, SCALE, SOFTCAP, SUM)
    grad = tl.exp(z - tl.load(lse + c))
    if label is not None:
        grad -= (offsets == tl.load(label + c)).to(SUM)
    grad *= _slope(z, SCALE, SOFTCAP)
    if weight is not None:
        w = tl.load(weight + c).to(SUM)
        # A row that counts nothing gets 0, also where its logits are not finite.
        grad = tl.where(w != 0, grad * w, 0.0)
    tl.store(row + offsets, grad.to(product.dtype.element_ty), mask=mask)


@triton.jit
def forward_kl_gradient(
    product, stride, bias, lse, teacher, teacher_stride, teacher_bias, teacher_lse, lse_at_t,
    label, mle, distill, divergence,
    COLUMNS: tl.constexpr, COMMON: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
    TEACHER_SCALE: tl.constexpr, TEACHER_SOFTCAP: tl.constexpr, TEMPERATURE: tl.constexpr,
    SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum `KL(teacher || student)` of a row, and replace the row by the gradient of `mle * CE + distill * KL`.

    The divergence is over the first `COMMON` ids, which both vocabularies have, at `TEMPERATURE`.
    """
    c = tl.program_id(0).to(tl.int64)
    row = product + c * stride
    teacher_row = teacher + c * teacher_stride
    lanes = tl.arange(0, BLOCK)
    own_lse = tl.load(lse_at_t + c)
    their_lse = tl.load(teacher_lse + c)
    w = tl.load(distill + c).to(SUM)
    kl = tl.zeros((BLOCK,), SUM)
    if mle is not None:
        w_mle = tl.load(mle + c).to(SUM)
        lse_1 = tl.load(lse + c)
        y = tl.load(label + c)
    for start in range(0, COLUMNS, BLOCK):
        offsets = start + lanes
        mask = offsets < COLUMNS
        shared = offsets < COMMON
        z = _logits(row, bias, offsets, mask, SCALE, SOFTCAP, SUM)
        t = _logits(teacher_row, teacher_bias, offsets, shared, TEACHER_SCALE, TEACHER_SOFTCAP, SUM)
        logp = z / TEMPERATURE - own_lse
        logq = t / TEMPERATURE - their_lse
        q = tl.where(shared, tl.exp(logq), 0.0)
        p = tl.where(shared, tl.exp(logp), 0.0)
        kl += tl.where(q > 0, q * (logq - logp), 0.0)
        grad = tl.where(w != 0, w * (p - q) / TEMPERATURE, 0.0)
        if mle is not None:
            ce = tl.exp(z - lse_1) - (offsets == y).to(SUM)
            grad += tl.where(w_mle != 0, w_mle * ce, 0.0)
        grad *= _slope(z, SCALE, SOFTCAP)
        tl.store(row + offsets, grad.to(product.dtype.element_ty), mask=mask)
    tl.store(divergence + c, tl.sum(kl, 0))


@triton.jit
def monte_carlo(
    product, sample_stride, stride, bias, lse, label, predictive, expected, bald, std_error, mc_loss,
    rows, samples,
    COLUMNS: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, TINY: tl.constexpr,
    SAMPLES: tl.constexpr, SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Reduce the K samples of one token, as `formulas.monte_carlo` does, in one pass after their log-sum-exps.

    `SAMPLES` is K, rounded up to a power of two.
    """
    c = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, SAMPLES).to(tl.int64)[:, None]
    is_sample = k < samples
    lse_k = tl.load(lse + k * rows + c, mask=is_sample, other=0.0)
    y = tl.load(label + c)
    kl = tl.zeros((SAMPLES,), SUM)
    entropy = tl.zeros((), SUM)
    log_label = tl.zeros((), SUM)
    for start in range(0, COLUMNS, BLOCK):
        offsets = start + tl.arange(0, BLOCK)[None, :]
        in_row = offsets < COLUMNS
        mask = is_sample & in_row
        row = product + k * sample_stride + c * stride
        z = tl.load(row + offsets, mask=mask, other=0.0).to(SUM)
        if bias is not None:
            z += tl.load(bias + offsets, mask=in_row, other=0.0).to(SUM)
        if SCALE != 1.0:
            z *= SCALE
        if SOFTCAP != 0.0:
            z = _capped(z, SOFTCAP)
        logp = z - lse_k
        p = tl.where(mask, tl.exp(logp), 0.0)
        mean = tl.sum(p, 0)[None, :] / samples
        # If every sample's p rounds to 0, so do its terms; the bound only keeps the logarithm finite.
        log_mean = tl.log(tl.maximum(mean, TINY))
        kl += tl.sum(tl.where(p > 0, p * (logp - log_mean), 0.0), 1)
        entropy -= tl.sum(tl.where(in_row, mean * log_mean, 0.0))
        log_label += tl.sum(tl.where(in_row & (offsets == y), log_mean, 0.0))
    mean_kl = tl.sum(kl, 0) / samples
    deviation = tl.where(tl.arange(0, SAMPLES) < samples, kl - mean_kl, 0.0)
    variance = tl.sum(deviation * deviation, 0) / (samples - 1)
    least = tl.maximum(mean_kl, 0.0)
    tl.store(predictive + c, entropy)
    tl.store(bald + c, least)
    tl.store(expected + c, tl.maximum(entropy - least, 0.0))
    tl.store(std_error + c, tl.sqrt(variance * samples) / (samples - 1))
    tl.store(mc_loss + c, -log_label)


@triton.jit(do_not_specialize=["word_1", "word_2", "word_3"])
def philox_words(words, keys, word_1, word_2, word_3, blocks, BLOCK: tl.constexpr):
    """Write outputs of Philox4x64-10: four words per counter, whose lowest word counts from 1."""
    b = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    zero = tl.zeros((BLOCK,), tl.uint64)
    key_0 = tl.load(keys + 2 * b).to(tl.uint64) + zero
    key_1 = tl.load(keys + 2 * b + 1).to(tl.uint64) + zero
    c1, c2, c3 = word_1.to(tl.uint64) + zero, word_2.to(tl.uint64) + zero, word_3.to(tl.uint64) + zero
    c0, c1, c2, c3 = tl.philox_impl((n + 1).to(tl.uint64), c1, c2, c3, key_0, key_1)
    out = words + (b * blocks + n) * 4
    mask = n < blocks
    tl.store(out, c0.to(tl.int64), mask=mask)
    tl.store(out + 1, c1.to(tl.int64), mask=mask)
    tl.store(out + 2, c2.to(tl.int64), mask=mask)
    tl.store(out + 3, c3.to(tl.int64), mask=mask)


@triton.jit
def _keep_part(out, x, onto, draw, start, elements, DROPPED: tl.constexpr, SUM: tl.constexpr, BLOCK: tl.constexpr):
    """Write the elements whose draws, the lower fifteen bits of `draw`, are not among the dropped values."""
    n = start + tl.arange(0, BLOCK)
    mask = n < elements
    value = tl.where((draw & 0x7FFF) >= DROPPED, tl.load(x + n, mask=mask, other=0.0).to(SUM), 0.0)
    if onto is not None:
        value += tl.load(onto + n, mask=mask, other=0.0).to(SUM)
    tl.store(out + n, value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["seed"])
def drop_elements(out, x, onto, seed, elements, DROPPED: tl.constexpr, SUM: tl.constexpr, BLOCK: tl.constexpr):
    """Write `onto` plus the kept elements of `x`. Each word of Philox4x32-10 decides two elements, `BLOCK` apart."""
    program = tl.program_id(0)
    a, b, c, d = tl.randint4x(seed, program * BLOCK + tl.arange(0, BLOCK))
    start = program.to(tl.int64) * (8 * BLOCK)
    _keep_part(out, x, onto, a, start, elements, DROPPED, SUM, BLOCK)
    _keep_part(out, x, onto, a >> 16, start + BLOCK, elements, DROPPED, SUM, BLOCK)
    _keep_part(out, x, onto, b, start + 2 * BLOCK, elements, DROPPED, SUM, BLOCK)
    _keep_part(out, x, onto, b >> 16, start + 3 * BLOCK, elements, DROPPED, SUM, BLOCK)
    _keep_part(out, x, onto, c, start + 4 * BLOCK, elements, DROPPED, SUM, BLOCK)
    _keep_part(out, x, onto, c >> 16, start + 5 * BLOCK, elements, DROPPED, SUM, BLOCK)
    _keep_part(out, x, onto, d, start + 6 * BLOCK, elements, DROPPED, SUM, BLOCK)
    _keep_part(out, x, onto, d >> 16, start + 7 * BLOCK, elements, DROPPED, SUM, BLOCK)
