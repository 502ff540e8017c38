"""The first optimiser batch of a student in plain PyTorch, from full logits."""

from math import ceil

import polars as pl
import torch

from tests.support.tiny_models import tiny_peft
from tokenuq_ml.data.batching import collate
from tokenuq_ml.models.adapters import attach_adapter


def full_logits(model, batch):
    return model(input_ids=batch.input_ids_BT).logits[:, :-1][batch.response_BT[:, 1:]]


class FirstBatch:
    """The first optimiser batch from full logits: every quantity that an ablation may name."""

    def __init__(self, recorder, folder, tables, examples, truth):
        self.truth = truth
        first = recorder.selections().filter(pl.col("step") == 1)
        wanted = first["example_id"].unique(maintain_order=True).to_list()
        by_id = {row.example_id: row for row in examples}
        batch = collate([by_id[name] for name in wanted])
        model = attach_adapter(tiny_peft(seed=2), folder, "teacher")
        self.logits = full_logits(model, batch).detach()
        model.base_model.set_adapter("teacher", inference_mode=True)
        q = full_logits(model, batch).detach().log_softmax(-1)
        logp = self.logits.log_softmax(-1)
        self.loss = -logp.gather(1, batch.label_N[:, None])[:, 0]
        self.kl, self.teacher = (q.exp() * (q - logp)).sum(1), q
        keys = pl.DataFrame({"example_id": [k for k, _ in batch.keys], "position": [p for _, p in batch.keys]})
        keys = keys.with_columns(pl.col("position").cast(pl.Int32))
        rows = keys.join(tables["token_losses"], on=["example_id", "position"], how="left", maintain_order="left")
        self.table = {name: torch.tensor(rows[name].to_list()) for name in rows.columns if rows[name].dtype.is_float()}
        self.category, self.example = rows["category"].to_list(), rows["example_id"].to_list()
        self.positions = rows["position"].to_list()
        self.everything = tables["token_losses"]
        logged = first.select("example_id", "position", "selected", recorded="loss")
        logged = keys.join(logged, on=["example_id", "position"], how="left", maintain_order="left")
        self.selected, self.recorded = torch.tensor(logged["selected"].to_list()), logged["recorded"].to_list()

    def top(self, score, share, largest=True):
        k = ceil(round(share * len(score), 9))
        mask = torch.zeros(len(score), dtype=torch.bool)
        mask[torch.topk(score, k, largest=largest).indices] = True
        return mask

    def documents(self, share):
        names = list(dict.fromkeys(self.example))
        at = {n: torch.tensor([e == n for e in self.example]) for n in names}
        mean = torch.stack([self.loss[at[n]].mean() for n in names])
        chosen = {names[i] for i in mean.topk(ceil(share * len(names))).indices}
        return torch.tensor([e in chosen for e in self.example])

    def dataset_top(self, share, score="loss"):
        table = self.everything.with_columns(influence=pl.col("base_loss") - pl.col("loss"))
        losses = table.sort(score, descending=True).head(ceil(round(share * len(table), 9)))
        chosen = set(losses.select("example_id", "position").iter_rows())
        return torch.tensor([pair in chosen for pair in zip(self.example, self.positions, strict=True)])

    def example_means(self, values):
        """The mean of each token's example, and that of each example."""
        at = {n: torch.tensor([e == n for e in self.example]) for n in dict.fromkeys(self.example)}
        means = {n: values[mask].mean() for n, mask in at.items()}
        return torch.stack([means[e] for e in self.example]), torch.stack(list(means.values()))

    def entropy(self):
        logp = self.logits.log_softmax(-1)
        return -(logp.exp() * logp).sum(1)

    def true_kl(self):
        """KL of the student from the truth, a token at a time."""
        rows = {(row["example_id"], row["position"]): row for row in self.truth.iter_rows(named=True)}
        found = []
        for key, logp in zip(zip(self.example, self.positions, strict=True), self.logits.log_softmax(-1), strict=True):
            p, q = torch.tensor(rows[key]["probabilities"]), logp[rows[key]["support"]]
            found.append((torch.xlogy(p, p) - p * q).sum())
        return torch.stack(found)

    def top20_entropy(self):
        p = torch.softmax(torch.sort(self.logits, dim=1, descending=True).values[:, :20], -1)
        return -(p * p.log()).sum(1)
