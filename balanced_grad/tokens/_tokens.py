import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from balanced_grad.capture import anchor
from balanced_grad.members import Named, NamedMembers
from balanced_grad.tokens._masks import Positions
from balanced_grad.tokens._split import splits
from balanced_grad.tokens._tag import watch

Masks = Mapping[str, Tensor]
MaskFunction = Callable[[Mapping[str, Any]], Masks]
_KINDS = {0: "text", 1: "image", 2: "video", 3: "audio"}  # of mm_token_type_ids in transformers
_LABELS = ("image", "video", "audio")


class Tokens:
    """Modalities inside one transformer: groups of the positions of its sequence, which share every weight.

    The gradient of a layer is a sum over positions: for a linear one, with input ``x_t`` and the gradient ``g_t`` of
    the loss at its output,

        dL/dW = Σ_t g_t x_tᵀ = Σ_m Σ_{t in m} g_t x_tᵀ

    so that it splits into a row for each group ``m``, in one ordinary backward of one loss. The rows take the place
    of the gradients of several losses in a method: ``bg.MinNorm(level=bg.Tokens(model))``. The model stays as it is:
    hooks note what goes through its linear layers, embeddings, normalisations and convolutions, LoRA's among them.
    Other parameters, and layers whose positions are not those of the masks, get their plain gradient.

    Args:
        model: what is trained, as you call it.
        masks: function of the inputs of ``model.forward``, by name, that returns the masks of ``tokens=``. Default: the
            kinds that transformers gives as ``mm_token_type_ids``; without them, the places in ``input_ids`` that
            the model's configuration names for images, video and audio, and ``"text"``, which is the rest of them
            that ``attention_mask`` leaves. Masks given to the balancer's call come first.
        layers: the module whose layers work on these positions: the language model inside of a larger one. Default:
            all of ``model``, where a layer is known by the shape of its output.
        modules: name -> modules, such as ``{"image": model.vision_tower}``: what is trained there belongs to this
            group as a whole.

    Masks are boolean, ``(B, T)``, or ``(total,)`` for packed sequences; they exclude each other, and what they leave is
    a group of its own, ``"rest"``. A group without a position in this batch takes no part.

    Raises:
        TypeError: for what is no module.
        ValueError: for a model in which no layer could be split.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> balancer = bg.MinNorm(level=bg.Tokens(layer), normalize="none", rescale="none")
        >>> x = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # one sequence of two positions
        >>> image = torch.tensor([[True, False]])
        >>> balancer({"joint": layer(x).sum()}, tokens={"image": image, "text": ~image}).backward()
        >>> balancer.last.names, balancer.last.weights, layer.weight.grad
        (('image', 'text'), tensor([0.8000, 0.2000], dtype=torch.float64), tensor([[0.8000, 0.4000]]))
    """

    def __init__(
        self,
        model: nn.Module,
        masks: MaskFunction | None = None,
        *,
        layers: nn.Module | None = None,
        modules: Named | None = None,
    ) -> None:
        for name, value in {"model": model, "layers": model if layers is None else layers}.items():
            if not isinstance(value, nn.Module):
                raise TypeError(f"{name} is a {type(value).__name__}; give the module that is trained")
        if masks is not None and not callable(masks):
            raise TypeError(
                f"masks is a {type(masks).__name__}; give a function of the model's inputs, or the masks of a batch in "
                "the call: balancer(losses, tokens={'image': mask})"
            )
        self.anchor = anchor(_device(model))
        self.model = model
        self.modules = None if modules is None else NamedMembers(modules, "modules")
        self._masks = masks
        self._noted: Masks | None = None
        self.why: Mapping[Tensor, str] = {}  # of the last batch: what was not split, and the reason
        self._layers = model if layers is None else layers
        watched = [layer for layer in self._layers.modules() if splits(layer)]
        if not watched:
            raise ValueError(
                f"{type(self._layers).__name__} has no layer whose gradient splits by position: a linear layer, "
                "an embedding, a normalisation or a convolution"
            )
        self._handles = [watch(layer, self.anchor) for layer in watched]
        self._handles.append(model.register_forward_pre_hook(self._look, with_kwargs=True))

    def owners(self) -> dict[Tensor, str]:
        """Under which name each parameter of ``modules`` is."""
        return {} if self.modules is None else self.modules.owners()

    def unsplit(self) -> dict[str, str]:
        """Names of the trained parameters of watched layers that the last batch did not split, and why."""
        return {name: self.why[p] for name, p in self.model.named_parameters() if p in self.why}

    def note(self, tokens: Masks) -> None:
        """The masks of this batch, in the place of those that the model's inputs tell of."""
        self._noted = tokens

    def positions(self, *, keep: bool = False) -> Positions:
        """The groups of this batch, which are asked for once, or kept for another who asks."""
        masks, self._noted = self._noted, self._noted if keep else None
        if masks is None:
            raise ValueError(
                "nothing says which position is of which modality: write balancer(losses, tokens={'image': mask, "
                "'text': ~mask}), or give bg.Tokens(model, masks=) a function of the model's inputs"
            )
        return Positions(masks)

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _look(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        with torch.no_grad():
            given = dict(_named(model, args, kwargs))
            self._noted = masks_of(model, given) if self._masks is None else self._masks(given)

    def __repr__(self) -> str:
        return f"Tokens({type(self.model).__name__})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Tokens":
        raise TypeError("bg.Tokens watches one model; make a new one, and a balancer for it, for the copy")


def masks_of(model: nn.Module, inputs: Mapping[str, Any]) -> Masks | None:
    """The masks that a model of transformers tells of: by ``mm_token_type_ids``, or by the ids of its configuration."""
    kinds = inputs.get("mm_token_type_ids")
    ids = inputs.get("input_ids")
    if isinstance(kinds, Tensor):
        masks = {name: kinds == kind for kind, name in _KINDS.items()}
    elif isinstance(ids, Tensor):
        found = {name: _token(model, name) for name in _LABELS}
        masks = {name: ids == token for name, token in found.items() if token is not None}
        if not masks:
            return None
        masks = {"text": ~torch.stack(list(masks.values())).any(0)} | masks
    else:
        return None
    attended = inputs.get("attention_mask")
    if isinstance(attended, Tensor) and attended.shape == masks["text"].shape:
        masks["text"] = masks["text"] & attended.bool()
    return masks


def _token(model: nn.Module, name: str) -> int | None:
    """The id at the places of a modality, as the configuration of the model, or of the one inside, has it."""
    config = getattr(model, "config", None)
    for attribute in (f"{name}_token_id", f"{name}_token_index"):
        token = getattr(config, attribute, None)
        if isinstance(token, int):
            return token
    return None


def _named(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The inputs of a call by name, also those that a wrapper such as that of PEFT passes on."""
    base: Any = model
    inner = base.get_base_model() if hasattr(base, "get_base_model") else model
    names = [name for name in inspect.signature(inner.forward).parameters if name != "self"]
    yield from zip(names, args, strict=False)
    yield from kwargs.items()


def _device(model: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in model.parameters()), None)
