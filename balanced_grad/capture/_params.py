import weakref
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from torch import Tensor, nn

from balanced_grad.capture._shards import is_dtensor, unsharded
from balanced_grad.capture._walk import Walk

_LOOK_AGAIN = 100  # steps after which hooks are looked for at leaves that had none
Reach = Mapping[Tensor, Sequence[int]]  # per leaf, the losses that reach it
Params = nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]]


class ParameterFilter:
    """The leaves that may receive a gradient: those given by the user, or all that the losses reach.

    A module is asked for its parameters anew in every step, so that one whose layers are replaced, or whose parameters
    are, stays right; parameters given one by one are kept as they are.
    """

    def __init__(self, params: Params | None = None) -> None:
        self._names: dict[Tensor, str] | None = None
        self._met: dict[int, tuple[weakref.ref[Tensor], tuple[tuple[int, ...], int]]] = {}  # by id: shape, number
        self._unhooked: dict[int, weakref.ref[Tensor]] = {}  # by id: leaves without hooks on their accumulators
        self._plans = 0
        self._module = params if isinstance(params, nn.Module) else None
        self.sharded = False  # whether these are the shards that ``fully_shard`` makes of a model
        if params is None:
            return
        if isinstance(params, Tensor):
            raise TypeError("params must be an iterable of parameters, got one tensor; write params=[tensor]")
        self._take(params.named_parameters() if isinstance(params, nn.Module) else params)

    def _take(self, params: Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        names: dict[Tensor, str] = {}
        for position, entry in enumerate(params):
            name, tensor = entry if isinstance(entry, tuple) else (f"params[{position}]", entry)
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"{name} is a {type(tensor).__name__}; give model.parameters() or model.named_parameters()"
                )
            if not tensor.is_leaf:
                raise ValueError(f"{name} is not a leaf tensor; give the parameters themselves, not functions of them")
            names[tensor] = name
        if not names:
            raise ValueError("params is empty; give model.parameters(), or leave it out to use all reached parameters")
        self._names = names
        self.sharded = any(is_dtensor(tensor) for tensor in names)

    def refresh(self) -> None:
        """Ask a module for its parameters of this step."""
        if self._module is not None:
            shards = unsharded()
            self._take((name, shards.get(id(p), p)) for name, p in self._module.named_parameters())

    @property
    def given(self) -> list[Tensor] | None:
        """The user's restriction: trainable parameters, or None for all."""
        return None if self._names is None else [p for p in self._names if p.requires_grad]

    @property
    def restricts(self) -> bool:
        """Whether an ordinary backward is to be restricted to them: not to shards, to which no graph leads."""
        return self._names is not None and not self.sharded

    def __contains__(self, leaf: Tensor) -> bool:
        return self._names is None or leaf in self._names

    def divide(self, reach: Reach) -> tuple[dict[Tensor, Sequence[int]], dict[Tensor, Sequence[int]]]:
        """Of the leaves that losses reach, those to be balanced, and those that just get their gradient.

        The latter are leaves that are no ``nn.Parameter`` where others are. With ``params=`` there are none: what is
        not named gets no gradient.
        """
        if self._names is not None:
            return {leaf: losses for leaf, losses in reach.items() if leaf in self._names}, {}
        balanced: dict[Tensor, Sequence[int]] = {
            leaf: losses for leaf, losses in reach.items() if isinstance(leaf, nn.Parameter)
        }
        if not balanced:
            return dict(reach), {}
        return balanced, {leaf: losses for leaf, losses in reach.items() if leaf not in balanced}

    def refuse_unreached(self, names: Sequence[str], reach: Reach) -> None:
        """Refuse ``params=`` among which a loss finds nothing to train."""
        if self._names is None:
            return
        met = {loss for losses in reach.values() for loss in losses}
        for index, name in enumerate(names):
            if index not in met:
                raise ValueError(
                    f"loss {name!r} reaches none of the parameters given as params=; add its modality's parameters "
                    "there, or leave this loss out. If the model was changed, loaded or copied after the balancer was "
                    "made, give params=model instead, which is asked for its parameters in every step"
                )

    def restrict(self, names: Sequence[str], reach: Reach) -> list[Tensor]:
        """Those of ``params=`` that the losses reach; refuses if there are none."""
        balanced, _ = self.divide(reach)
        if not balanced:
            self.refuse_unreached(names[:1], {})
        return list(balanced)

    def left_out(self, reach: Reach, names: Sequence[str]) -> str | None:
        """What to say of trainable parameters that the losses reach and ``params=`` does not name."""
        if not self.restricts:
            return None
        out = [leaf for leaf in reach if isinstance(leaf, nn.Parameter) and leaf not in self]
        if not out:
            return None
        first = out[0]
        by = ", ".join(repr(names[loss]) for loss in reach[first])
        return (
            f"params= leaves out {len(out)} trainable parameters that the losses reach, so they get no gradient; the "
            f"first has shape {tuple(first.shape)} and is reached by {by}. Attached heads, and layers that were added "
            "after the balancer was made, belong in params=; or leave it out, or give params=model, which is asked for "
            "its parameters in every step; requires_grad_(False) says that it is meant"
        )

    def label(self, leaf: Tensor) -> str:
        """The user's name of a parameter, or its shape and a number by first meeting, alike in every run."""
        name = (self._names or {}).get(leaf)
        if name is not None:
            return name
        met = self._met.get(id(leaf))
        if met is None or met[0]() is not leaf:
            self._met = {key: entry for key, entry in self._met.items() if entry[0]() is not None}
            shape = tuple(leaf.shape)
            taken = {number for _, (other, number) in self._met.values() if other == shape}
            met = weakref.ref(leaf), (shape, next(n for n in count(1) if n not in taken))
            self._met[id(leaf)] = met
        shape, number = met[1]
        return f"{shape}#{number}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_met": {}, "_unhooked": {}}  # a copy has other tensors, and meets them itself

    def check(self, walk: Walk, reach: Reach, unsharded: frozenset[int]) -> None:
        """Refuse parameters whose hooks or sharding a captured gradient would silently pass by."""
        if self._plans % _LOOK_AGAIN == 0:
            self._unhooked.clear()
        self._plans += 1
        for leaf, losses in reach.items():
            self.refuse_hooks(leaf, walk.names, losses)
            self.refuse_flat(leaf, walk.names, losses)
            if is_dtensor(leaf) or id(leaf) in unsharded:
                raise RuntimeError(
                    f"{self._where(leaf, walk.names, losses)} is sharded, and the graph leads to its unsharded copy "
                    "only: give the balancer params=model, or params=model.parameters() after fully_shard(model), with "
                    "every parameter of the model sharded, or use a losses-only balancer such as Uniform or MIMO"
                )
            looked_at = self._unhooked.get(id(leaf))
            if looked_at is None or looked_at() is not leaf:
                self._refuse_hooked(walk, leaf, losses)

    def _refuse_hooked(self, walk: Walk, leaf: Tensor, losses: Sequence[int]) -> None:
        """Refuse a hook by which a reducer learns that a gradient is there; looked for now and then, as it costs."""
        if walk.hooked(leaf):
            raise RuntimeError(
                f"{self._where(leaf, walk.names, losses)} has a hook on the node that accumulates its gradient, as "
                "older sharded or reduced data parallel wrappers put there, which capturing per-loss gradients would "
                "bypass; use DistributedDataParallel, or a losses-only balancer such as Uniform or MIMO"
            )
        self._unhooked[id(leaf)] = weakref.ref(leaf)

    def refuse_flat(self, leaf: Tensor, names: tuple[str, ...], losses: Iterable[int]) -> None:
        """Refuse what FSDP1 makes of parameters."""
        if getattr(leaf, "_is_flat_param", False):
            raise RuntimeError(
                f"{self._where(leaf, names, losses)} is sharded by FullyShardedDataParallel (FSDP1), which cannot "
                "run several backwards over one graph; shard the model with torch.distributed.fsdp.fully_shard, or use "
                "a losses-only balancer such as Uniform or MIMO"
            )

    def refuse_hooks(self, leaf: Tensor, names: tuple[str, ...], losses: Iterable[int]) -> None:
        """Refuse a parameter with a hook that is called when its gradient has been accumulated."""
        hooks = getattr(leaf, "_post_accumulate_grad_hooks", None)
        if hooks and any(str(getattr(hook, "__module__", "")).startswith("deepspeed") for hook in hooks.values()):
            raise RuntimeError(
                f"{self._where(leaf, names, losses)} is trained by DeepSpeed's ZeRO, which collects each gradient in "
                "one backward, where per-loss gradients at the parameters take several: use DistributedDataParallel or "
                "fully_shard, level='features' with ZeRO 1 or 2, or a losses-only balancer such as Uniform or MIMO"
            )
        if hooks:
            raise RuntimeError(
                f"{self._where(leaf, names, losses)} has a post-accumulate-grad hook, which capturing per-loss "
                "gradients would bypass; remove the hook (optimizer-in-backward, offloading), use level='features', or "
                "a losses-only balancer"
            )

    def _where(self, leaf: Tensor, names: Sequence[str], losses: Iterable[int]) -> str:
        """How a parameter is called in errors."""
        what = (self._names or {}).get(leaf, f"a parameter of shape {tuple(leaf.shape)}")
        return f"{what} (reached by {', '.join(repr(names[loss]) for loss in losses)})"

    def __repr__(self) -> str:
        return "all reached" if self._names is None else f"{len(self._names)} given"
