"""The mix-in's hooks on a model that is wrapped or sharded afterwards, as trainers do, on two processes."""

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
pytest.importorskip("transformers")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
WAYS = ["ddp", *(pytest.param(way, marks=fully_shard_on_cpu) for way in ("fsdp2", "fsdp2, kept"))]
METHODS = {
    "uniform": lambda model: bg.Uniform(),
    "mimo": lambda model: bg.MIMO(smoothing=0.1),
    "mimo-rows": lambda model: bg.MIMO(params=model, record_gramian=True),
    "min-norm": lambda model: bg.MinNorm(params=model),
    "mmpareto": lambda model: bg.MMPareto(params=model),
}


def hooked(kind):
    """LLaVA with LoRA: the answers' loss, the same without the image, and the class of the image."""
    import peft

    from balanced_grad.integrations._in_forward import BalancedForward

    tiny = build("llava")
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    with warnings.catch_warnings():  # as in pyproject.toml, which the processes of the pair do not read
        warnings.simplefilter("ignore", FutureWarning)
        model = peft.get_peft_model(tiny.model, lora)
    head = nn.Linear(16, CLASSES)  # called after a second forward, which leaves it sharded

    def losses(model, inputs, outputs):
        ids, labels = inputs["input_ids"], inputs["labels"]
        words = ids != IMAGE
        image = outputs.image_hidden_states.unflatten(0, (len(labels), -1)).mean(1)
        blind = model(input_ids=ids.masked_fill(~words, 0), attention_mask=words.long(), labels=labels)
        return {"joint": outputs.loss, "text": blind.loss, "image": cross_entropy(head(image), inputs["answer"])}

    balancer = METHODS[kind](model)
    forward = BalancedForward(
        model, balancer, head, losses, targets=("answer",), hidden=("answer",), smoother=None, shifted=True
    )
    return model, forward, tiny.batch


def sharded(model, reshard):
    mesh = init_device_mesh("cpu", (2,))
    inner = model.get_base_model().model
    for layer in (*inner.language_model.layers, *inner.vision_tower.encoder.layers):
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard)
    return fully_shard(model, mesh=mesh, reshard_after_forward=reshard)


def train(rank, kind, way):
    model, forward, batch = hooked(kind)
    wrapped = model
    if rank is not None:
        batch = {name: x[2 * rank : 2 * rank + 2] for name, x in batch.items()}
        wrapped = DistributedDataParallel(model) if way == "ddp" else sharded(model, way == "fsdp2")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        with forward.active():
            loss = wrapped(**batch)["loss"]
        loss.backward()
        assert forward.reached
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
        optimizer.step()
        last = forward.balancer.last
        weights = (
            last.weights if last.weights.dim() == 1 else dict(sorted(zip(last.problems, last.weights, strict=True)))
        )
        seen.append((weights, last.losses if kind != "uniform" else None))
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return seen, [p.detach() for p in whole]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", METHODS)
def test_trains_as_one_process_with_the_whole_batch(pair, kind, way):
    whole = train(None, kind, way)
    first, second = pair(train, kind, way)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, whole, **TOLERANCE)


def checkpoint(rank):
    model, forward, batch = hooked("mimo")
    reference, saved, _ = hooked("mimo")
    with saved.active():
        reference(**batch)["loss"].backward()
    sharded(model, True)
    forward.load_whole_state(saved.whole_state())
    torch.testing.assert_close(forward.whole_state(), saved.whole_state(), rtol=0, atol=0)


@fully_shard_on_cpu
def test_a_checkpoint_is_read_into_shards(pair):
    pair(checkpoint)


def by_tokens(rank):
    model, forward, batch = hooked("mimo")
    sharded(model, True)
    forward.balancer = bg.EqualNorms(level=bg.Tokens(model))
    forward.losses = lambda model, inputs, outputs: {"joint": outputs.loss}
    with pytest.raises(RuntimeError, match="sharded"), forward.active():
        model(**batch)["loss"].backward()


@fully_shard_on_cpu
def test_groups_of_tokens_are_refused(pair):
    pair(by_tokens)


class Inside(nn.Module):
    def __init__(self, balancer):
        super().__init__()
        self.audio, self.video = nn.Linear(2, 2), nn.Linear(2, 2)
        self.balancer = balancer

    def forward(self, x):
        a, v = self.audio(x), self.video(x)
        return self.balancer({"joint": (a * v).mean(), "audio": a.square().mean(), "video": v.square().mean()})


def in_their_own_forward(rank):
    from balanced_grad.integrations._outputs import gathered

    for make in (bg.Uniform, bg.MIMO):
        torch.manual_seed(0)
        alone, model = Inside(make()), Inside(make())
        model.load_state_dict(alone.state_dict())
        alone.balancer.process_group = None
        fully_shard(model)(torch.ones(2, 2)).backward()
        alone(torch.ones(2, 2)).backward()
        gradients = [gathered(p.grad) for p in model.parameters()]
        torch.testing.assert_close(gradients, [p.grad for p in alone.parameters()])
    model = Inside(bg.MIMO())
    model.balancer = bg.MinNorm(params=model)
    with pytest.raises(RuntimeError, match=r"called in the forward of a model.*BalancedTrainerMixin"):
        fully_shard(model)(torch.ones(2, 2))


@fully_shard_on_cpu
def test_in_a_forward_of_ones_own_a_backward_per_loss_is_refused(pair):
    pair(in_their_own_forward)
