"""Models that a balancer goes well with: multi-modal systems from the literature, of any user modules."""

from balanced_grad.models._cross_modal import CrossModalVI
from balanced_grad.models._experts import ProductOfExperts
from balanced_grad.models._experts_entropy import expert_entropies
from balanced_grad.models._experts_fit import WeightFit, fit_temperature, fit_weights
from balanced_grad.models._experts_null import NullTokenExpert
from balanced_grad.models._experts_predictions import predictions
from balanced_grad.models._experts_subsets import expert_subsets
from balanced_grad.models._experts_training import ExpertHistory, train_experts
from balanced_grad.models._heads_product import ProductOfHeads
from balanced_grad.models._low_rank_fusion import LowRankFusion
from balanced_grad.models._vi_branch import Modality
from balanced_grad.models._vi_fill_in import FillIn
from balanced_grad.models._vi_likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from balanced_grad.models._vi_objective import Objective

__all__ = [
    "Bernoulli",
    "Categorical",
    "CrossModalVI",
    "ExpertHistory",
    "FillIn",
    "Gaussian",
    "Likelihood",
    "LowRankFusion",
    "Modality",
    "NullTokenExpert",
    "Objective",
    "ProductOfExperts",
    "ProductOfHeads",
    "WeightFit",
    "expert_entropies",
    "expert_subsets",
    "fit_temperature",
    "fit_weights",
    "predictions",
    "train_experts",
]
