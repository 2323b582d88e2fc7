"""Which loss reaches which parameters, what is shared, and what balancing will cost: the plan, before training.

The script is given as FILE.py:FUNCTION. The function is called without arguments and builds the model, runs one
batch through it and returns (model, losses), or the losses alone: a mapping of name -> scalar tensor with its graph.
"""

from balanced_grad.check._cost import Cost
from balanced_grad.check._report import Part, Report, check

__all__ = ["Cost", "Part", "Report", "check"]
