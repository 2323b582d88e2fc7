"""Cost of a step of a tiny LLaMA with LoRA adapters, one trunk for all losses, beside torchjd's on the same model.

    python -m bench.trunk                 # the table of docs/performance.md
    python -m bench.trunk --rounds 30
    python -m bench.trunk --sizes         # one by one against batched, the backward alone, with activations kept

All variants are timed in one process, interleaved round by round; a number is the median over rounds of the time of
forward and backward, as a ratio to those of the plain sum within the round. No optimizer step is counted.
"""

import argparse
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from torchjd.aggregation import MGDA
from torchjd.autojac import backward, jac_to_grad
from transformers import LlamaConfig, LlamaForCausalLM

import balanced_grad as bg
from bench._interleaved import ratios
from bench._markdown import markdown

NAMES = ("joint", "image", "text")
VOCABULARY, ITEMS, LENGTH, WIDTH = 256, 4, 64, 128
SIZES = [(32, 4, 32), (64, 4, 64), (128, 4, 64), (256, 4, 128)]  # width, items, length


def build(checkpointed: bool, width: int = WIDTH, *, adapters: bool = True):
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=2 * LENGTH, use_cache=False, **sizes)
    )
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    if adapters:
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=layers, task_type="CAUSAL_LM"))
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def losses(model, count: int, items: int = ITEMS, length: int = LENGTH):
    """Every ``count``-th position is one loss's."""
    ids = torch.randint(VOCABULARY, (items, length), generator=torch.Generator().manual_seed(1))
    logits = model(input_ids=ids).logits[:, :-1]
    each = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(items, -1)
    return {NAMES[i]: each[:, i::count].mean() for i in range(count)}


def ways(model):
    parameters = [p for p in model.parameters() if p.requires_grad]
    balancer, apart = bg.MinNorm(), bg.MinNorm(level=bg.Parameters(batched=False))
    together = bg.MinNorm(level=bg.Parameters(batched=True))

    return {
        "plain sum": lambda values: sum(values.values()).backward(),
        "MinNorm": lambda values: balancer(values).backward(),
        "MinNorm, one by one": lambda values: apart(values).backward(),
        "MinNorm, batched": lambda values: together(values).backward(),
        "torchjd backward + MGDA": peer(parameters),
        **bare(parameters),
    }


def peer(parameters, chunk=None):
    """torchjd's backward of all losses, or of so many at a time."""

    def step(values):
        backward(list(values.values()), inputs=parameters, parallel_chunk_size=chunk)
        jac_to_grad(parameters, MGDA())

    return step


def bare(parameters):
    """The gradients of all losses and nothing else: what any method pays at the least."""

    def one_by_one(values):
        each = list(values.values())
        for loss in each:
            torch.autograd.grad(loss, parameters, retain_graph=loss is not each[-1])

    def batched(values):
        seeds = list(torch.eye(len(values)).unbind(1))
        torch.autograd.grad(list(values.values()), parameters, seeds, is_grads_batched=True)

    return {"bare, one by one": one_by_one, "bare, batched": batched}


def measure(checkpointed: bool, count: int, rounds: int) -> dict[str, float]:
    """Median over rounds of time / time of the plain sum, per variant."""
    model = build(checkpointed)

    def step(backwards):
        return lambda: backwards(losses(model, count))

    steps = {name: step(way) for name, way in ways(model).items()}
    return ratios(steps, rounds, before=model.zero_grad, warm_up=2)


def by_checkpointing(rounds: int) -> str:
    """Forward and backward of every way, with activations kept and computed anew."""
    rows = {}
    for checkpointed in (False, True):
        for count in (2, 3):
            found = measure(checkpointed, count, rounds)
            kept = "computed anew" if checkpointed else "kept"
            rows[f"{kept}, {count} losses"] = [f"{ratio:.2f}" for ratio in found.values()]
    return markdown("activations", found, rows)


def by_size(rounds: int) -> str:
    """The backward alone, where nothing is computed anew, for growing activations."""
    rows = {}
    for width, items, length in SIZES:
        for adapters in (True, False):
            model = build(False, width, adapters=adapters)
            found = [backwards(model, count, items, length, rounds) for count in (2, 3)]
            name = f"{width * items * length}, {'adapters' if adapters else 'all weights'}"
            rows[name] = [f"{ratio:.2f}" for ratio_of in found for ratio in ratio_of]
    return markdown("numbers per activation", ["2, one by one", "2, batched", "3, one by one", "3, batched"], rows)


def backwards(model, count: int, items: int, length: int, rounds: int) -> list[float]:
    """One by one and batched, as ratios to one backward of the sum; the forward is not timed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    current = {}

    def forward():
        model.zero_grad()
        current.update(losses(model, count, items, length))

    ways = {"plain sum": lambda values: torch.autograd.grad(sum(values.values()), parameters)} | bare(parameters)
    steps = {name: lambda way=way: way(current) for name, way in ways.items()}
    return list(ratios(steps, rounds, before=forward, warm_up=2).values())[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--sizes", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "There is a performance drop")  # the peer's batched attention on a CPU
    torch.set_num_threads(1)
    print(by_size(options.rounds) if options.sizes else by_checkpointing(options.rounds))


if __name__ == "__main__":
    main()
