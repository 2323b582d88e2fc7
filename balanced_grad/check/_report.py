from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from balanced_grad.capture import JOINT, Losses, ParameterFilter, Plan
from balanced_grad.capture._rows import Rows
from balanced_grad.check._cost import Cost, measure
from balanced_grad.check._names import covering


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
class Report:
    """The plan for one batch, as ``str(report)`` prints it.

    Attributes:
        losses: name -> value.
        parts: the parameters, by the losses that reach them.
        unreached: trainable parameters of the model that no loss reaches.
        cost: times of the backwards, measured on the batch.
    """

    losses: dict[str, float]
    parts: tuple[Part, ...]
    unreached: tuple[str, ...]
    cost: Cost

    @property
    def rows(self) -> int:
        """Bytes that a method that takes per-loss gradients keeps: a row per loss wherever two or more meet."""
        return sum(part.row * len(part.losses) for part in self.parts if part.shared)

    @property
    def traffic(self) -> dict[str, int]:
        """Bytes that each process reduces per step of data-parallel training, by the kind of method.

        A ring reduction sends about twice as many over the network.
        """
        plain = sum(part.nbytes for part in self.parts)
        count = len(self.losses)
        return {
            "losses": plain + 4 * count,
            "features": plain + 8 * count**2 + 4 * count,
            "parameters": sum(part.row * len(part.losses) for part in self.parts) + 4 * count,
        }

    @property
    def advice(self) -> list[str]:
        """What looks like a mistake."""
        found = []
        if JOINT not in self.losses:
            found.append(
                f"no loss is named {JOINT!r}; give the loss of the fused prediction that name, if there is one"
            )
        if not any(part.shared for part in self.parts):
            found.append(
                "no two losses meet in any parameter, so there is nothing for a Gramian method to balance: is a "
                "detach() between the encoders and the joint loss? A losses-only method (MIMO) does act"
            )
        if self.unreached:
            found.append(f"no loss reaches {', '.join(self.unreached)}: they will not be trained by this batch")
        return found

    def __str__(self) -> str:
        lines = ["losses"]
        lines += [f"  {name:<12} {value:.4g}" for name, value in self.losses.items()]
        lines += ["", "parameters"]
        rows = [("reached by", "numbers", "rows", "where")]
        for part in self.parts:
            kept = str(len(part.losses)) if part.shared else "-"
            rows.append((" + ".join(part.losses), f"{part.entries:,}", kept, ", ".join(part.where)))
        lines += _table(rows)
        plain, each = 1e3 * self.cost.plain, 1e3 * self.cost.per_loss
        lines += [
            "",
            "cost of methods that take per-loss gradients (MinNorm, MMPareto, Gramian)",
            f"  rows          {_bytes(self.rows)} kept between steps",
            f"  backward      {each:.2f} ms, one per loss; of the plain sum {plain:.2f} ms (measured on this batch)",
            f"  step          about {self.cost.ratio:.2f}x a plain one, if a forward takes half of a backward",
            "  losses only (MIMO, Uniform): no rows, one backward, 1.00x",
            "",
            "traffic of data-parallel training: bytes reduced per process and step",
        ]
        labels = {"losses": "losses only", "features": "level='features'", "parameters": "per-loss gradients"}
        lines += [f"  {labels[kind]:<20}{_bytes(size)}" for kind, size in self.traffic.items()]
        lines += ["", *(f"note: {line}" for line in self.advice)] if self.advice else []
        return "\n".join(lines)


def check(losses: Mapping[str, Tensor | None], model: nn.Module | None = None) -> Report:
    """The plan for these losses: what each of them reaches, and what it costs to balance them.

    Runs a few backwards to time them. ``.grad`` stays as it is, and the losses can still be trained on.

    Args:
        losses: as for a balancer: name -> scalar with a graph, or None.
        model: whose names parameters get in the report; also shows which ones no loss reaches.

    Raises:
        TypeError, ValueError, RuntimeError: for what a balancer would refuse.

    Examples:
        >>> import torch
        >>> from balanced_grad.check import check
        >>> model = torch.nn.ModuleDict({"audio": torch.nn.Linear(4, 2), "head": torch.nn.Linear(2, 1)})
        >>> z = model["audio"](torch.ones(8, 4))
        >>> report = check({"joint": model["head"](z).mean(), "audio": z.square().mean()}, model)
        >>> [(part.losses, part.where) for part in report.parts]
        [(('joint',), ('head.*',)), (('joint', 'audio'), ('audio.*',))]
        >>> report.rows  # two rows of the encoder's 8 + 2 numbers, each padded to 16 bytes
        96
    """
    given = Losses.check(losses)
    given.require_graph()
    named = () if model is None else model.named_parameters()
    names: dict[Tensor, str] = {parameter: name for name, parameter in named}
    plan = Plan.of(given, ParameterFilter())
    parts = []
    for group in plan.groups:
        parts.append(
            Part(
                tuple(given.names[loss] for loss in group.losses),
                _where(group.parameters, names),
                sum(p.numel() for p in group.parameters),
                sum(p.numel() * p.element_size() for p in group.parameters),
                Rows.row_bytes(group),
            )
        )
    reached = {parameter for group in plan.groups for parameter in group.parameters}
    missed = [name for parameter, name in names.items() if parameter.requires_grad and parameter not in reached]
    values = dict(zip(given.names, given.values().tolist(), strict=True))
    return Report(values, tuple(parts), tuple(covering(missed, list(names.values()))), measure(given, plan))


def _where(parameters: Sequence[Tensor], names: Mapping[Tensor, str]) -> tuple[str, ...]:
    known = [names[p] for p in parameters if p in names]
    unknown = [f"a parameter of shape {tuple(p.shape)}" for p in parameters if p not in names]
    return (*covering(known, list(names.values())), *unknown)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
