"""Diagnosis: what each modality is worth to a trained model, asked on held-out items."""

from balanced_grad.diagnosis._contribution import Contribution, Verdict
from balanced_grad.diagnosis._diagnose import diagnose
from balanced_grad.diagnosis._estimates import Estimate
from balanced_grad.diagnosis._probes import EncoderProbe, ProbeVerdict, probe_encoders
from balanced_grad.diagnosis._report import AdditiveGap, Diagnosis, SubsetRisk
from balanced_grad.diagnosis._robustness import Robustness
from balanced_grad.diagnosis._signals import LossSignal, TrainingSignals, training_signals

__all__ = [
    "AdditiveGap",
    "Contribution",
    "Diagnosis",
    "EncoderProbe",
    "Estimate",
    "LossSignal",
    "ProbeVerdict",
    "Robustness",
    "SubsetRisk",
    "TrainingSignals",
    "Verdict",
    "diagnose",
    "probe_encoders",
    "training_signals",
]
