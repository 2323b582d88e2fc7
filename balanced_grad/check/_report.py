from collections.abc import Iterator
from dataclasses import dataclass

from balanced_grad.check._cost import Cost
from balanced_grad.check._text import listed, size, table, wrapped
from balanced_grad.check._tokens import Split


@dataclass(frozen=True)
class Part:
    """Parameters that exactly the same losses reach.

    Attributes:
        losses: names of these losses.
        where: the modules or parameters, by the model's names; shapes where no model is given.
        entries: how many numbers.
        nbytes: how much memory they take.
        row: bytes of one gradient in a buffer, padding included.
    """

    losses: tuple[str, ...]
    where: tuple[str, ...]
    entries: int
    nbytes: int
    row: int

    @property
    def shared(self) -> bool:
        """Whether several losses meet here."""
        return len(self.losses) > 1


@dataclass(frozen=True)
class Bystander:
    """A tensor that requires grad and is no ``nn.Parameter``, such as an input: no weight depends on its gradient.

    Attributes:
        losses: names of the losses that reach it.
        shape: its shape.
    """

    losses: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """The plan for one batch, as ``str(report)`` prints it.

    Attributes:
        losses: name -> value.
        parts: the parameters, by the losses that reach them.
        unreached: trainable parameters of the model that no loss reaches.
        cost: times of the backwards, measured on the batch.
        bystanders: tensors that are no parameters; they count in no row and no traffic.
        notes: what looks like a mistake, a sentence each.
        split: how one loss splits by tokens, where a ``bg.Tokens`` was given.
    """

    losses: dict[str, float]
    parts: tuple[Part, ...]
    unreached: tuple[str, ...]
    cost: Cost
    bystanders: tuple[Bystander, ...] = ()
    notes: tuple[str, ...] = ()
    split: Split | None = None

    @property
    def rows(self) -> int:
        """Bytes that a method that takes per-loss gradients keeps: a row per loss wherever two or more meet."""
        if self.split is not None:
            return self.split.rows
        return sum(part.row * len(part.losses) for part in self.parts if part.shared)

    @property
    def traffic(self) -> dict[str, int]:
        """Bytes that each process reduces per step of data-parallel training, by the kind of method.

        A ring reduction sends about twice as many over the network.
        """
        plain = sum(part.nbytes for part in self.parts)
        count = len(self.losses)
        if self.split is not None:
            return {"losses": plain + 4 * count, "parameters": plain + self.split.more + 4 * count}
        return {
            "losses": plain + 4 * count,
            "features": plain + 8 * count**2 + 4 * count,
            "parameters": sum(part.row * len(part.losses) for part in self.parts) + 4 * count,
        }

    @property
    def advice(self) -> list[str]:
        """What looks like a mistake."""
        return list(self.notes)

    def __str__(self) -> str:
        lines = ["losses", *(f"  {name:<12} {value:.4g}" for name, value in self.losses.items())]
        lines += ["", "parameters", *table(self._rows())]
        if self.bystanders:
            rows = [(" + ".join(each.losses), f"a tensor of shape {each.shape}") for each in self.bystanders]
            lines += ["", "not a parameter of the model: gets its .grad, and counts in no row, weight or traffic"]
            lines += table([("reached by", "what"), *rows])
        lines += ["", *(self._cost() if self.split is None else self.split.lines())]
        lines += ["", "traffic of data-parallel training: bytes reduced per process and step"]
        labels = {"losses": "losses only", "features": "level='features'", "parameters": "per-loss gradients"}
        lines += [f"  {labels[kind]:<20}{size(count)}" for kind, count in self.traffic.items()]
        lines += [""] if self.advice else []
        return "\n".join([*lines, *(line for note in self.advice for line in wrapped("note: ", note))])

    def _cost(self) -> Iterator[str]:
        plain, each = 1e3 * self.cost.plain, 1e3 * self.cost.per_loss
        yield "cost of methods that take per-loss gradients (MinNorm, MMPareto, Gramian)"
        yield f"  rows          {size(self.rows)} kept between steps"
        yield f"  backward      {each:.2f} ms, one per loss; of the plain sum {plain:.2f} ms (measured on this batch)"
        yield f"  step          about {self.cost.ratio:.2f}x a plain one, if a forward takes half of a backward"
        yield "  losses only (MIMO, Uniform): no rows, one backward, 1.00x"

    def _rows(self) -> Iterator[tuple[str, ...]]:
        yield "reached by", "numbers", "rows", "where"
        for part in self.parts:
            kept = str(len(part.losses)) if part.shared else "-"
            yield " + ".join(part.losses), f"{part.entries:,}", kept, listed(part.where)
