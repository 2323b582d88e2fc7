"""Which loss reaches which parameter, and the gradient each of them sends there."""

from balanced_grad.capture._block import Block, Layers, Modules
from balanced_grad.capture._block_capture import BlockCapture
from balanced_grad.capture._block_exchange import SiteRows
from balanced_grad.capture._delivery import Delivery
from balanced_grad.capture._eager import eager
from balanced_grad.capture._features import FeatureCapture
from balanced_grad.capture._hook import on_backward, weighted
from balanced_grad.capture._inner import index, select
from balanced_grad.capture._losses import JOINT, Losses
from balanced_grad.capture._parameters import Memory, ParameterCapture
from balanced_grad.capture._params import ParameterFilter, Params
from balanced_grad.capture._partition import Groups, Partition
from balanced_grad.capture._plan import Plan
from balanced_grad.capture._processes import Group as ProcessGroup
from balanced_grad.capture._processes import Processes
from balanced_grad.capture._rows import Arena
from balanced_grad.capture._sharded import ShardedCapture
from balanced_grad.capture._walk import Walk
from balanced_grad.capture._window import Window

Capture = ParameterCapture | FeatureCapture | BlockCapture

__all__ = [
    "JOINT",
    "Arena",
    "Block",
    "BlockCapture",
    "Capture",
    "Delivery",
    "FeatureCapture",
    "Groups",
    "Layers",
    "Losses",
    "Memory",
    "Modules",
    "ParameterCapture",
    "ParameterFilter",
    "Params",
    "Partition",
    "Plan",
    "ProcessGroup",
    "Processes",
    "ShardedCapture",
    "SiteRows",
    "Walk",
    "Window",
    "eager",
    "index",
    "on_backward",
    "select",
    "weighted",
]
