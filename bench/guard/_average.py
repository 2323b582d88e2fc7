"""A moving average that knows how far off it may be."""


class Average:
    """Bias-corrected exponential moving average of a number; 0 before the first."""

    def __init__(self, decay: float = 0.9) -> None:
        self.decay = decay
        self.mean = 0.0
        self.count = 0
        self._square = 0.0

    def add(self, x: float) -> None:
        """Take in one more."""
        self.count += 1
        weight = (1 - self.decay) / (1 - self.decay**self.count)
        self.mean += weight * (x - self.mean)
        self._square += weight * (x * x - self._square)

    @property
    def error(self) -> float:
        """Standard error of the mean, of independent numbers of one variance."""
        past = self.decay**self.count
        share = (1 - self.decay) / (1 + self.decay) * (1 + past) / (1 - past) if self.count else 0.0
        return float((max(self._square - self.mean**2, 0.0) * share) ** 0.5)
