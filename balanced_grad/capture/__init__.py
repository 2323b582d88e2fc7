"""Which loss reaches which parameter, and the gradient each of them sends there."""

from balanced_grad.capture._batched import Parameters
from balanced_grad.capture._delivery import Delivery
from balanced_grad.capture._eager import eager
from balanced_grad.capture._features import FeatureCapture
from balanced_grad.capture._gradients import gradients
from balanced_grad.capture._graph import anchor, leads_to, looked_through, reached
from balanced_grad.capture._hidden import refuse_hidden
from balanced_grad.capture._hook import on_backward, weighted
from balanced_grad.capture._inner import index, select, unit_of
from balanced_grad.capture._losses import JOINT, Losses
from balanced_grad.capture._parameters import Memory, ParameterCapture, Rule, exclusive
from balanced_grad.capture._params import ParameterFilter, Params
from balanced_grad.capture._partition import Groups, Partition
from balanced_grad.capture._plan import Plan
from balanced_grad.capture._processes import Processes, ProcessGroup
from balanced_grad.capture._route import Balancing, Capture, Route
from balanced_grad.capture._rows import Arena, Rows
from balanced_grad.capture._sharded import ShardedCapture
from balanced_grad.capture._shards import unsharded_ids
from balanced_grad.capture._walk import Walk
from balanced_grad.capture._window import Window
from balanced_grad.capture._write import accumulate

__all__ = [
    "JOINT",
    "Arena",
    "Balancing",
    "Capture",
    "Delivery",
    "FeatureCapture",
    "Groups",
    "Losses",
    "Memory",
    "ParameterCapture",
    "ParameterFilter",
    "Parameters",
    "Params",
    "Partition",
    "Plan",
    "ProcessGroup",
    "Processes",
    "Route",
    "Rows",
    "Rule",
    "ShardedCapture",
    "Walk",
    "Window",
    "accumulate",
    "anchor",
    "eager",
    "exclusive",
    "gradients",
    "index",
    "leads_to",
    "looked_through",
    "on_backward",
    "reached",
    "refuse_hidden",
    "select",
    "unit_of",
    "unsharded_ids",
    "weighted",
]
