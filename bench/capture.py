"""Cost of a training step by how per-loss gradients are taken, as a ratio to forward + backward of the sum.

    python -m bench.capture                       # the table of docs/performance.md
    python -m bench.capture --encoders conv --modalities 2 --rounds 30
    python -m bench.capture --device cuda

All variants are timed in one process, interleaved round by round (so that drift hits all alike), with one
warm-up round; the ratio is the median over rounds of the ratio within a round. No optimizer step is counted.
"""

import argparse
import warnings

import torch

import balanced_grad as bg
from balanced_grad.evidence import StepVariance
from bench._interleaved import ratios
from bench._markdown import markdown
from bench._models import ENCODERS, Model

try:
    from torchjd.aggregation import MGDA
    from torchjd.autojac import jac_to_grad, mtl_backward
except ImportError:  # the bench extra is optional
    mtl_backward = None


def plain(model, losses):
    sum(losses.values()).backward()


def per_loss(model, losses):
    """The floor of any exact method: one autograd.grad per loss, each for what it reaches, results dropped."""
    names = list(model.names)
    for name in names:
        reached = [*model.encoders[name].parameters(), *model.heads[name].parameters()]
        torch.autograd.grad(losses[name], reached, retain_graph=True)
    torch.autograd.grad(losses["joint"], [*model.encoders.parameters(), *model.fused.parameters()])


def with_balancer(balancer):
    def backward(model, losses):
        balancer(losses, model.features if balancer.level == "features" else None).backward()

    return backward


def torchjd_shared(model, losses):
    """The released peer: Jacobians at the encoders, its MGDA, the heads by their own loss."""
    features = list(model.features.values())
    heads = [list(model.fused.parameters()), *(list(head.parameters()) for head in model.heads.values())]
    encoders = [p for encoder in model.encoders.values() for p in encoder.parameters()]
    mtl_backward(list(losses.values()), features=features, tasks_params=heads, shared_params=encoders)
    jac_to_grad(encoders, MGDA())


def variants(model):
    out = {
        "plain sum": plain,
        "bare autograd.grad per loss": per_loss,
        "Uniform": with_balancer(bg.Uniform()),
        "MIMO": with_balancer(bg.MIMO()),
        "MinNorm, parameters": with_balancer(bg.MinNorm()),
        "MinNorm, features": with_balancer(bg.MinNorm(level="features")),
        "BOGC, last layers": with_balancer(bg.BOGC(model.last_layers())),
        "BOGC, whole encoders": with_balancer(bg.BOGC(model.encoders, StepVariance(), layers="all")),
    }
    return out | ({"torchjd mtl_backward + MGDA": torchjd_shared} if mtl_backward else {})


def measure(kind: str, modalities: int, batch: int, rounds: int, device: str = "cpu") -> dict[str, float]:
    """Median over rounds of time / time of the plain sum, per variant."""
    torch.manual_seed(0)
    model = Model(kind, modalities).to(device)
    inputs, label = model.batch(batch)

    def step(backward):
        return lambda: backward(model, model.losses(inputs, label))

    ways = {name: step(backward) for name, backward in variants(model).items()}
    return ratios(ways, rounds, before=model.zero_grad, device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", choices=list(ENCODERS), default=list(ENCODERS))
    parser.add_argument("--modalities", nargs="+", type=int, choices=(1, 2, 3), default=[2, 3])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message=".*batching rule.*")  # torchjd's vmap over attention
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.threads} threads, batch {arguments.batch}")
    names = list(variants(Model("mlp", 1)))
    rows = {}
    for kind in arguments.encoders:
        for modalities in arguments.modalities:
            ratios = measure(kind, modalities, arguments.batch, arguments.rounds, arguments.device)
            rows[f"{kind}, M={modalities}"] = [f"{ratios[name]:.2f}" for name in names]
    print(markdown("encoders", names, rows))


if __name__ == "__main__":
    main()
