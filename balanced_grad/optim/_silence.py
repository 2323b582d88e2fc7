from balanced_grad.modulation import ModalityGroups
from balanced_grad.notices import Notices

SILENT_STEPS = 100


class SilenceWatch:
    """Counts the steps in a row in which a modality received no gradient at all, and reports it once.

    What counts is whether ``.grad`` is there, so nothing waits for a device.
    """

    def __init__(self, modalities: ModalityGroups | None, notices: Notices) -> None:
        self._modalities = modalities
        self._notices = notices
        self._silent = dict.fromkeys(modalities.names, 0) if modalities else {}

    def look(self) -> None:
        """Call once per step, when the gradients are there."""
        if self._modalities is None:
            return
        for name, count in list(self._silent.items()):
            self._silent[name] = 0 if self._modalities.reached(name) else count + 1
            if self._silent[name] == SILENT_STEPS:
                del self._silent[name]
                self._notices.say(
                    ("silent", name),
                    f"modality {name!r} has received no gradient in {SILENT_STEPS} steps in a row; is its encoder in "
                    "the graph of a loss, and the loss given to the balancer?",
                )
