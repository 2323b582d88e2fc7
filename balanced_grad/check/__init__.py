"""Which loss reaches which parameters, what is shared, and what balancing will cost: the plan, before training.

The script is given as FILE.py:FUNCTION. The function is called without arguments and builds the model, runs one
batch through it and returns (model, losses), or the losses alone: a mapping of name -> scalar tensor with its graph.
(model, losses, optimizer) shows what the optimizer does not hold, too.
"""

from balanced_grad.check._cost import Cost
from balanced_grad.check._fault import Fault
from balanced_grad.check._plan import check
from balanced_grad.check._report import Bystander, Part, Report
from balanced_grad.check._verification import Verdict, Verification
from balanced_grad.check._verify import verify

__all__ = ["Bystander", "Cost", "Fault", "Part", "Report", "Verdict", "Verification", "check", "verify"]
