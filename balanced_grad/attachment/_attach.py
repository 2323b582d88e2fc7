from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from balanced_grad.attachment._attachment import Attachment
from balanced_grad.attachment._heads import Heads
from balanced_grad.attachment._masks import Masks
from balanced_grad.attachment._mute import Inputs, Mute
from balanced_grad.attachment._outputs import EncoderOutputs
from balanced_grad.attachment._pooling import Pool, Pooling
from balanced_grad.attachment._split import SplitHead
from balanced_grad.attachment._watch import HeadsWatch
from balanced_grad.capture import JOINT
from balanced_grad.checks import refuse_beside
from balanced_grad.choices import check_choice
from balanced_grad.labels import Task
from balanced_grad.members import Named, NamedMembers, entries
from balanced_grad.modulation import Muted
from balanced_grad.notices import Notices

Value = TypeVar("Value")


def attach(
    model: nn.Module,
    modalities: Named | Sequence[str],
    num_outputs: int | None = None,
    *,
    task: Task = "classification",
    split: nn.Linear | None = None,
    mute: Inputs | Muted | None = None,
    pool: Pool | Mapping[str, Pool] | None = None,
    mask: str | Mapping[str, str | None] | None = None,
    widths: Mapping[str, int] | None = None,
    stop_gradient: bool = False,
    logits: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
) -> Attachment:
    """Uni-modal logits, losses and scores for a model that has none, without editing it.

    Forward hooks catch what each encoder returns. Uni-modal logits then come from one of three places:

        heads (num_outputs=):  W_m z_m + b_m, a light head per modality, trained with the rest
        split:                 W_m z_m + b/M, the model's own linear head on concatenated features
        mute:                  f(x_m, 0), the model again with the other inputs zeroed, one forward per modality

    Args:
        model: the model whose forward is called in training.
        modalities: name -> encoder, a module inside ``model``, also as ``ModalityGroups``; for ``mute`` the names
            are enough.
        num_outputs: number of classes, labels or targets: makes heads.
        task: ``"classification"`` (default), ``"multilabel"`` or ``"regression"``; decides loss and score.
        split: the linear head whose input is the encoders' outputs, concatenated in the order of ``modalities``.
        mute: name -> argument of ``model.forward``, or several; or a function ``present -> logits`` that runs the
            model on this batch with all other modalities muted. Passes run in eval mode.
        pool: function from an encoder's output to features ``(B, D)``, for all or by name. Default: Hugging Face's
            ``pooler_output``, else ``last_hidden_state``, else the first tensor; ``(B, T, D)`` averaged over the time
            that is no padding, ``(B, D, H, W)`` and the like over space. A pool with an argument ``mask`` gets
            ``(B, T)``, True where there is no padding, or None.
        mask: the argument that says what is padding, of the encoder or else of the model, for all or by name; None
            by name: no mask. True is padding where the argument's name has "padding" in it, and no padding where not;
            integers ``(B,)`` are lengths. Default: what the encoder is called with as ``attention_mask``,
            ``src_key_padding_mask``, ``key_padding_mask`` or ``padding_mask``.
        widths: name -> ``D``: makes the heads at once, beside the encoder's parameters. Default: at the first batch,
            on the features' device and in their dtype, or the encoder's where that has more digits, as when a trainer's
            autocast has ended (float32 under autocast).
        stop_gradient: train the heads as probes only, no gradient to the encoders: for methods that need scores of a
            joint training, such as OGM. Default: encoders learn from the uni-modal losses too.
        logits: for ``mute``, function from the model's output to logits; default: the tensor itself or its ``logits``.
        seed: of the heads' initialisation, which leaves the global generator alone.

    Returns:
        An ``Attachment``: ``losses(joint, labels)``, ``scores(labels)``, ``logits()``, ``add_to(optimizer)``,
        ``detach()``. Its ``state_dict`` holds the heads and loads before the first batch too.

    Raises:
        TypeError, ValueError: for a model or encoders that are no modules, an encoder outside the model or named
            twice, and anything but one of ``num_outputs``, ``split`` and ``mute``.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> from torch import nn
        >>> class Late(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.ears, self.eyes, self.head = nn.Linear(3, 4), nn.Linear(5, 4), nn.Linear(8, 2)
        ...     def forward(self, audio, video):
        ...         return self.head(torch.cat([self.ears(audio), self.eyes(video)], 1))
        >>> model, labels = Late(), torch.tensor([0, 1])
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> aux = bg.attach(model, {"audio": model.ears, "video": model.eyes}, num_outputs=2)
        >>> aux.add_to(optimizer)
        >>> joint = nn.functional.cross_entropy(model(torch.ones(2, 3), torch.ones(2, 5)), labels)
        >>> losses = aux.losses(joint, labels)
        >>> list(losses)
        ['joint', 'audio', 'video']
        >>> bg.MIMO()(losses).backward()
        >>> aux.detach()
    """
    _check(model, task, {"num_outputs": num_outputs, "split": split, "mute": mute})
    names = modalities.names if isinstance(modalities, NamedMembers) else tuple(modalities)
    if mute is not None:
        refuse_beside("mute", pool=pool, mask=mask, widths=widths, stop_gradient=stop_gradient)
        muted = Mute(model, names, _inputs(mute, names) if isinstance(mute, Mapping) else mute, logits)
        return Attachment(muted, task, None, muted)
    refuse_beside("num_outputs" if split is None else "split", logits=logits)
    encoders = encoders_of(model, modalities)
    notices = Notices()
    pooling = Pooling(by_name("pool", pool, names), Masks(model, by_name("mask", mask, names), notices))
    widths = _named("widths", widths or {}, names)
    rule: Heads | SplitHead
    heads, watch = None, None
    if split is not None:
        rule = SplitHead(names, split, widths)
    else:
        assert num_outputs is not None
        heads = rule = Heads(num_outputs, seed, {name: _like(encoder, model) for name, encoder in encoders.items()})
        heads.build(widths)
        watch = HeadsWatch(heads, {} if stop_gradient else encoders, notices)
    outputs = EncoderOutputs(model, encoders, rule, pooling=pooling, stop_gradient=stop_gradient)
    return Attachment(outputs, task, heads, None, watch)


def _check(model: object, task: object, ways: Mapping[str, object]) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give the module whose forward is called in training")
    check_choice("task", task, Task)
    chosen = [name for name, value in ways.items() if value is not None]
    if len(chosen) != 1:
        raise ValueError(
            "give one of num_outputs= (heads to be trained), split= (the model's linear head) and mute= (other inputs "
            f"zeroed), not {' and '.join(chosen) or 'none'}"
        )


def by_name(setting: str, value: Value | Mapping[str, Value] | None, names: tuple[str, ...]) -> dict[str, Value]:
    """A setting for all modalities, or of some by name."""
    if value is None:
        return {}
    return _named(setting, value if isinstance(value, Mapping) else dict.fromkeys(names, value), names)


def _named(setting: str, by_name: Mapping[str, Value], names: tuple[str, ...]) -> dict[str, Value]:
    unknown = [name for name in by_name if name not in names]
    if unknown:
        raise ValueError(f"{setting}[{unknown[0]!r}]: there is no such modality; they are {list(names)}")
    return dict(by_name)


def _inputs(mute: Inputs, names: tuple[str, ...]) -> Inputs:
    inputs = _named("mute", mute, names)
    silent = [name for name in names if name not in inputs]
    if silent:
        raise ValueError(f"mute= names no input of {silent[0]!r}; write mute={{{silent[0]!r}: 'its argument', ...}}")
    return inputs


def encoders_of(model: nn.Module, modalities: Named | Sequence[str]) -> dict[str, nn.Module]:
    """Name -> encoder; refuses what is no module of the model."""
    inside = {id(module) for module in model.modules()}
    encoders: dict[str, nn.Module] = {}
    for name, encoder in entries(modalities, "modalities", "encoder").items():
        if name == JOINT:
            raise ValueError(f"{JOINT!r} is the name of the fused prediction's loss; name the modality otherwise")
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"modalities[{name!r}] is a {type(encoder).__name__}; give the encoder module itself")
        if id(encoder) not in inside:
            raise ValueError(f"modalities[{name!r}] is no module of the model, which therefore never calls it")
        twin = next((other for other, module in encoders.items() if module is encoder), None)
        if twin is not None:
            raise ValueError(f"{twin!r} and {name!r} are the same module, whose two outputs no hook can tell apart")
        encoders[name] = encoder
    return encoders


def _like(encoder: nn.Module, model: nn.Module) -> Tensor:
    """A tensor with the device and dtype of the encoder, or else of the model."""
    parameters = (p for module in (encoder, model) for p in module.parameters() if p.is_floating_point())
    return next(parameters, torch.empty((), device="cpu"))
