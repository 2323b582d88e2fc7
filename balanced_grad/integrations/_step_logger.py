from types import TracebackType

import torch
from torch import Tensor

from balanced_grad.balancer import Balancer
from balanced_grad.integrations._logger import BalancerLog
from balanced_grad.integrations._writers import Writer


class StepLogger(BalancerLog):
    """Records every step of a balancer in a loop of your own, without a wait for the device in it.

    Values stay on the device for ``every`` steps and are then read at once. ``records`` holds all of them, for
    ``bg.plot_history``; the writers get each. A balancer that is not called is said once, as a
    ``bg.InactiveBalancerWarning``. Names are those of ``log_values(pairs=True)``.

    Args:
        balancer: whose steps are recorded.
        writers: ``TensorBoard(folder)``, ``JSONLines(path)``, ``CSV(path)``, or what has ``write(step, values)`` and
            ``close()``.
        every: steps between two reads of the device; default 50 (ours).
        prefix: of every name. Default ``"balance/"``.

    Raises:
        TypeError: for a writer without ``write`` and ``close``.
        ValueError: for ``every`` below 1.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> from balanced_grad.integrations import StepLogger
        >>> w, balancer = torch.ones(2, requires_grad=True), bg.MIMO()
        >>> with StepLogger(balancer) as log:  # StepLogger(balancer, JSONLines("steps.jsonl"))
        ...     for _ in range(3):
        ...         balancer({"joint": w.sum(), "audio": w[0] ** 2}).backward()
        ...         log.step()
        >>> len(log.records), log.records[2]["step"], log.records[0]["balance/loss/audio"]
        (3, 2, 1.0)
    """

    def __init__(self, balancer: Balancer, *writers: Writer, every: int = 50, prefix: str = "balance/") -> None:
        super().__init__(balancer, prefix)
        wrong = [each for each in writers if not (hasattr(each, "write") and hasattr(each, "close"))]
        if wrong:
            raise TypeError(f"a writer is a {type(wrong[0]).__name__}; give JSONLines(path), or what writes and closes")
        if every < 1:
            raise ValueError(f"every={every!r}: give a whole number of steps, at least 1")
        self.records: list[dict[str, float]] = []
        self._writers = writers
        self._every = every
        self._waiting: list[tuple[int, dict[str, Tensor]]] = []
        self._next = 0

    def step(self, number: int | None = None) -> None:
        """Call once per step, after ``backward()``; ``number`` is the step's, default one more than the last."""
        self._activity.look()
        number = self._next if number is None else number
        self._next = number + 1
        values = self.values(pairs=True)
        if values:
            self._waiting.append((number, values))
        if len(self._waiting) >= self._every:
            self.flush()

    def flush(self) -> None:
        """Read from the device what waits there, and write it."""
        for (number, values), row in zip(self._waiting, _read([values for _, values in self._waiting]), strict=True):
            named = dict(zip(values, row, strict=True))
            self.records.append({"step": number, **named})
            for writer in self._writers:
                writer.write(number, named)
        self._waiting = []

    def close(self) -> None:
        """Flush, and close the writers."""
        self.flush()
        for writer in self._writers:
            writer.close()

    def __enter__(self) -> "StepLogger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(steps: list[dict[str, Tensor]]) -> list[list[float]]:
    """All values, by one transfer where they are on one device."""
    if not steps:
        return []
    flat = [value.detach().double().reshape(()) for values in steps for value in values.values()]
    one = len({value.device for value in flat}) == 1
    numbers: list[float] = torch.stack(flat).tolist() if one else [value.item() for value in flat]
    out, start = [], 0
    for values in steps:
        out.append(numbers[start : start + len(values)])
        start += len(values)
    return out
