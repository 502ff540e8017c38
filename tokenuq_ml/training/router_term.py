"""The router's load-balancing loss as a term of a training's loss.

Switched on as the Trainer that the objective is mixed into does: by `router_aux_loss_coef` with TRL's trainers (on by
default for models that have a coefficient), by the model's `output_router_logits` with `transformers.Trainer`.
"""

from collections.abc import Callable

from torch import Tensor

from tokenuq_ml.models.output_layer import causal_lm
from tokenuq_ml.models.router_loss import SWITCH, has_router_loss, router_coefficient


class RouterLoss:
    """Mixin of `TokenObjective`: adds the router's loss, and logs it as `aux_loss`, unweighted."""

    @property
    def router_loss_weight(self) -> float:
        """Weight of the router's loss in each micro-batch; 0 if it is not added."""
        lm = causal_lm(self.accelerator.unwrap_model(self.model))
        if not has_router_loss(lm):
            return 0.0
        if hasattr(self, "aux_loss_enabled"):
            return float(self.router_aux_loss_coef) if self.aux_loss_enabled else 0.0
        return router_coefficient(lm) if getattr(lm.config.get_text_config(), SWITCH) else 0.0

    @property
    def averages_router_loss(self) -> bool:
        """Whether the term is a mean over micro-batches and ranks, as with TRL, and not the sum of Trainer's."""
        return hasattr(self, "aux_loss_enabled")

    def router_inputs(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return the arguments of a micro-batch's forward pass that add the term; none for other models."""
        weight = self.router_loss_weight
        if not weight:
            return {}
        ranks, steps = self.accelerator.num_processes, self.current_gradient_accumulation_steps
        if self.averages_router_loss:
            # The objective multiplies its loss by the ranks, because DDP averages gradients.
            weight /= steps * ranks
        else:
            weight /= 1 if self.args.average_tokens_across_devices else ranks
            weight /= 1 if self.model_accepts_loss_kwargs else steps

        def term(aux_loss: Tensor) -> Tensor:
            self.training_metrics.add("aux_loss", aux_loss.detach())
            return weight * aux_loss

        return {"router_term": term}
