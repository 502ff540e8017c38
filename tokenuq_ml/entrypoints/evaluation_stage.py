"""What reference and student evaluation share: one model, every metric of the study, its tables.

Knows which metrics a study asks for; does not know whose model it is.
"""

import polars as pl
from transformers import PreTrainedModel

from tokenuq_ml.batching import TokenizedExample
from tokenuq_ml.evaluation.generation import generate
from tokenuq_ml.evaluation.held_out import held_out_examples
from tokenuq_ml.evaluation.ifeval import check, ifeval_examples
from tokenuq_ml.evaluation.metrics import metric_rows, with_identity
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
    """Fill the outputs `evaluations`, `evaluation_examples`, `evaluation_tokens` and, with IF-Eval, `generations`.

    Their names end in `suffix`.

    Evaluates the model as it stands (its active adapter, or none). Returns the content
    digest and the metrics as `<dataset>_<metric>`.
    """
    spec = EvaluationSpec(**asset.fields["evaluation"])
    held_out = [example for example in examples if example.split in ("test", "ood")]
    progress = Progress(reporter, f"{name} loss", sum(len(example.input_ids) for example in held_out), "tokens")
    tokens = score_examples(model, held_out, numerics, progress.add)
    frames = [held_out_examples(tokens)]
    tables = {"evaluation_tokens": tokens.select("example_id", "position", "loss", "entropy")}
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
        tables["generations"] = check(prompts, texts).with_columns(
            n_tokens=pl.Series([len(ids) for ids in answers], dtype=pl.Int32)
        )
        frames.append(ifeval_examples(tables["generations"], spec.ifeval.dataset))
    tables["evaluation_examples"] = pl.concat(frames)
    metrics = metric_rows(tables["evaluation_examples"], spec)
    tables["evaluations"] = with_identity(metrics, family, seed)
    digests = [
        write_table(frame, table, asset.outputs[f"{table}{suffix}"], **asset.stamp) for table, frame in tables.items()
    ]
    return joined_digest(*digests), {f"{r['dataset']}_{r['metric']}": r["value"] for r in metrics.iter_rows(named=True)}
