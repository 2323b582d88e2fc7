"""The result of ``diagnose``."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balanced_grad.diagnosis._contribution import Contribution, Verdict
from balanced_grad.diagnosis._estimates import Estimate, plain
from balanced_grad.diagnosis._probes import EncoderProbe
from balanced_grad.diagnosis._robustness import Robustness
from balanced_grad.diagnosis._signals import TrainingSignals
from balanced_grad.diagnosis._text import text
from balanced_grad.subsets import Subset, in_order, label

PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class SubsetRisk:
    """What the model does with some of the modalities, the others being absent.

    Attributes:
        risk: mean loss, in nats or squared error.
        accuracy: percent of labels predicted rightly; None for a regression.
    """

    risk: Estimate
    accuracy: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return plain(self.__dict__)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class AdditiveGap:
    """What an additive model of the modalities makes of the same predictions (EMAP).

    Attributes:
        items: how many it is computed on.
        risk: that of the additive projection less that of the model: what interactions save.
        points: accuracy of the model less that of the projection, in percentage points; None for a regression.
        accuracy, additive_accuracy: of both on these items, percent.
    """

    items: int
    risk: Estimate
    points: Estimate | None
    accuracy: float | None
    additive_accuracy: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return plain(self.__dict__)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Diagnosis:
    """What each modality is worth to a model; ``print(report)`` shows it, ``report["audio"]`` is one modality.

    Attributes:
        modalities: in the user's order.
        contributions: modality -> its ``Contribution``.
        subsets: subset -> its ``SubsetRisk``, from nothing to everything.
        additive: how much an additive model explains; None for one modality.
        robustness: what is left where modalities are missing.
        settings: numbers of items and passes, and the options of the call.
        probes: modality -> its ``EncoderProbe``; None without ``encoders=``.
        signals: the ``TrainingSignals`` that were given; or None.
    """

    modalities: Subset
    contributions: Mapping[str, Contribution]
    subsets: Mapping[Subset, SubsetRisk]
    additive: AdditiveGap | None
    robustness: Robustness
    settings: Mapping[str, Any]
    probes: Mapping[str, EncoderProbe] | None = None
    signals: TrainingSignals | None = None

    def __getitem__(self, modality: str) -> Contribution:
        return self.contributions[in_order(self.modalities, [modality])[0]]

    @property
    def verdict(self) -> dict[str, Verdict]:
        """Modality -> its verdict."""
        return {name: each.verdict for name, each in self.contributions.items()}

    def subset(self, names: Iterable[str]) -> SubsetRisk:
        """With these modalities; ``KeyError`` for a set that was not measured."""
        key = in_order(self.modalities, names)
        if key not in self.subsets:
            raise KeyError(f"{label(key)} was not measured, only {', '.join(map(label, self.subsets))}")
        return self.subsets[key]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, ready for JSON."""
        return {
            "settings": plain(dict(self.settings)),
            "contributions": plain(dict(self.contributions)),
            "subsets": {label(subset): risk.to_dict() for subset, risk in self.subsets.items()},
            "additive": plain(self.additive),
            "robustness": plain(self.robustness),
            "probes": self.probes and plain(dict(self.probes)),
            "signals": plain(self.signals),
        }

    def to_frame(self) -> Any:
        """The contributions as a ``pandas.DataFrame``, a row for each modality; needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame() needs pandas: pip install pandas; to_dict() needs nothing") from error
        return pandas.DataFrame.from_dict({name: _flat(each) for name, each in self.contributions.items()}, "index")

    def save(self, path: str | Path) -> None:
        """Write the report, by the name's ending.

        ``.html`` one page that needs no network, ``.json`` everything, ``.txt`` what ``print`` shows, and ``.png``,
        ``.svg`` or ``.pdf`` the picture.

        Raises:
            ImportError: for a picture or a page without matplotlib, which ``pip install 'balanced-grad[demo]'`` has.
            ValueError: for another ending.
        """
        from balanced_grad.diagnosis._page import page
        from balanced_grad.diagnosis._picture import save_picture

        path = Path(path)
        kinds: dict[str, Callable[[], str]] = {
            ".html": lambda: page(self),
            ".json": lambda: json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n",
            ".txt": lambda: f"{self}\n",
        }
        if path.suffix in PICTURES:
            save_picture(self, path)
        elif path.suffix in kinds:
            path.write_text(kinds[path.suffix](), encoding="utf-8")
        else:
            raise ValueError(f"{path.name!r}: end the name in one of {', '.join([*kinds, *PICTURES])}")

    def __str__(self) -> str:
        return text(self)


def _flat(contribution: Contribution) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in contribution.to_dict().items():
        if isinstance(value, dict):
            out |= {name if part == "value" else f"{name}_{part}": number for part, number in value.items()}
        else:
            out[name] = value
    return out
