"""Where per-loss gradients are taken: the options of every balancer that choose it, and the capture they make."""

from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor

from balanced_grad.capture import (
    Capture,
    Delivery,
    FeatureCapture,
    Groups,
    Losses,
    Memory,
    ParameterCapture,
    ParameterFilter,
    Parameters,
    Params,
    Partition,
    Processes,
    ShardedCapture,
    Walk,
)
from balanced_grad.checks import refuse
from balanced_grad.choices import check_choice
from balanced_grad.tokens import Masks, TokenCapture, Tokens

LevelName = Literal["parameters", "features"]
Level = LevelName | Parameters


class Source:
    """The parameters that are balanced, the problems they fall into, the level, the processes, and the rows' memory.

    Args:
        params: see ``Balancer``, and so for all.
        level: a name, ``bg.Parameters(batched=...)``, or ``bg.Tokens(model)``.
        groups: which parameters share a problem.
        include_exclusive: whether the Gramian is over what one loss alone reaches, too.
    """

    def __init__(self, params: Params | None, level: Level | Tokens, groups: Groups, include_exclusive: bool) -> None:
        self.partition = Partition(groups)
        if not self.partition.single and (include_exclusive or level == "features"):
            what = "include_exclusive=True" if include_exclusive else "level='features'"
            raise ValueError(f"groups={groups!r} cannot be combined with {what}; leave one of them out")
        if isinstance(level, str):
            check_choice("level", level, LevelName, ", or give bg.Tokens(model)")
        elif not isinstance(level, Tokens | Parameters):
            raise TypeError(f"level={level!r}: give one of {get_args(LevelName)}, bg.Tokens(model) or bg.Parameters()")
        self.tokens = level if isinstance(level, Tokens) else None
        self.parameters = level if isinstance(level, Parameters) else Parameters()
        self.level: str = level if isinstance(level, str) else "parameters" if self.tokens is None else "tokens"
        self.params = ParameterFilter(params)
        self.memory = Memory(self.parameters)
        self.processes = Processes()

    @property
    def described(self) -> object:
        """The level as it would be written, None for the default."""
        if self.level == "parameters":
            return None if self.parameters == Parameters() else self.parameters
        return self.tokens or self.level

    def note(self, who: str, tokens: Masks | None) -> None:
        """The masks of this batch, for the level that takes them."""
        if self.tokens is None:
            cure = f"write {who}(level=bg.Tokens(model)), or leave them out"
            refuse(who, f"level={self.level!r} splits nothing by tokens; {cure}", tokens=tokens)
        elif tokens is not None:
            self.tokens.note(tokens)

    def capture(self, losses: Losses, features: Mapping[str, Tensor] | None) -> Capture:
        """How the gradients of this batch are taken."""
        if self.tokens is not None:
            return self._of_tokens(losses, self.tokens)
        if self.level == "parameters":
            kind = ShardedCapture if self.params.sharded else ParameterCapture
            return kind(losses, self.params, self.partition, self.memory, self.processes)
        if features is None:
            raise ValueError(
                "level='features' needs the encoder outputs: write balancer(losses, features={'audio': z_audio, ...})"
            )
        return FeatureCapture(losses, features, self.params, self.processes)

    def _of_tokens(self, losses: Losses, tokens: Tokens) -> TokenCapture:
        if self.params.sharded:
            raise RuntimeError(
                "level=bg.Tokens(...) takes whole rows of gradients, and the model is sharded by fully_shard: each "
                "process has a part of them; use DistributedDataParallel"
            )
        return TokenCapture(
            losses, tokens, tokens.positions(), self.params, self.partition, self.memory, self.processes
        )

    def delivery(self, losses: Losses) -> Delivery | None:
        """For weights from losses only: the one backward, where ``params=`` restricts it."""
        if not self.params.restricts:
            return None
        walk = Walk.of(losses, once=True)
        leaves = self.params.restrict(walk.names, walk.reach)
        return Delivery(walk, leaves, left_out=self.params.left_out(walk.reach, walk.names))
