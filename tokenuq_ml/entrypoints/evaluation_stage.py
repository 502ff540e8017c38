"""What reference and student evaluation share: one model, every metric of the study, two tables.

Knows which metrics a study asks for; does not know whose model it is.
"""

import polars as pl
from transformers import PreTrainedModel

from tokenuq_ml.batching import TokenizedExample
from tokenuq_ml.evaluation.generation import generate
from tokenuq_ml.evaluation.held_out import held_out_metrics, with_identity
from tokenuq_ml.evaluation.ifeval import check, ifeval_metrics
from tokenuq_ml.models import Numerics
from tokenuq_ml.reporting import Progress
from tokenuq_ml.specs import EvaluationSpec
from tokenuq_ml.stages import AssetRequest, Reporter
from tokenuq_ml.tables import read_table, write_table
from tokenuq_ml.tensors import joined_digest
from tokenuq_ml.token_losses import score_examples
from tokenuq_ml.tokenization import prompt_ids


def evaluate_and_store(
    model: PreTrainedModel,
    tokenizer,
    examples: list[TokenizedExample],
    asset: AssetRequest,
    inputs: dict[str, str],
    numerics: Numerics,
    reporter: Reporter,
    *,
    family: str,
    seed: int | None,
    suffix: str,
    name: str,
) -> tuple[str, dict[str, float]]:
    """Fill the outputs `evaluations<suffix>` and, with IF-Eval, `generations<suffix>`.

    Evaluates the model as it stands (its active adapter, or none). Returns the content
    digest and the metrics as `<dataset>_<metric>`.
    """
    spec = EvaluationSpec(**asset.fields["evaluation"])
    held_out = [example for example in examples if example.split in ("test", "ood")]
    progress = Progress(reporter, f"{name} loss", sum(len(example.input_ids) for example in held_out), "tokens")
    rows = [held_out_metrics(score_examples(model, held_out, numerics, progress.add), spec)]
    digests = []
    if spec.ifeval is not None:
        prompts = read_table(inputs[f"examples/{spec.ifeval.dataset}"])
        progress = Progress(reporter, f"{name} IF-Eval", len(prompts), "prompts")
        # Base and adapter are of one dtype: plain inference, without autocast's toll on every small product.
        answers = generate(
            model,
            tokenizer,
            [prompt_ids(tokenizer, m) for m in prompts["messages"].to_list()],
            max_new_tokens=spec.ifeval.max_new_tokens,
            batch_size=spec.ifeval.batch_size,
            progress=progress.add,
        )
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
        generations = check(prompts, texts).with_columns(
            n_tokens=pl.Series([len(ids) for ids in answers], dtype=pl.Int32)
        )
        rows.append(ifeval_metrics(generations, spec.ifeval.dataset, spec))
        digests.append(write_table(generations, "generations", asset.outputs[f"generations{suffix}"], **asset.stamp))
    table = with_identity(pl.concat(rows), family, seed)
    digests.append(write_table(table, "evaluations", asset.outputs[f"evaluations{suffix}"], **asset.stamp))
    figures = {f"{row['dataset']}_{row['metric']}": row["value"] for row in table.iter_rows(named=True)}
    return joined_digest(*digests), figures
