"""Which loss reaches which parameter, and the gradient each of them sends there."""

from balanced_grad.capture._block import Block, Layers, Modules
from balanced_grad.capture._block_capture import BlockCapture, SiteRows
from balanced_grad.capture._eager import eager
from balanced_grad.capture._features import FeatureCapture
from balanced_grad.capture._gradients import backward
from balanced_grad.capture._hook import on_backward, weighted
from balanced_grad.capture._inner import index
from balanced_grad.capture._losses import JOINT, Losses
from balanced_grad.capture._parameters import ParameterCapture
from balanced_grad.capture._partition import Groups, Partition
from balanced_grad.capture._plan import ParameterFilter
from balanced_grad.capture._rows import Arena

Capture = ParameterCapture | FeatureCapture | BlockCapture

__all__ = [
    "JOINT",
    "Arena",
    "Block",
    "BlockCapture",
    "Capture",
    "FeatureCapture",
    "Groups",
    "Layers",
    "Losses",
    "Modules",
    "ParameterCapture",
    "ParameterFilter",
    "Partition",
    "SiteRows",
    "backward",
    "eager",
    "index",
    "on_backward",
    "weighted",
]
