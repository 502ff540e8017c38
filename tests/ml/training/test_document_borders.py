"""`unit: document` sees the documents that share a packed row, by every mark that collators give."""

import pytest
import torch
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from tests.support.tiny_models import tiny_peft
from tokenuq_ml import TokenObjective
from tokenuq_ml.errors import InputError
from tokenuq_ml.training.token_batch import LabelledInputs

# Three documents of 4, 3 and 5 tokens, of which the first token has no label.
LENGTHS = (4, 3, 5)
LABELS = [-100, 5, 6, 7, -100, 8, 9, -100, -100, 3, 4, 5]
POSITIONS = [position for length in LENGTHS for position in range(length)]
DOCUMENTS = [0, 0, 0, 1, 1, 2, 2, 2]


def example_N(**inputs):
    batch = LabelledInputs({name: torch.tensor(value) for name, value in inputs.items()})
    return batch.example_N.tolist()


@pytest.mark.parametrize(
    "mark",
    [
        {"position_ids": [POSITIONS]},
        {"position_ids": [[POSITIONS], [POSITIONS], [POSITIONS]]},
        {"seq_idx": [[0] * 4 + [1] * 3 + [2] * 5]},
        {"cu_seq_lens_q": [0, 4, 7, 12]},
    ],
    ids=["position_ids", "positions of several kinds", "seq_idx", "cu_seq_lens_q"],
)
def test_documents_of_a_packed_row_are_told_apart(mark):
    assert example_N(labels=[LABELS], **mark) == DOCUMENTS


def test_without_a_mark_a_row_is_a_document():
    assert example_N(labels=[LABELS, LABELS]) == [0] * 8 + [1] * 8


@pytest.mark.parametrize(
    "positions, mask",
    [
        ([[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        ([[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]], None),
        ([[1, 1, 0, 1, 2], [0, 1, 2, 3, 4]], [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
        ([[0, 1, 2, 3, 4]], None),
        ([[0, 0, 0, 0, 0], [0, 1, 2, 3, 4]], [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]),
    ],
    ids=["padded right", "padded right without mask", "padded left", "one for all rows", "a row of padding"],
)
def test_of_rows_that_are_not_packed_the_number_is_the_row(positions, mask):
    labels = [[-100, -100, 7, -100, -100], [-100, 3, 4, 5, 6]]
    if positions[0][0] == 1:
        labels[0] = [-100, -100, -100, 7, -100]
    if positions[0] == [0] * 5:
        labels[0] = [-100] * 5
    given = {} if mask is None else {"attention_mask": mask}
    first = [] if labels[0] == [-100] * 5 else [0]
    assert example_N(labels=labels, position_ids=positions, **given) == [*first, 1, 1, 1, 1]


def test_packed_rows_of_a_batch_count_on_and_padding_is_no_document():
    positions = [[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 2, 3]]
    labels = [[-100, 4, 5, -100, 6, -100], [-100, 7, -100, 8, 9, 3]]
    assert example_N(labels=labels, position_ids=positions) == [0, 0, 1, 2, 3, 3, 3]


class MyTrainer(TokenObjective, Trainer):
    """A Trainer that keeps what was selected."""

    selected = None

    def record(self, batch, out, tokens_of_step):
        self.selected, self.loss_N = out.selected_N.tolist(), out.loss_N
        self.packed = batch.model_inputs


def packed_trainer(folder, kind=MyTrainer, unit="document", by="loss", **flattening):
    starts = (0, 4, 7)
    documents = [LABELS[start : start + length] for start, length in zip(starts, LENGTHS, strict=True)]
    rows = [{"input_ids": [10 + n, *d[1:]], "labels": d} for n, d in enumerate(documents)]
    rows[2]["input_ids"][1] = 20
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=3,
        max_steps=1,
        train_sampling_strategy="sequential",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    return kind(
        model=tiny_peft(),
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorWithFlattening(return_tensors="pt", **flattening),
        ablation={"select": {"by": by, "quantile": 0.4, "unit": unit}},
    )


def test_the_documents_of_a_packed_row_are_selected_by_their_mean_loss(tmp_path):
    """By hand: two of three documents, ceil(0.4 * 3), with the highest mean loss."""
    trainer = packed_trainer(tmp_path)
    trainer.train()
    assert trainer.packed["input_ids"].shape[0] == 1
    means = [part.mean().item() for part in trainer.loss_N.split([3, 2, 3])]
    best = sorted(range(3), key=lambda document: -means[document])[:2]
    assert trainer.selected == [document in best for document in DOCUMENTS]


def test_packed_rows_need_an_id_per_document(tmp_path):
    class PerRow(MyTrainer):
        def example_ids(self, batch):
            return tuple(f"row {row}" for row in range(len(batch.model_inputs["input_ids"])))

    class PerDocument(PerRow):
        def example_ids(self, batch):
            return ("a", "b", "c")

    with pytest.raises(InputError, match="example_ids returned 1 ids for a micro-batch of 3 examples; packed rows"):
        packed_trainer(tmp_path, PerRow, "token", "fixed_random").train()
    trainer = packed_trainer(tmp_path, PerDocument, "token", "fixed_random")
    trainer.train()
    assert len(trainer.selected) == 8


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_trls_packing_is_seen_or_refused(strategy, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    from tests.support.tiny_models import examples
    from tests.support.tiny_tokenizer import tiny_tokenizer

    class Sft(TokenObjective, trl.SFTTrainer):
        documents = None

        def record(self, batch, out, tokens_of_step):
            self.documents = batch.example_N

    def trainer():
        return Sft(
            model=tiny_peft(),
            args=trl.SFTConfig(
                output_dir=str(tmp_path),
                per_device_train_batch_size=2,
                max_steps=1,
                bf16=False,
                packing=True,
                packing_strategy=strategy,
                max_length=60,
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                save_strategy="no",
            ),
            train_dataset=Dataset.from_list([{"input_ids": e.input_ids} for e in examples(8)]),
            processing_class=tiny_tokenizer(),
            ablation={"select": {"by": "loss", "quantile": 0.4, "unit": "document"}},
        )

    if strategy == "wrapped":
        with pytest.raises(InputError, match="'wrapped' cuts documents without a mark"):
            trainer()
        return
    trained = trainer()
    trained.train()
    counts = trained.documents.bincount().tolist()
    lengths = [len(e.input_ids) - 1 for e in examples(8)]
    assert len(counts) > 2 and all(count in lengths for count in counts)
