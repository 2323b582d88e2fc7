from balanced_grad.balancer import Balancer
from balanced_grad.records import Step

IDLE_STEPS = 10  # more than steps of others between two of one's own, as in adversarial training


class ActivityWatch:
    """Says once that a balancer is not called although steps pass, by the identity of ``balancer.last``.

    Args:
        balancer: the balancer.
        cure: what to look at, for the message.
        at_once: whether a balancer that has never been called is worth a word after the first step.
    """

    def __init__(self, balancer: Balancer, cure: str, *, at_once: bool = False) -> None:
        self._balancer = balancer
        self._cure = cure
        self._at_once = at_once
        self._seen: Step | None = balancer.last
        self._idle = 0

    def look(self) -> None:
        """Call once per step, after it."""
        last = self._balancer.last
        self._idle = 0 if last is not self._seen else self._idle + 1
        self._seen = last
        if self._idle >= IDLE_STEPS or (self._at_once and last is None):
            when = f"in {self._idle} steps in a row" if self._idle >= IDLE_STEPS else "although a step has been made"
            self._balancer.notices.say(
                "idle", f"the balancer has not been called {when}, so nothing is balanced: {self._cure}"
            )
