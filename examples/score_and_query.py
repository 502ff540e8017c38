"""Score your own texts, write the token tables, and query them.

`score_tokens` returns one row per token with its loss, entropy and rank; `measure_bald` returns its uncertainty under
Monte-Carlo dropout of a LoRA adapter. The script scores three texts with a small random model, writes both results as
tables of a store, and queries the store with SQL (DuckDB) and with polars. Runs in about 10 seconds on two cores.
"""

import tempfile

import polars as pl
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from tokenuq_ml import measure_bald, score_tokens
from tokenuq_ml.data.token_categories import categorise
from tokenuq_ml.tables import TABLES, connect, scan, table_dir, write_table

TEXTS = (
    "The farmer has 12 apples and sells 5 of them.",
    "She works for 6 days every week, and rests on the seventh.",
    "def total(price, count):\n    return price * count",
)
STUDY = "my_texts"


def random_model_and_tokenizer():
    """Return a random Llama with a random LoRA adapter, and a byte-level tokenizer fitted to the texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    set_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.2, **sizes))
    # Without the random initialisation, an untrained adapter adds nothing, and its dropout has no effect.
    adapter = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(base, adapter), tokenizer


def loss_table(model, tokenizer) -> pl.DataFrame:
    """Return the rows of the table `token_losses`, with the adapter as the teacher."""
    teacher = score_tokens(model, tokenizer, TEXTS)
    with model.disable_adapter():
        base = score_tokens(model, tokenizer, TEXTS)
    parts = []
    for (text,), rows in teacher.group_by("text", maintain_order=True):
        categories = categorise(rows["token"].to_list(), [False] * len(rows))
        parts.append(rows.with_columns(example_id=pl.lit(f"texts/{text}"), category=pl.Series(categories)))
    return pl.concat(parts).with_columns(
        dataset=pl.lit("texts"), split=pl.lit("test"), base_loss=base["loss"], base_entropy=base["entropy"]
    )


def uncertainty_table(model, tokenizer) -> pl.DataFrame:
    """Return the rows of the table `token_uncertainty`, from ten samples of the dropout masks."""
    rows = measure_bald(model, tokenizer, TEXTS, samples=10, dropout=0.1)
    return rows.with_columns(example_id=pl.format("texts/{}", "text"))


def write(frame: pl.DataFrame, table: str, home: str) -> None:
    """Write the columns that belong to `table` as a partition of the store in the folder `home`."""
    columns = frame.select(TABLES[table].schema.names)
    write_table(columns, table, table_dir(home, table, study=STUDY), spec_hash="example", code_version="1")


def main() -> None:
    """Score the texts, write both tables and print two queries."""
    # Two threads would spend their time waiting for each other on tensors this small.
    torch.set_num_threads(1)
    model, tokenizer = random_model_and_tokenizer()
    with tempfile.TemporaryDirectory() as home:
        write(loss_table(model, tokenizer), "token_losses", home)
        write(uncertainty_table(model, tokenizer), "token_uncertainty", home)

        print("SQL: loss and uncertainty per token category, in nats")
        print(
            connect(home).sql(
                "SELECT category, count(*) AS tokens, round(avg(loss), 3) AS loss, round(avg(bald), 4) AS bald "
                "FROM tokens GROUP BY category ORDER BY tokens DESC, category"
            )
        )

        print("polars: the tokens with the highest BALD")
        tokens = scan("tokens", home, study=STUDY)
        print(tokens.top_k(5, by="bald").select("example_id", "position", "token", "loss", "bald").collect())


if __name__ == "__main__":
    main()
