"""Modalities inside one transformer: the gradient of one loss in rows, one for each group of positions."""

from balanced_grad.tokens._capture import TokenCapture
from balanced_grad.tokens._layers import shares
from balanced_grad.tokens._masks import REST, Positions
from balanced_grad.tokens._tokens import MaskFunction, Masks, Tokens

__all__ = ["REST", "MaskFunction", "Masks", "Positions", "TokenCapture", "Tokens", "shares"]
