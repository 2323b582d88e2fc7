"""The result of ``latent_quality``: one latent per subset, and every difference between them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from balanced_grad.diagnostics._gap import Gap, gap_of, paired_gap
from balanced_grad.diagnostics._items import Array
from balanced_grad.diagnostics._latent import Latent
from balanced_grad.diagnostics._table import table
from balanced_grad.intervals import PairedBootstrap
from balanced_grad.subsets import Subset, in_order, label, shapley_contrast

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class LatentQuality:
    """Which modalities are worth having: the latents of all subsets measured, and their gaps.

    All gaps have the sign of a risk: below zero is better. ``print(report)`` shows the table.

    Attributes:
        modalities: in the user's order.
        latents: subset -> its ``Latent``; the empty subset is the best constant.
        reference: the risk that ``quality`` is measured from: the one given, or else the best over all subsets.
        settings: seeds, numbers of items and the options of the call.
    """

    modalities: tuple[str, ...]
    latents: Mapping[Subset, Latent]
    reference: float
    settings: Settings

    def __getitem__(self, subset: Iterable[str]) -> Latent:
        key = in_order(self.modalities, subset)
        if key not in self.latents:
            measured = ", ".join(map(label, self.latents))
            raise KeyError(f"{label(key)} was not measured, only {measured}: add it to subsets=")
        return self.latents[key]

    def gap(self, first: Iterable[str], second: Iterable[str]) -> Gap:
        """``γ(first, second) = R(first) - R(second)``: what training on the first set instead of the second does."""
        m, n = self[first], self[second]
        gap = self._contrast({m.trained_on: 1.0}, {n.trained_on: -1.0})
        training = None if m.train_loss is None or n.train_loss is None else n.train_loss - m.train_loss
        size = [latent.width if latent.parameters is None else latent.parameters for latent in (m, n)]
        items = self.settings["train_items"]
        return replace(
            gap,
            points=None if m.accuracy is None or n.accuracy is None else m.accuracy - n.accuracy,
            training_gain=training,
            complexity_price=sqrt(size[0] / items) - sqrt(size[1] / items),
        )

    def gaps(self) -> dict[tuple[Subset, Subset], Gap]:
        """Every nested pair: larger subset, smaller subset -> gap."""
        pairs = [(m, n) for m in self.latents for n in self.latents if set(n) < set(m)]
        return {(m, n): self.gap(m, n) for m, n in pairs}

    def added_last(self, modality: str) -> Gap:
        """All modalities against all but this one (leave one out)."""
        return self.gap(self.modalities, [name for name in self.modalities if name != modality])

    def added_first(self, modality: str) -> Gap:
        """One modality alone against the best constant (add one in)."""
        return self.gap([modality], [])

    def shapley(self, modality: str) -> Gap:
        """The mean gap over all orders in which modalities can be added; they sum to ``gap(all, none)``."""
        in_order(self.modalities, [modality])
        contrast = shapley_contrast(self.modalities, modality)
        for subset in contrast:
            self[subset]
        return self._contrast(contrast)

    def encoder_gap(self, modality: str) -> Gap:
        """A head on one encoder of the model of all modalities, against that encoder trained alone.

        Above zero (``"hurts"``) joint training left the encoder behind: what a balanced gradient is to mend.
        Needs an ``encode`` that gives one latent per modality.
        """
        everything, alone = self[self.modalities], self[[modality]]
        if modality not in everything.encoders:
            raise ValueError("encode(inputs) gave one latent for all; return {modality: latent} to tell encoders apart")
        options = {name: self.settings[name] for name in ("confidence", "tolerance", "resamples")}
        return paired_gap(everything.encoders[modality], alone.losses, **options)

    def encoder_gaps(self) -> dict[str, Gap]:
        """``encoder_gap`` of every modality for which both were measured."""
        everything = self.latents.get(self.modalities)
        encoders = everything.encoders if everything else {}
        return {
            name: self.encoder_gap(name) for name in self.modalities if name in encoders and (name,) in self.latents
        }

    @property
    def complete(self) -> bool:
        """Whether all subsets were measured."""
        return len(self.latents) == 1 << len(self.modalities)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, ready for JSON."""
        out: dict[str, Any] = {
            "settings": dict(self.settings),
            "reference": self.reference,
            "latents": {label(subset): latent.to_dict() for subset, latent in self.latents.items()},
            "gaps": [{"first": label(m), "second": label(n), **gap.to_dict()} for (m, n), gap in self.gaps().items()],
        }
        out["encoder_gaps"] = {name: gap.to_dict() for name, gap in self.encoder_gaps().items()}
        if self.complete:
            names = self.modalities
            out["added_last"] = {name: self.added_last(name).to_dict() for name in names}
            out["added_first"] = {name: self.added_first(name).to_dict() for name in names}
            out["shapley"] = {name: self.shapley(name).to_dict() for name in names}
        return out

    def to_json(self, path: str | Path) -> None:
        """Write ``to_dict()``."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def plot(self, path: str | Path) -> None:
        """Write a picture: risk of every subset, and what each modality is worth; needs matplotlib."""
        from balanced_grad.diagnostics._plot import plot_report

        plot_report(self, Path(path))

    def __str__(self) -> str:
        return table(self)

    @cached_property
    def _losses(self) -> Array:
        """``(seeds, subsets, items)``."""
        return np.stack([latent.losses for latent in self.latents.values()], 1)

    @cached_property
    def _bootstrap(self) -> PairedBootstrap:
        return PairedBootstrap(self._losses.shape[2], self.settings["resamples"], len(self._losses))

    def _contrast(self, *parts: Mapping[Subset, float]) -> Gap:
        coefficients = dict.fromkeys(self.latents, 0.0)
        for part in parts:
            for subset, coefficient in part.items():
                coefficients[subset] += coefficient
        contrast = np.array(list(coefficients.values()))
        settings = self.settings
        return gap_of(self._losses, contrast, self._bootstrap, settings["confidence"], settings["tolerance"])
