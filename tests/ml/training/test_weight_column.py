"""The column `token_weights` of a user's own Trainer: honoured, or missed with an error."""

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from tests.support.tiny_models import examples, tiny_peft
from tests.support.tiny_tokenizer import tiny_tokenizer
from tests.support.training import MLE, PAPER, plain_objective
from tokenuq_ml import TokenObjective
from tokenuq_ml.data.batching import TokenizedExample, collate
from tokenuq_ml.errors import InputError
from tokenuq_ml.training.token_batch import LabelledInputs

pytestmark = pytest.mark.slow


class MyTrainer(TokenObjective, Trainer):
    pass


WEIGHTED = [
    TokenizedExample(
        *(one.example_id, one.dataset, one.split, one.input_ids, one.response_mask),
        weights=[(number + place) % 4 / 2 for place in range(len(one.input_ids))],
    )
    for number, one in enumerate(examples(8))
]


def rows(weighted: bool = True) -> Dataset:
    def row(one: TokenizedExample) -> dict:
        labels = [token if trained else -100 for token, trained in zip(one.input_ids, one.response_mask, strict=True)]
        return {"input_ids": one.input_ids, "labels": labels, "note": "x"} | (
            {"token_weights": one.weights} if weighted else {}
        )

    return Dataset.from_list([row(one) for one in WEIGHTED])


def padding(features: list[dict]) -> dict[str, torch.Tensor]:
    """A user's collator: pads each column on the right with a value of its own."""
    fill = {"input_ids": 0, "labels": -100, "token_weights": 0.0}
    longest = max(len(one["input_ids"]) for one in features)
    return {
        name: torch.tensor([one[name] + [fill[name]] * (longest - len(one[name])) for one in features])
        for name in features[0]
        if name in fill
    }


def dropping(features: list[dict]) -> dict[str, torch.Tensor]:
    """A collator that, like TRL's, makes only the columns that it knows."""
    return {name: column for name, column in padding(features).items() if name != "token_weights"}


def trainer_of(folder, ablation, micro=8, collator=padding, data=None, **arguments):
    return MyTrainer(
        model=tiny_peft(),
        args=TrainingArguments(
            str(folder),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=8 // micro,
            max_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            save_strategy="no",
            logging_steps=1,
            **arguments,
        ),
        train_dataset=rows() if data is None else data,
        eval_dataset=rows(),
        data_collator=collator,
        ablation=ablation,
    )


@pytest.mark.parametrize("micro", [8, 2])
@pytest.mark.parametrize("ablation", [MLE, PAPER], ids=lambda a: a.name)
def test_weights_multiply_the_terms_of_their_tokens(tmp_path, ablation, micro):
    """`remove_unused_columns` has its default: other columns are dropped, this one is kept."""
    trainer = trainer_of(tmp_path, ablation, micro)
    trainer.train()
    expected = plain_objective(tiny_peft(), collate(WEIGHTED), ablation).item()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)
    unweighted = plain_objective(tiny_peft(), collate(examples(8)), ablation).item()
    assert expected != pytest.approx(unweighted, rel=1e-2)


def test_evaluation_losses_are_without_weights(tmp_path):
    trainer = trainer_of(tmp_path, MLE)
    with_weights = trainer.evaluate()["eval_loss"]
    assert with_weights == pytest.approx(trainer.evaluate(rows(weighted=False))["eval_loss"])


@pytest.mark.parametrize("data", [None, rows().to_list()], ids=["dataset", "list"])
def test_a_collator_that_drops_the_weights_is_named(tmp_path, data):
    trainer = trainer_of(tmp_path, MLE, collator=dropping, data=data)
    with pytest.raises(InputError, match=r"column 'token_weights', which the data collator \(function\) drops; pass a"):
        trainer.train()
    trainer_of(tmp_path, MLE, collator=dropping, data=rows(weighted=False)).train()


@pytest.mark.parametrize("packing", [False, True])
def test_what_trl_drops_is_named(tmp_path, packing):
    """Its collator makes only the columns that it knows, and packing another dataset."""
    trl = pytest.importorskip("trl")

    class SftTrainer(TokenObjective, trl.SFTTrainer):
        pass

    arguments = trl.SFTConfig(
        str(tmp_path), max_steps=1, report_to=[], use_cpu=True, bf16=False, packing=packing, max_length=64
    )
    trainer = SftTrainer(
        model=tiny_peft(), args=arguments, train_dataset=rows(), processing_class=tiny_tokenizer(), ablation=MLE
    )
    dropped_by = "packing" if packing else r"the data collator \(DataCollatorForLanguageModeling\)"
    with pytest.raises(InputError, match=f"column 'token_weights', which {dropped_by} drops; pass a data_collator"):
        trainer.train()


def test_weights_of_another_shape_or_below_0_are_refused():
    labels = torch.tensor([[1, 2, 3]])
    good = LabelledInputs({"input_ids": labels, "labels": labels, "token_weights": torch.tensor([[9, 0, 2]])})
    assert good.weight_N.tolist() == [0.0, 2.0] and set(good.model_inputs) == {"input_ids"}
    assert LabelledInputs({"labels": labels}).weight_N is None
    for weights, words in (
        (torch.ones(1, 2), r"token_weights is \(1, 2\), and labels are \(1, 3\)"),
        ([[1.0, 1.0]], "token_weights is list"),
        (torch.tensor([[1.0, -1.0, 1.0]]), "a weight below 0"),
        (torch.tensor([[1.0, float("nan"), 1.0]]), "not finite"),
    ):
        with pytest.raises(InputError, match=words):
            LabelledInputs({"labels": labels, "token_weights": weights})
