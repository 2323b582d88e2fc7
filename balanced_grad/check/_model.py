"""What a model's modules and an optimizer say about the reach of the losses."""

from collections.abc import Collection, Iterator, Mapping

from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.optim import Optimizer

from balanced_grad.check._names import covering
from balanced_grad.check._text import listed


def without_a_loss(model: nn.Module, joint: Tensor, alone: Collection[Tensor], shared: Collection[Tensor]) -> list[str]:
    """Modules that the joint loss alone reaches (``alone``), though nothing that other losses reach lies below them.

    So is an encoder without a uni-modal loss. A fused head lies behind what the losses share.
    """
    above = _first_joins(joint, set(shared))
    out: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix + ".") for prefix in out):
            continue
        parameters = [p for p in module.parameters() if p.requires_grad]
        if parameters and all(p in alone and not above.get(p, True) for p in parameters):
            out.append(name)
    return out


def _first_joins(loss: Tensor, shared: set[Tensor]) -> dict[Tensor, bool]:
    """Per leaf, whether the first operator that joins it with anything else lies above a shared parameter."""
    order: list[Node] = []
    users: dict[Node, list[Node]] = {}
    stack = [get_gradient_edge(loss).node]
    seen = set(stack)
    while stack:
        node = stack.pop()
        order.append(node)
        for child, _ in node.next_functions:
            if child is not None:
                users.setdefault(child, []).append(node)
                if child not in seen:
                    seen.add(child)
                    stack.append(child)
    over: set[Node] = set()
    spreading = [node for node in order if getattr(node, "variable", None) in shared]
    while spreading:
        for user in users.get(spreading.pop(), ()):
            if user not in over:
                over.add(user)
                spreading.append(user)
    leaves = ((getattr(node, "variable", None), node) for node in order)
    return {leaf: any(join in over for join in _joins(node, users)) for leaf, node in leaves if leaf is not None}


def _joins(node: Node, users: Mapping[Node, list[Node]]) -> Iterator[Node]:
    stack, seen = [node], {node}
    while stack:
        for user in users.get(stack.pop(), ()):
            if len(user.next_functions) > 1:
                yield user
            elif user not in seen:
                seen.add(user)
                stack.append(user)


def not_trained(
    optimizer: Optimizer, reached: Mapping[Tensor, str], names: Mapping[Tensor, str], bystanders: Collection[Tensor]
) -> Iterator[str]:
    """Sentences about an optimizer that does not hold what the losses reach, or holds what is gone.

    Args:
        optimizer: the one that steps.
        reached: parameter -> what to call it.
        names: parameter of the model -> its name; empty where there is no model.
        bystanders: what the losses reach that is no parameter.
    """
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    left_out = [name for parameter, name in reached.items() if parameter not in held]
    if left_out:
        yield (
            f"the optimizer does not hold {listed(covering(left_out, list(reached.values())))}: they get gradients and "
            "are never stepped; heads made by bg.attach are added with aux.add_to(optimizer)"
        )
    for tensor in held:
        if tensor in bystanders:
            yield (
                f"the optimizer holds a tensor of shape {tuple(tensor.shape)} that is no nn.Parameter, so weights are "
                "chosen without it; write torch.nn.Parameter(...)"
            )
    stale = [p for p in held if p.requires_grad and not (p in names or p in reached or p in bystanders)]
    if names and stale:
        yield (
            f"the optimizer holds {len(stale)} parameters that are neither in the model nor reached by a loss: was a "
            "layer replaced, or the model moved, after the optimizer was made?"
        )
