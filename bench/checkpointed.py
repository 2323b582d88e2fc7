"""Cost of a step of transformers under activation checkpointing, one trunk for all losses, beside torchjd's.

    python -m bench.checkpointed                # the table of docs/performance.md
    python -m bench.checkpointed --rounds 30

Small random configurations of what transformers has (4 layers of width 128), forward and backward, all variants
interleaved in one process as in ``bench.trunk``; ratios to the plain sum. The losses are functions of the last hidden
state. One by one, what checkpointing has dropped is computed anew for each loss; batched once for all of them. With
dropout the peer's batched backward raises, so that it is told to go one by one there (``parallel_chunk_size=1``).
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm

import balanced_grad as bg
from bench._interleaved import ratios
from bench._markdown import markdown
from bench.trunk import peer

WORDS, ITEMS, LENGTH, WIDTH = 99, 4, 48, 128
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 2 * WIDTH}
DECODER = SIZES | {"vocab_size": WORDS, "num_key_value_heads": 2}
T5 = {"d_model": WIDTH, "d_ff": 2 * WIDTH, "num_layers": 4, "num_heads": 4, "d_kv": 32, "vocab_size": WORDS}
CONVOLUTIONS = {"conv_dim": (32, 32), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
POSITIONS = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # class -> its configuration
    "BERT, dropout": ("Bert", SIZES | {"vocab_size": WORDS}),
    "T5 encoder, dropout": ("T5Encoder", T5),
    "ViT": ("ViT", SIZES | {"image_size": 56, "patch_size": 8}),
    "Wav2Vec2, dropout": ("Wav2Vec2", SIZES | CONVOLUTIONS | POSITIONS),
    "Qwen2": ("Qwen2", DECODER),
    "Mixtral": ("Mixtral", DECODER | {"num_local_experts": 4}),
}


def build(kind: str, sizes: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind.removesuffix('Encoder')}Config")(**sizes)
    model: Any = getattr(transformers, f"{kind}Model")(config)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def inputs(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        return torch.randn(ITEMS, 3, 56, 56, generator=generator)
    if model.main_input_name == "input_values":
        return torch.randn(ITEMS, 10 * LENGTH, generator=generator)
    return torch.randint(WORDS, (ITEMS, LENGTH), generator=generator)


def losses(z: Tensor, count: int) -> dict[str, Tensor]:
    """Every ``count``-th position is one loss's."""
    return {f"{part}": z[:, part::count].square().mean() for part in range(count)}


def measure(name: str, count: int, rounds: int) -> dict[str, float]:
    """Median over rounds of time / time of the plain sum, per variant."""
    model = build(*MODELS[name])
    x = inputs(model)
    balancer, apart = bg.MinNorm(), bg.MinNorm(level=bg.Parameters(batched=False))

    sum(losses(model(x).last_hidden_state, count).values(), torch.zeros(())).backward()
    reached = [p for p in model.parameters() if p.grad is not None]  # all but a pooler's
    ways: dict[str, Callable[[dict[str, Tensor]], object]] = {
        "plain sum": lambda values: sum(values.values(), torch.zeros(())).backward(),
        "MinNorm": lambda values: balancer(values).backward(),
        "MinNorm, one by one": lambda values: apart(values).backward(),
        "torchjd backward + MGDA": peer(reached, 1 if "dropout" in name else None),
    }
    steps = {name: lambda way=way: way(losses(model(x).last_hidden_state, count)) for name, way in ways.items()}
    return ratios(steps, rounds, before=model.zero_grad, warm_up=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "There is a performance drop")  # the peer's batched attention on a CPU
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = {}
    for name in tqdm(options.models, disable=None):
        for count in (2, 3):
            found = measure(name, count, options.rounds)
            rows[f"{name}, {count} losses"] = [f"{ratio:.2f}" for ratio in found.values()]
    print(markdown("model", found, rows))


if __name__ == "__main__":
    main()
