"""A vision-language model with LoRA on two processes with half of every batch, against one with all of it."""

import warnings

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import balanced_grad as bg
from tests.integrations.tiny_models import CLASSES, IMAGE, build
from tests.releases import fully_shard_on_cpu

pytest.importorskip("peft")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
METHODS = {
    "uniform": lambda model: bg.Uniform(),
    "mimo": lambda model: bg.MIMO(smoothing=0.1),
    "min-norm": lambda model: bg.MinNorm(params=model.named_parameters()),
    "min-norm-encoders": lambda model: bg.MinNorm(params=model.named_parameters(), groups="reach"),
    "mmpareto": lambda model: bg.MMPareto(params=model.named_parameters()),
}


class Losses(nn.Module):
    """The answers' loss, the same without the image, and the class of the image."""

    def __init__(self):
        super().__init__()
        import peft

        tiny = build("llava")
        lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
        with warnings.catch_warnings():  # as in pyproject.toml, which the processes of the pair do not read
            warnings.simplefilter("ignore", FutureWarning)
            self.model = peft.get_peft_model(tiny.model, lora)
        self.head = nn.Linear(16, CLASSES)
        self.batch = tiny.batch

    def forward(self, input_ids, labels, pixel_values, answer, **_):
        out = self.model(input_ids=input_ids, labels=labels, pixel_values=pixel_values)
        words = input_ids != IMAGE
        blind = self.model(input_ids=input_ids.masked_fill(~words, 0), attention_mask=words.long(), labels=labels)
        image = out.image_hidden_states.unflatten(0, (len(labels), -1)).mean(1)
        return {"joint": out.loss, "text": blind.loss, "image": cross_entropy(self.head(image), answer)}


def sharded(model):
    mesh = init_device_mesh("cpu", (2,))
    inner = model.model.get_base_model().model
    for layer in (*inner.language_model.layers, *inner.vision_tower.encoder.layers):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(rank, kind, way):
    model = Losses()
    batch = model.batch if rank is None else {name: x[2 * rank : 2 * rank + 2] for name, x in model.batch.items()}
    torch.manual_seed(0)
    wrapped = {"ddp": DistributedDataParallel, "fsdp2": sharded}[way](model) if rank is not None else model
    balancer = METHODS[kind](model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        balancer(wrapped(**batch)).backward()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
        optimizer.step()
        seen.append(by_problem(balancer.last, losses=kind != "uniform"))  # its losses stay local: it looks at none
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return seen, [p.detach() for p in whole]


def by_problem(step, losses):
    """Problems come in the order in which the losses reach their parameters, or, sharded, in that of ``params=``."""
    several = step.weights.dim() == 2
    parts = [part for part in (step.weights, step.gramian) if part is not None]
    named = [dict(sorted(zip(step.problems, part, strict=True))) for part in parts] if several else parts
    return named, step.losses if losses else None


@pytest.mark.parametrize("way", ["ddp", pytest.param("fsdp2", marks=fully_shard_on_cpu)])
@pytest.mark.parametrize("kind", METHODS)
def test_trains_as_one_process_with_the_whole_batch(pair, kind, way):
    whole = train(None, kind, way)
    first, second = pair(train, kind, way)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, whole, **TOLERANCE)
