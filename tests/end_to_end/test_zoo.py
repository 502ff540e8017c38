"""Every causal language model of the installed transformers, as a tiny random model, is right, refused or not built.

Right: token losses and entropies of a padded batch, and loss and gradients of a training step, are those of the model's
own forward pass on each text alone.
"""

import pytest
import transformers
from huggingface_hub.errors import StrictDataclassError

from tests.support.zoo import KINDS, NOT_BUILT, tiny_zoo_model
from tests.support.zoo_outcomes import outcome_of
from tests.support.zoo_page import section_of_page, zoo_section
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.gate import output_path

AT_LEAST_RIGHT = 112
FEW = ("llama", "gemma2", "gpt2", "mamba", "falcon_h1", "modernbert-decoder", "deepseek_v32", "mixtral", "xlnet")
"""Rotary and learned positions, a soft cap, a state space, a multiplier, a head with a dense layer, sparse attention,
experts, and a model that is refused."""
OTHERS = [kind for kind in KINDS if kind not in FEW]
EACH_TIME = OTHERS[::10]
"""Those that `make test` looks at; `make test-heavy` looks at all."""


@pytest.mark.parametrize("kind", FEW)
def test_a_few_are_right_or_refused(kind):
    assert outcome_of(kind).outcome == ("refused" if kind == "xlnet" else "right")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [kind if kind in EACH_TIME else pytest.param(kind, marks=pytest.mark.heavy) for kind in OTHERS]
)
def test_each_is_right_refused_or_not_built(kind):
    found = outcome_of(kind)
    assert found.outcome == "right" or found.reason


@pytest.mark.heavy
def test_at_least_112_are_right():
    """Also the page lists what became of each, for the version that it names."""
    outcomes = {kind: outcome_of(kind) for kind in KINDS}
    assert sum(found.outcome == "right" for found in outcomes.values()) >= AT_LEAST_RIGHT
    if f"transformers {transformers.__version__} " in section_of_page():
        assert section_of_page() == zoo_section(outcomes), "run `python -m tests.support.zoo_page`"


@pytest.mark.parametrize("kind", [kind for kind in NOT_BUILT if kind != "gemma3n"])
def test_some_cannot_be_built(kind):
    """Or are refused: later versions of transformers build some of them."""
    with pytest.raises((AttributeError, ValueError, StrictDataclassError, InputError)):
        output_path(tiny_zoo_model(kind))


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "roformer"])
def test_encoders_that_see_later_tokens_are_refused(kind):
    with pytest.raises(InputError, match="attends to earlier tokens only"):
        output_path(tiny_zoo_model(kind, is_decoder=False))
