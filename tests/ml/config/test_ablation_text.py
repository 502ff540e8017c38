"""An ablation as one sentence: sums and settings included."""

import pytest

from tokenuq_ml.config import AblationSpec
from tokenuq_ml.config.ablation_text import ablation_sentence


@pytest.mark.parametrize(
    ("selected", "said"),
    [
        ("mle", "trained by mle"),
        ({"focal": {"gamma": 1}}, "trained by focal (gamma 1)"),
        ("distill", "forward_kl to the baseline teacher, temperature 1"),
        ({"distill": {"top_k": 8}}, "forward_kl to the baseline teacher, temperature 1, its 8 likeliest tokens"),
        (
            {"power": {"exponent": 2}, "distill": {"teacher": "base", "weight": 0.1}},
            "trained by power (exponent 2) and 0.1 x forward_kl to the base teacher, temperature 1",
        ),
    ],
)
def test_the_sentence_says_how_tokens_are_trained(selected, said):
    assert ablation_sentence(AblationSpec(name="a", select="all", selected=selected)) == (
        f"Every response token: {said}; seed 0."
    )
    part = AblationSpec(name="a", select={"by": "loss", "quantile": 0.1}, selected=selected, rest={"forget": {}})
    assert ablation_sentence(part) == (
        f"The top 10% of tokens by loss (dynamic, per batch): {said}; the rest: trained by forget; seed 0."
    )
