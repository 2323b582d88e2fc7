from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from balanced_grad.capture import Losses
from balanced_grad.check._names import covering
from balanced_grad.check._text import listed, size, table
from balanced_grad.tokens import Tokens, shares


@dataclass(frozen=True)
class Share:
    """Parameters that split into groups of tokens in the same way.

    Attributes:
        groups: names of the groups that have a row of them; one for what is a group's as a whole, none for what gets
            its plain gradient.
        why: why it is not split.
        where: the modules or parameters, by the model's names; shapes where no model is given.
        entries: how many numbers.
        nbytes: how much memory they take.
    """

    groups: tuple[str, ...]
    why: str
    where: tuple[str, ...]
    entries: int
    nbytes: int


@dataclass(frozen=True)
class Split:
    """How the gradient of one loss splits by groups of tokens.

    Attributes:
        positions: name of a group -> how many positions of this batch it has.
        shares: the parameters that the loss reaches, by how they are split.
    """

    positions: dict[str, int]
    shares: tuple[Share, ...]

    @classmethod
    def of(cls, losses: Losses, tokens: Tokens, names: Mapping[Tensor, str]) -> "Split":
        """Look at the layers that the loss came through; the masks of the batch stay for a balancer."""
        positions = tokens.positions(keep=True)
        alike: dict[tuple[tuple[str, ...], str], list[Tensor]] = {}
        for parameter, share in shares(losses, tokens, positions).items():
            alike.setdefault(share, []).append(parameter)
        trained = [name for parameter, name in names.items() if parameter.requires_grad]
        ordered = sorted(alike.items(), key=lambda item: -len(item[0][0]))
        return cls(positions.counts(), tuple(_share(key, found, names, trained) for key, found in ordered))

    @property
    def rows(self) -> int:
        """Bytes of the rows: one for each group, of what is split."""
        return sum(share.nbytes * len(share.groups) for share in self.shares if len(share.groups) > 1)

    @property
    def more(self) -> int:
        """Bytes of these rows beyond those of one gradient."""
        return sum(share.nbytes * (len(share.groups) - 1) for share in self.shares if len(share.groups) > 1)

    def lines(self) -> Iterator[str]:
        """For the report."""
        yield "one loss by groups of tokens, level=bg.Tokens(model)"
        yield f"  positions     {', '.join(f'{name} {count}' for name, count in self.positions.items())}"
        yield f"  rows          {size(self.rows)} kept between steps, one backward"
        rows = [
            (" + ".join(share.groups) or "plain", f"{share.entries:,}", listed(share.where) + _because(share.why))
            for share in self.shares
        ]
        yield from table([("split into", "numbers", "where"), *rows])


def _share(
    key: tuple[tuple[str, ...], str], parameters: Sequence[Tensor], names: Mapping[Tensor, str], trained: Sequence[str]
) -> Share:
    groups, why = key
    where = covering([names[p] for p in parameters if p in names], trained)
    nameless = [f"a parameter of shape {tuple(p.shape)}" for p in parameters if p not in names]
    return Share(
        groups,
        why,
        (*where, *nameless),
        sum(p.numel() for p in parameters),
        sum(p.numel() * p.element_size() for p in parameters),
    )


def _because(why: str) -> str:
    return f" ({why})" if why else ""
