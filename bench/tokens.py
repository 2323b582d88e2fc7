"""Cost of splitting one loss by tokens on a tiny LLaMA with LoRA adapters, beside torchjd with a loss per modality.

    python -m bench.tokens                 # the table of docs/tokens.md
    python -m bench.tokens --rounds 30

All ways are timed in one process, interleaved round by round, each on a model of its own with the same weights. A
number is the median over rounds of the time of forward and backward, as a ratio to those of the plain loss within the
round.
"""

import argparse
import warnings

import torch
from torchjd.aggregation import MGDA
from torchjd.autojac import backward, jac_to_grad

import balanced_grad as bg
from bench._interleaved import ratios
from bench._markdown import markdown
from bench.trunk import ITEMS, LENGTH, NAMES, build, losses


def masks(count: int) -> dict[str, torch.Tensor]:
    """Stretches of positions, as of an image within a text."""
    place = torch.arange(LENGTH).expand(ITEMS, -1) * count // LENGTH
    return {NAMES[i]: place == i for i in range(count)}


def ways(checkpointed: bool, count: int):
    models = [build(checkpointed) for _ in range(4)]
    plain, split, several, peer = models
    tokens = bg.Tokens(split)
    of_tokens, of_losses, given = bg.MinNorm(level=tokens), bg.MinNorm(), masks(count)
    parameters = [p for p in peer.parameters() if p.requires_grad]

    def torchjd():
        backward(list(losses(peer, count).values()), inputs=parameters)
        jac_to_grad(parameters, MGDA())

    return models, {
        "plain loss": lambda: losses(plain, 1)["joint"].backward(),
        f"MinNorm, {count} groups of tokens": lambda: of_tokens(losses(split, 1), tokens=given).backward(),
        f"MinNorm, {count} losses": lambda: of_losses(losses(several, count)).backward(),
        f"torchjd, {count} losses": torchjd,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "There is a performance drop")  # the peer's batched attention on a CPU
    torch.set_num_threads(1)
    rows = {}
    for checkpointed in (False, True):
        for count in (2, 3):
            models, steps = ways(checkpointed, count)

            def clear(models=models):
                for model in models:
                    model.zero_grad()

            found = ratios(steps, options.rounds, before=clear, warm_up=2)
            kept = "computed anew" if checkpointed else "kept"
            rows[f"{kept}, M = {count}"] = [f"{ratio:.2f}" for ratio in found.values()]
    print(markdown("activations", ["plain", "groups of tokens", "a loss each", "torchjd, a loss each"], rows))


if __name__ == "__main__":
    main()
