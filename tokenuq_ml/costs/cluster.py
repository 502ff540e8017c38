"""The cluster that a plan is for: `nodes=64,gpus=8,card=h100` and what else is known of it.

Nothing of a cluster is measured: peaks are published (`cards.py`), and the shares of them that work reaches are
assumed. Plans print every assumption.
"""

from dataclasses import dataclass, field, fields

from tokenuq_ml.costs.cards import CARDS, Card, card_named
from tokenuq_ml.costs.efficiency import BY_CARD
from tokenuq_ml.costs.machine import LINK_EFFICIENCY, Machine, machine_of
from tokenuq_ml.errors import InputError

NODE_MTBF_H = 54 * 24 * (16_384 / 8) / 419
"""Hours between failures of a node of 8 GPUs: Llama 3 405B had 419 unexpected interruptions in 54 days on 16,384 H100
(arXiv:2407.21783, section 3.3.4)."""


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal cards. Fields without `card` and the counts are optional in its text."""

    nodes: int
    gpus: int = field(metadata={"says": "per node"})
    card: Card = field(metadata={"says": ", ".join(CARDS)})
    price: float | None = field(default=None, metadata={"says": "of a GPU-hour, in any currency"})
    network: float | None = field(default=None, metadata={"says": "GB/s per GPU to other nodes"})
    storage: float | None = field(default=None, metadata={"says": "GB/s of the store, all nodes together"})
    mtbf: float = field(default=NODE_MTBF_H, metadata={"says": "hours between failures of one node"})
    restart: float = field(default=600.0, metadata={"says": "seconds until lost work is continued"})

    @classmethod
    def parse(cls, text: str) -> "Cluster":
        """Read `key=value,key=value`.

        Raises:
            InputError: a key is unknown, missing or given twice, or a value is not understood.
        """
        names, values = [one.name for one in fields(cls)], {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = (word.strip() for word in part.partition("="))
            if key not in names or not equals or key in values:
                raise InputError(
                    f"--cluster: {part!r} is not understood or given twice; use nodes=64,gpus=8,card=h100 and any of "
                    f"{', '.join(f'{name}=' for name in names[3:])}"
                )
            values[key] = _value(key, value)
        if missing := [name for name in names[:3] if name not in values]:
            raise InputError(f"--cluster: {', '.join(missing)} missing; for example nodes=64,gpus=8,card=h100")
        return cls(**values)

    @property
    def size(self) -> int:
        """All GPUs."""
        return self.nodes * self.gpus

    @property
    def storage_rate(self) -> float:
        """Bytes per second of the store; 1 GB/s per node is assumed."""
        return (self.nodes if self.storage is None else self.storage) * 1e9

    @property
    def mtbf_s(self) -> float:
        """Seconds between failures of any node."""
        return self.mtbf * 3600 / self.nodes

    def between(self, group: int) -> float:
        """Return the bytes per second that a GPU exchanges with the others of its group, in practice."""
        network = self.card.network if self.network is None else self.network * 1e9
        return LINK_EFFICIENCY * (self.card.link if group <= self.gpus else network)

    def rate(self, kind: str, precision: str) -> float:
        """Return the FLOP/s that one GPU reaches in a kind of work."""
        peak = self.card.float32 if precision == "float32" else self.card.bfloat16
        return BY_CARD[self.card.name].share(kind, precision) * peak

    def machine(self, precision: str) -> Machine:
        """Return what the planner of stages asks of a machine; `precision` is that of training, as a study names it."""
        return machine_of(self.card, precision)


def _value(key: str, text: str) -> int | float | Card:
    if key == "card":
        return card_named(text, "--cluster: card")
    try:
        value = int(text) if key in ("nodes", "gpus") else float(text)
    except ValueError:
        value = 0
    # Not `value <= 0`: that lets NaN through.
    if not 0 < value < float("inf"):
        kind = "a whole number" if key in ("nodes", "gpus") else "a number"
        raise InputError(f"--cluster: {key}: {text!r} is not {kind} above 0")
    return value
