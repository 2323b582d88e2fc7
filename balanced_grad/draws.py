"""Random numbers of a method's own: drawn where they are needed, alike in all processes, and saved."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Draws:
    """One generator per device, all of one seed, whose states can be saved and go on elsewhere."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: dict[str, torch.Generator] = {}
        self._saved: dict[str, Tensor] = {}  # states of generators that are not made yet

    def on(self, device: torch.device) -> torch.Generator:
        """The generator of this device, which goes on where a saved one was."""
        key = str(device)
        if key not in self._generators:
            self._generators[key] = torch.Generator(device).manual_seed(self.seed)
            if (saved := self._of_its_kind(device)) is not None:
                self._generators[key].set_state(saved)
        return self._generators[key]

    def _of_its_kind(self, device: torch.device) -> Tensor | None:
        """Saved state of this device, or of one of its kind: that of another process, which draws alike."""
        alike = [key for key in self._saved if torch.device(key).type == device.type]
        return self._saved[str(device) if str(device) in alike else alike[0]] if alike else None

    def state(self) -> dict[str, Tensor]:
        """Device -> state of its generator."""
        return self._saved | {device: generator.get_state() for device, generator in self._generators.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """What ``state`` gave, for whatever device is drawn on next."""
        self._generators, self._saved = {}, dict(state)
