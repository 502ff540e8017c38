"""TokenObjective over TRL's SFTTrainer: the same batches, losses and weights as TRL alone. Skipped without TRL."""

import pytest
import torch
import torch.nn.functional as F

from tests.support.tiny_models import examples, tiny_model, tiny_peft
from tests.support.tiny_tokenizer import tiny_tokenizer
from tests.support.trainers import KeptLosses
from tests.support.training import MLE, PAPER
from tokenuq_ml import TokenObjective
from tokenuq_ml.errors import InputError

pytestmark = pytest.mark.slow

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

STEPS = {"max_steps": 20, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


class KeptBatches(KeptLosses):
    """Keeps each micro-batch too."""

    def training_step(self, model, inputs, *args, **kwargs):
        keys = ("input_ids", "labels", "attention_mask", "position_ids")
        self.batches = [*getattr(self, "batches", []), {key: inputs[key] for key in keys if key in inputs}]
        return super().training_step(model, inputs, *args, **kwargs)


class Ours(KeptBatches, TokenObjective, trl.SFTTrainer):
    """With the objective."""


class Theirs(KeptBatches, trl.SFTTrainer):
    """As TRL has it."""


def answers(count=40):
    """Return a prompt-completion dataset of ids."""
    rows = [{"input_ids": e.input_ids, "completion_mask": [int(m) for m in e.response_mask]} for e in examples(count)]
    return datasets.Dataset.from_list(rows)


def sft(kind, folder, model=None, dataset=None, options=None, tokenizer=None, **kwargs):
    """Return an SFTTrainer; TRL's own defaults stay, except for bf16 and what a test has no use for."""
    fixed = {"report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-2}
    config = trl.SFTConfig(**{"output_dir": str(folder), "bf16": False, **fixed, **STEPS, **(options or {})})
    if issubclass(kind, TokenObjective):
        kwargs = {"ablation": MLE, **kwargs}
    return kind(
        model=model or tiny_peft(),
        args=config,
        train_dataset=dataset or answers(),
        processing_class=tokenizer or tiny_tokenizer(),
        **kwargs,
    )


def loss_from_logits(outputs, labels, num_items_in_batch):
    """Return what TRL optimises, in the dtype of the logits."""
    logits_ND, label_N = outputs.logits[:, :-1][labels[:, 1:] != -100], labels[:, 1:][labels[:, 1:] != -100]
    return F.cross_entropy(logits_ND, label_N, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("packing", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["packed", "padded"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_cross_entropy_is_that_of_trl_at_every_step(dtype, tolerance, packing, tmp_path):
    """Unrounded losses of 20 steps with accumulation, the last gradients, and the weights afterwards.

    TRL's own loss is computed in float32 whatever the dtype of the weights. In float64 it is TRL's training with the
    loss from the model's full logits, an argument of SFTTrainer.
    """
    options = {"packing": packing, "max_length": 64, "completion_only_loss": True, "gradient_checkpointing": False}
    exact = {"compute_loss_func": loss_from_logits} if dtype == torch.float64 else {}
    ours = sft(Ours, tmp_path, tiny_peft().to(dtype), options=options)
    theirs = sft(Theirs, tmp_path, tiny_peft().to(dtype), options=options, **exact)
    ours.train(), theirs.train()
    assert len(ours.batches) == len(theirs.batches) >= 30
    assert ("position_ids" in ours.batches[0]) == packing
    for own, other in zip(ours.batches, theirs.batches, strict=True):
        assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)
    assert ours.losses == pytest.approx(theirs.losses, rel=tolerance, abs=0)
    for name, grad in theirs.grads.items():
        torch.testing.assert_close(ours.grads[name], grad, rtol=100 * tolerance, atol=10 * tolerance)
    start = dict(tiny_peft().to(dtype).named_parameters())
    for name, parameter in theirs.model.named_parameters():
        torch.testing.assert_close(
            ours.model.get_parameter(name), parameter, rtol=1e3 * tolerance, atol=1e2 * tolerance
        )
        assert not parameter.requires_grad or not torch.equal(parameter, start[name])


GENERATION = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<|im_start|>assistant\n{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}\n{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A chat template with the marks that `assistant_only_loss` needs."""


def chats():
    """Return a conversational dataset."""
    turns = lambda question, answer: [  # noqa: E731
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    texts = [("How many apples?", "12 apples"), ("The price?", "3 dollars, so 36"), ("a b", "c"), ("days", "6 days")]
    return datasets.Dataset.from_list([{"messages": turns(*text)} for text in texts * 2])


OPTIONS = {
    "assistant_only_loss": ({"assistant_only_loss": True}, chats),
    "whole texts": ({"completion_only_loss": False}, answers),
    "packed across texts": ({"packing": True, "packing_strategy": "wrapped", "max_length": 32}, answers),
    "padding_free": ({"padding_free": True, "max_length": None}, answers),
    "padded to a multiple": ({"pad_to_multiple_of": 16}, answers),
    "neftune and clipping": ({"neftune_noise_alpha": 5.0, "max_grad_norm": 0.1}, answers),
    "short texts, shuffled": ({"max_length": 9, "shuffle_dataset": True}, answers),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_of_trl_has_the_effect_that_it_has_without_the_objective(name, tmp_path):
    options, dataset = OPTIONS[name]

    def trained(kind):
        tokenizer = tiny_tokenizer(chat_template=GENERATION)
        trainer = sft(kind, tmp_path, tiny_peft(vocab=400), dataset(), {**options, "max_steps": 2}, tokenizer)
        trainer.train()
        return trainer

    ours, theirs = trained(Ours), trained(Theirs)
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(ours.batches, theirs.batches, strict=True))
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    for own, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["adapter", "full"])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_evaluate_and_predict_after_train(kind, bf16, tmp_path):
    """TRL replaces the forward pass of the instance; training must put TRL's back."""
    model = tiny_peft() if kind == "adapter" else tiny_model().requires_grad_(True)
    trainer = sft(Ours, tmp_path, model, options={"max_steps": 2, "bf16": bf16}, eval_dataset=answers(6))
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    result = trainer.predict(trainer.eval_dataset)
    assert result.metrics["test_loss"] == pytest.approx(loss, rel=1e-6)
    logits, labels = torch.tensor(result.predictions)[:, :-1], torch.tensor(result.label_ids)[:, 1:]
    assert logits.shape[:2] == labels.shape
    theirs = sft(Theirs, tmp_path, trainer.model, options={"bf16": bf16}, eval_dataset=answers(6))
    assert theirs.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-3 if bf16 else 1e-6)
    by_hand = F.cross_entropy(logits[labels != -100].float(), labels[labels != -100])
    assert by_hand.item() == pytest.approx(loss, rel=2e-2 if bf16 else 1e-4)


def test_trls_dft_points_to_the_ablation(tmp_path):
    with pytest.raises(InputError, match="loss_type='dft': .*\"selected\": \"dft\".* leave loss_type at 'nll'"):
        sft(Ours, tmp_path, options={"loss_type": "dft"})


def test_the_ablation_dft_is_trls_dft(tmp_path):
    ours = sft(Ours, tmp_path, options={"max_steps": 2}, ablation="dft")
    theirs = sft(Theirs, tmp_path, options={"max_steps": 2, "loss_type": "dft"})
    ours.train(), theirs.train()
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        ({"label_smoothing_factor": 0.1}, {}, "label_smoothing_factor=0.1"),
        ({}, {"compute_loss_func": loss_from_logits}, "compute_loss_func"),
    ],
)
def test_losses_that_trl_would_compute_are_refused(options, more, message, tmp_path):
    with pytest.raises(InputError, match=message):
        sft(Ours, tmp_path, options=options, **more)


def test_the_objective_over_trls_data_with_its_defaults(tmp_path):
    """TRL's defaults, which include bf16 and gradient checkpointing, do not change what is selected by much."""
    trainer = sft(Ours, tmp_path, options={"max_steps": 2, "bf16": None}, ablation=PAPER)
    assert trainer.args.bf16 and trainer.args.gradient_checkpointing
    exact = sft(Ours, tmp_path, options={"max_steps": 2}, ablation=PAPER)
    trainer.train(), exact.train()
    assert trainer.losses == pytest.approx(exact.losses, rel=0.05)


def test_activations_are_offloaded_where_trl_offloads_them(tmp_path):
    """TRL's context needs a GPU; one that copies stands for it."""
    saved = []

    def pack(tensor):
        saved.append(tensor.shape)
        return tensor.clone()

    offloading = sft(Ours, tmp_path, options={"max_steps": 2, "gradient_checkpointing": False}, ablation=PAPER)
    offloading.maybe_activation_offload_context = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    plain = sft(Ours, tmp_path, options={"max_steps": 2, "gradient_checkpointing": False}, ablation=PAPER)
    offloading.train(), plain.train()
    assert saved and offloading.losses == plain.losses
