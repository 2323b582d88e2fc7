"""What is known of the rules of torchjd, by the names of their classes: it is not imported."""

import sys

from torch import nn

_COUNT_ROWS = {"ConstantWeighting", "MeanWeighting", "RandomWeighting", "SumWeighting"}  # and look at nothing else


def refuse_other_inputs(rule: object) -> None:
    """Refuse what does not take a Gramian, or wraps what does not: given one, it would return numbers all the same."""
    for module in rule.modules() if isinstance(rule, nn.Module) else ():
        kinds, name = _kinds(type(module)), type(module).__name__
        if "Aggregator" in kinds:
            raise TypeError(
                f"weighting={name}(...) aggregates a Jacobian, which bg.Gramian does not have; {_instead(name)}"
            )
        if "_MatrixWeighting" in kinds and not kinds & _COUNT_ROWS:
            raise TypeError(f"weighting={name}(...) needs the Jacobian, and bg.Gramian has its Gramian; {_instead('')}")
        if kinds and "Weighting" not in kinds:
            raise TypeError(f"weighting={name}(...) is no rule from a Gramian to weights; {_instead('')}")
        if getattr(getattr(module, "fn", None), "__name__", "") == "compute_gramian" and kinds:
            raise TypeError(
                "weighting=... << compute_gramian takes a Jacobian, and bg.Gramian has its Gramian; leave "
                "compute_gramian out"
            )


def keeps_state(rule: object) -> bool:
    """Whether a rule remembers the losses of earlier calls, by position, and can forget them by ``reset()``."""
    return "Stateful" in _kinds(type(rule))


def _kinds(kind: type) -> set[str]:
    return {base.__name__ for base in kind.__mro__ if base.__module__.partition(".")[0] == "torchjd"}


def _instead(name: str) -> str:
    rule = f"{name}Weighting"
    exists = name and hasattr(sys.modules.get("torchjd.aggregation"), rule)
    return f"give {rule}(...)" if exists else "give a weighting of Gramians, such as UPGradWeighting()"
