"""Time per step beside plain joint training: the two take turns in one loop, so that the machine's mood is shared."""

import numpy as np
import torch

from balanced_grad.demo._data import Dataset
from bench.accuracy._methods import BASELINE, Method, Settings
from bench.accuracy._recipes import SMALL, Recipe
from bench.accuracy._train import Trainer

WARM_UP = 5


def time_beside_joint(
    data: Dataset, method: Method, settings: Settings, optimizer: str, rounds: int, recipe: Recipe = SMALL
) -> dict[str, float]:
    """Medians over ``rounds`` steps of the last phase, in milliseconds.

    ``subroutine``: from the end of the forward pass to the final ``.grad``; ``extra``: that minus the joint
    step's of the same round; ``step`` and ``joint_step``: a whole step of each.
    """
    defaults = BASELINE.settings(optimizer, 0, recipe.defaults)
    joint = Trainer(data, BASELINE, defaults, optimizer, 0, recipe)
    own = Trainer(data, method, settings, optimizer, 0, recipe)
    order = torch.Generator().manual_seed(0)
    seen = []
    for i in range(WARM_UP + rounds):
        batch = data.train[torch.randint(len(data.train), (recipe.batch,), generator=order)]
        turn = (own, joint) if i % 2 else (joint, own)
        times = {id(trainer): trainer.step(batch) for trainer in turn}
        seen.append([*times[id(own)], *times[id(joint)]])
    step, subroutine, joint_step, joint_subroutine = 1000 * np.array(seen[WARM_UP:]).T
    return {
        "step": float(np.median(step)),
        "joint_step": float(np.median(joint_step)),
        "subroutine": float(np.median(subroutine)),
        "joint_subroutine": float(np.median(joint_subroutine)),
        "extra": float(np.median(subroutine - joint_subroutine)),
    }
