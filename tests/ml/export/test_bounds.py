"""What counts as equal logits: rounding passes, a wrong or a lost model does not, and neither does NaN."""

import pytest
import torch

from tokenuq_ml.errors import InputError
from tokenuq_ml.export.bounds import BOUNDS, difference, require_equal, require_tokens

LOGITS = [torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 3 for _ in range(2)]
TRAINED = difference(LOGITS, [each * 1.5 for each in LOGITS])


def test_figures_are_those_of_float64_by_hand():
    found = difference(LOGITS, [each + 0.1 * each.flip(0) for each in LOGITS])
    expected, other = (torch.cat(part).double() for part in (LOGITS, [each + 0.1 * each.flip(0) for each in LOGITS]))
    gap = other - expected
    assert found.max_abs == pytest.approx(gap.abs().max().item())
    centred = [each - each.mean(1, keepdim=True) for each in (gap, expected)]
    assert found.relative == pytest.approx((centred[0].norm() / centred[1].norm()).item())
    p, q = expected.softmax(1), other.softmax(1)
    assert found.kl == pytest.approx((p * (p / q).log()).sum(1).mean().item()) and found.positions == 10


def test_a_constant_that_softmax_does_not_see_is_no_relative_difference():
    found = difference(LOGITS, [each + 5 for each in LOGITS])
    assert found.relative < 1e-6 and abs(found.kl) < 1e-6 and found.max_abs == pytest.approx(5)


@pytest.mark.parametrize("dtype", list(BOUNDS))
def test_rounding_to_a_dtype_passes_and_ten_bounds_do_not(dtype):
    rounded = difference(LOGITS, [each.to(getattr(torch, dtype)).float() for each in LOGITS])
    require_equal(rounded, TRAINED, dtype, "it")
    noise = [each + 10 * BOUNDS[dtype].relative * each.std() * torch.randn_like(each) for each in LOGITS]
    with pytest.raises(InputError, match=f"it does not give the logits .* {dtype} may differ"):
        require_equal(difference(LOGITS, noise), TRAINED, dtype, "it")


def test_a_training_that_rounding_would_lose_is_refused_in_a_narrow_dtype():
    small = difference(LOGITS, [each * 1.004 for each in LOGITS])
    rounded = difference(LOGITS, [each * 1.003 for each in LOGITS])
    with pytest.raises(InputError, match="most of the training would be lost.*use a wider --dtype"):
        require_equal(rounded, small, "bfloat16", "it")


def test_nan_is_refused():
    broken = [LOGITS[0], torch.full_like(LOGITS[1], torch.nan)]
    with pytest.raises(InputError, match="does not give the logits"):
        require_equal(difference(LOGITS, broken), TRAINED, "bfloat16", "it")
    with pytest.raises(InputError, match="not finite"):
        require_tokens(broken)
    with pytest.raises(InputError, match="no held-out example"):
        require_tokens([LOGITS[0][:0]])
