"""Plans of evaluations that ask the model or a judge."""

from types import SimpleNamespace

import pytest

from tests.support.tiny_plans import CONFIG, tiny_planner
from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.config.lm_eval import LmEvalSpec
from tokenuq_ml.costs import generated
from tokenuq_ml.costs.generated import CHOICES, IFBENCH_PROMPTS, IFBENCH_TOKENS, LM_EVAL_TOKENS, judge_requests
from tokenuq_ml.evaluation import ifbench


def test_every_evaluation_that_asks_the_model_is_planned():
    judge = {"base_url": "http://localhost:8000/v1", "model": "judge"}
    pairwise = {"dataset": "alpaca_eval_gpt4", "versus": "mle", "judge": judge, "max_new_tokens": 10}
    ablations = ("mle", "paper_top25", "masked_mle_top25")
    none = tiny_planner(ablations=ablations, evaluation=EvaluationSpec())
    spec = EvaluationSpec(pairwise=pairwise, ifbench={"limit": 5, "max_new_tokens": 7}, lm_eval={"tasks": ["arc_easy"]})
    plan = tiny_planner(ablations=ablations, evaluation=spec)
    of_pairs, of_ifbench = plan.generated_evaluations
    answers = of_pairs.prompts * (of_pairs.prompt_tokens + 10)
    instructions = 5 * (of_ifbench.prompt_tokens + 7)
    more = plan.work("evaluation", "mle").tokens - none.work("evaluation", "mle").tokens
    assert more == pytest.approx(answers + instructions)
    # Base model and teacher are not judged, so they do not answer either.
    more = plan.work("reference_evaluation").tokens - none.work("reference_evaluation").tokens
    assert more == pytest.approx(2 * instructions)
    assert judge_requests(CONFIG, plan.study) == {"pairwise comparison": 2 * of_pairs.prompts * 2}
    bounded = spec.model_copy(update={"lm_eval": LmEvalSpec(tasks=("arc_easy", "mmlu_pro"), limit=10)})
    choices, texts = tiny_planner(evaluation=bounded).generated_evaluations[2:]
    assert (choices.name, choices.prompts, choices.new_tokens) == ("lm-eval arc_easy", 40, 0)
    assert (texts.name, texts.prompts, texts.new_tokens) == ("lm-eval mmlu_pro", 140, 2048)


def test_tasks_of_a_group_may_have_prompts_of_different_lengths(monkeypatch):
    tasks = [
        SimpleNamespace(config={"output_type": "multiple_choice", "num_fewshot": 3}),
        SimpleNamespace(config={"output_type": "loglikelihood", "num_fewshot": 1}),
    ]
    monkeypatch.setattr(generated, "resolve_all", lambda names: [SimpleNamespace(name="group", tasks=tasks)])
    spec = EvaluationSpec(lm_eval=LmEvalSpec(tasks=("group",), limit=10))
    (requests,) = tiny_planner(evaluation=spec).generated_evaluations
    assert requests.prompts == 10 * (CHOICES + 1)
    # A prompt is the sample and its examples: of 1 + 3 samples and of 1 + 1.
    assert requests.prompt_tokens == pytest.approx(LM_EVAL_TOKENS * (CHOICES * 4 + 2) / (CHOICES + 1))


def test_ifbench_has_as_many_prompts_as_its_package():
    prompts = ifbench.load_prompts()
    assert len(prompts.asked) + len(prompts.left_out) == IFBENCH_PROMPTS
    mean = sum(len(one.example.messages[0]["content"]) for one in prompts.asked) / len(prompts.asked)
    assert mean / 4 == pytest.approx(IFBENCH_TOKENS, abs=1)
