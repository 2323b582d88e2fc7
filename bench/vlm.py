"""A LLaVA and a Qwen2.5-VL, tiny and trained from scratch, with and without balancing by tokens.

    python -m bench.vlm                    # about an hour on one core for each model
    python -m bench.vlm --models LLaVA     # one of the two tables of docs/tokens.md
    python -m bench.vlm --seeds 1 --steps 100

Each item is a picture of a handwritten digit (scikit-learn), a question and two numbers, and the answer is one digit.
Three kinds of question, a third of the items each: which digit (from the image alone), the first number plus the
second modulo 10 (from the text alone), the digit plus the second number (from both). The second number is 0, 1 or 2.
The loss is the model's own, on the answer. All methods have the same steps and the same three learning rates, of which
the validation part chooses in each seed, as it chooses the step. Printed: test accuracy for each kind of question, and
for each with the pictures of other items; mean and standard deviation over the seeds.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import balanced_grad as bg
from bench._markdown import markdown
from bench.accuracy._statistics import mean_and_deviation

KINDS = ("image", "text", "both")
IMAGE, KIND, START, END, VIDEO = 10, 11, 14, 15, 16  # tokens; 0 to 9 are digits, 11 to 13 the kinds of question
VOCABULARY = 17
RATES = (1e-3, 2e-3, 4e-3)
ITEMS = 96  # of a batch
SIZE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


class Part(NamedTuple):
    """Items of one part: pictures ``(N, 1, 8, 8)``, words ``(N, 4)``."""

    images: Tensor
    words: Tensor

    def take(self, items: Tensor) -> "Part":
        return Part(self.images[items], self.words[items])

    def with_images_of_others(self, generator: torch.Generator) -> "Part":
        return Part(self.images[torch.randperm(len(self.images), generator=generator)], self.words)


def parts(seed: int) -> dict[str, Part]:
    """900 pictures to train on, 400 to choose by, 497 to test on; three questions on each, of every kind one."""
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=generator)
    images = torch.from_numpy(digits.images)[order].float().unsqueeze(1)
    labels = torch.from_numpy(digits.target)[order].long()
    images = (images - images[:900].mean()) / images[:900].std()
    out = {}
    for name, start, stop in (("train", 0, 900), ("validation", 900, 1300), ("test", 1300, len(labels))):
        shown = torch.arange(start, stop).repeat(3)
        kind = torch.arange(3).repeat_interleave(stop - start)
        first = torch.randint(10, shown.shape, generator=generator)
        second = torch.randint(3, shown.shape, generator=generator)
        answers = torch.stack([labels[shown], (first + second) % 10, (labels[shown] + second) % 10])
        answer = answers.gather(0, kind.unsqueeze(0)).squeeze(0)
        out[name] = Part(images[shown], torch.stack([KIND + kind, first, second, answer], 1))
    return out


class Llava(nn.Module):
    """16 patches, then the words."""

    def __init__(self) -> None:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

        super().__init__()
        text = LlamaConfig(**SIZE, vocab_size=VOCABULARY, max_position_embeddings=32)
        vision = CLIPVisionConfig(**SIZE, image_size=8, patch_size=2, num_channels=1)
        config = LlavaConfig(  # type: ignore[call-arg]
            vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-1
        )
        self.model = LlavaForConditionalGeneration(config)

    def forward(self, part: Part) -> Any:
        return self.model(pixel_values=part.images, **_text(part.words, [IMAGE] * 16))


class Qwen(nn.Module):
    """16 patches, merged into 4, then the words."""

    def __init__(self) -> None:
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        super().__init__()
        rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
        text = SIZE | {"num_key_value_heads": 4, "vocab_size": VOCABULARY, "rope_scaling": rope}
        text |= {"max_position_embeddings": 32, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
        vision = {"depth": 2, "num_heads": 4, "in_channels": 1, "patch_size": 2, "window_size": 8}
        vision |= {"hidden_size": 48, "intermediate_size": 96, "out_hidden_size": 48, "fullatt_block_indexes": [1]}
        config = Qwen2_5_VLConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        )
        self.model = Qwen2_5_VLForConditionalGeneration(config)

    def forward(self, part: Part) -> Any:
        count = len(part.images)
        blocks = part.images.view(count, 2, 2, 2, 2, 2, 2).permute(0, 1, 4, 2, 5, 3, 6)  # 2 x 2 patches are merged
        patches = blocks.reshape(count * 16, 1, 1, 4).expand(-1, 1, 2, 4).reshape(count * 16, 8)  # a frame, twice
        grid = torch.tensor([[1, 4, 4]]).expand(count, -1)
        inputs = _text(part.words, [START, *[IMAGE] * 4, END])
        kinds = (inputs["input_ids"] == IMAGE).int()
        return self.model(pixel_values=patches, image_grid_thw=grid, mm_token_type_ids=kinds, **inputs)


MODELS: Mapping[str, Callable[[], nn.Module]] = {"LLaVA": Llava, "Qwen2.5-VL": Qwen}


def _text(words: Tensor, before: Sequence[int]) -> dict[str, Tensor]:
    ids = torch.cat([words.new_tensor(before).expand(len(words), -1), words], 1)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ids[:, -1]
    return {"input_ids": ids, "labels": labels}


METHODS: Mapping[str, Callable[[nn.Module], bg.Balancer | None]] = {
    "plain": lambda model: None,
    "EqualNorms": lambda model: bg.EqualNorms(level=bg.Tokens(model)),
    'Project("text")': lambda model: bg.Project("text", level=bg.Tokens(model)),
    'Project("image")': lambda model: bg.Project("image", level=bg.Tokens(model)),
    "MinNorm": lambda model: bg.MinNorm(level=bg.Tokens(model)),
}


@torch.no_grad()
def accuracy(model: nn.Module, part: Part) -> dict[str, float]:
    model.eval()
    said = torch.cat([model(batch).logits[:, -2].argmax(-1) for batch in map(Part, *(t.split(1024) for t in part))])
    model.train()
    right = said == part.words[:, -1]
    return {kind: 100 * float(right[part.words[:, 0] == KIND + i].float().mean()) for i, kind in enumerate(KINDS)}


def mean(found: Mapping[str, float]) -> float:
    return sum(found.values()) / len(found)


def train(kind: str, method: str, seed: int, rate: float, steps: int) -> tuple[float, dict[str, float]]:
    """Best validation accuracy, and the test accuracies of that step."""
    data = parts(seed)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = MODELS[kind]()
    balancer = METHODS[method](model.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    best, kept = -1.0, {}
    for step in range(steps):
        batch = data["train"].take(torch.randint(len(data["train"].words), (ITEMS,), generator=generator))
        loss = model(batch).loss
        (loss if balancer is None else balancer({"joint": loss})).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % max(steps // 5, 1) == 0 or step == steps - 1:
            now = mean(accuracy(model, data["validation"]))
            if now > best:
                best, kept = now, accuracy(model, data["test"])
                others = accuracy(model, data["test"].with_images_of_others(generator.clone_state()))
                kept |= {f"{question}, other picture": a for question, a in others.items()}
    return best, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, metavar="N", default=5)
    parser.add_argument("--steps", type=int, metavar="N", default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tqdm(total=len(options.models) * len(options.methods) * options.seeds * len(RATES), unit="run") as bar:
        for kind in options.models:
            rows = {}
            for method in options.methods:
                chosen = []
                for seed in range(options.seeds):
                    found = []
                    for rate in RATES:
                        found.append(train(kind, method, seed, rate, options.steps))
                        bar.update()
                    chosen.append(max(found, key=lambda run: run[0])[1])
                rows[method] = [mean_and_deviation([run[question] for run in chosen]) for question in chosen[0]]
            print(markdown(kind, [f"{question}" for question in chosen[0]], rows), flush=True)


if __name__ == "__main__":
    main()
