"""Diagnostics: what a model has learned from each modality, and whether a modality is worth having."""

from balanced_grad.diagnostics._curve import SampleSizeCurve, sample_size_curve
from balanced_grad.diagnostics._gap import Gap, Verdict, paired_gap
from balanced_grad.diagnostics._latent import Latent
from balanced_grad.diagnostics._latent_quality import latent_quality
from balanced_grad.diagnostics._model import Model, Train
from balanced_grad.diagnostics._report import LatentQuality

__all__ = [
    "Gap",
    "Latent",
    "LatentQuality",
    "Model",
    "SampleSizeCurve",
    "Train",
    "Verdict",
    "latent_quality",
    "paired_gap",
    "sample_size_curve",
]
