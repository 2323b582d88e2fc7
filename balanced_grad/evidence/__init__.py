"""Gradient uncertainty to evidence to opinions to one fused gradient: BOGC, and the pure functions it is made of.

After "Rethinking Multi-Modal Learning from Gradient Uncertainty" (BOGC-MML, Guo et al., 2025), of which only the
abstract, the opening and digests could be read. Theirs, as far as these tell: gradients of the last layer as random
variables under a Laplace posterior, moment matched to a Gaussian; precision as evidence per modality and dimension;
subjective-logic opinions and a reduced Dempster rule; an uncertainty-weighted sum. Every formula here is our reading.
"""

from balanced_grad.evidence._bogc import BOGC
from balanced_grad.evidence._curvature import laplace_variance, softmax_curvature
from balanced_grad.evidence._estimators import MicroBatchVariance, Moments, SampleVariance, StepVariance, Variance
from balanced_grad.evidence._fuse import Frame, Reduction, fuse_gradients
from balanced_grad.evidence._laplace import Laplace
from balanced_grad.evidence._linear import fisher_curvature, sample_variance
from balanced_grad.evidence._opinions import Opinion, modality_opinion, reduced_dempster
from balanced_grad.evidence._precision import precision_evidence

__all__ = [
    "BOGC",
    "Frame",
    "Laplace",
    "MicroBatchVariance",
    "Moments",
    "Opinion",
    "Reduction",
    "SampleVariance",
    "StepVariance",
    "Variance",
    "fisher_curvature",
    "fuse_gradients",
    "laplace_variance",
    "modality_opinion",
    "precision_evidence",
    "reduced_dempster",
    "sample_variance",
    "softmax_curvature",
]
