from collections.abc import Mapping
from dataclasses import dataclass, field

from balanced_grad.check._fault import Fault
from balanced_grad.check._text import table, wrapped

_TOO_RANDOM = 0.1  # relative difference of two plain backwards at which nothing can be told
_SHOWN = 8


@dataclass(frozen=True)
class Verdict:
    """One kind of method, compared with separate backwards on fresh graphs.

    Attributes:
        methods: which kind.
        errors: relative error of each parameter's gradient that rounding does not explain.
        gramian: relative error of the Gramian, where it is not explained either.
        refused: the error with which the balancer refused these losses, or failed.
    """

    methods: str
    errors: Mapping[str, float] = field(default_factory=dict)
    gramian: float | None = None
    refused: str = ""

    @property
    def ok(self) -> bool:
        """Whether everything is right."""
        return not (self.errors or self.gramian or self.refused)

    @property
    def says(self) -> str:
        """``right``, ``refused``, or ``wrong`` by how much."""
        if self.refused:
            return f"refused: {self.refused}"
        wrong = []
        if self.errors:
            name = max(self.errors, key=lambda each: self.errors[each])
            others = f" and {len(self.errors) - 1} more" if len(self.errors) > 1 else ""
            wrong.append(f"{self.errors[name]:.2g} at {name}{others}")
        if self.gramian:
            wrong.append(f"{self.gramian:.2g} in the Gramian, on which weights depend")
        return f"wrong by {'; '.join(wrong)}" if wrong else "right"


@dataclass(frozen=True)
class Verification:
    """What ``verify`` saw, as ``str(verification)`` prints it.

    Attributes:
        verdicts: a kind of method each.
        faults: the operators to blame, and what to do.
        notes: what is right and yet worth knowing.
        noise: largest relative difference of two plain backwards on the same batch; 0 if they are the same.
        tolerance: relative error that rounding explains.
    """

    verdicts: tuple[Verdict, ...]
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]
    noise: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, refused or too random to tell."""
        return all(verdict.ok for verdict in self.verdicts) and not self.faults and self.noise < _TOO_RANDOM

    def __str__(self) -> str:
        lines = [f"gradients of one step against separate backwards (relative error, {self.tolerance:.1g} is rounding)"]
        lines += table((verdict.methods, verdict.says) for verdict in self.verdicts)
        shown = {name: error for verdict in self.verdicts for name, error in verdict.errors.items()}
        if shown:
            lines += ["", "parameters with wrong gradients"]
            worst = sorted(shown, key=lambda name: -shown[name])
            lines += [f"  {shown[name]:<8.2g}{name}" for name in worst[:_SHOWN]]
            lines += [f"  and {len(worst) - _SHOWN} more"] if len(worst) > _SHOWN else []
        for fault in self.faults:
            lines += ["", *wrapped("fault: ", fault.what), *wrapped("  affects: ", fault.affects)]
            lines += wrapped("  at:      ", ", ".join(fault.parameters)) if fault.parameters else []
            lines += wrapped("  cure:    ", fault.cure)
        lines += [""] if self.notes else []
        return "\n".join([*lines, *(line for note in self.notes for line in wrapped("note: ", note))])
