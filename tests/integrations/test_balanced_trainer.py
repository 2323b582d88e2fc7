"""The mix-in for the Hugging Face ``Trainer`` on real architectures, by default and with its settings."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import balanced_grad as bg
from tests.integrations.test_loggers import of_events
from tests.integrations.tiny_models import MODELS, build

pytestmark = pytest.mark.filterwarnings(  # what trainers say of workers, devices and themselves
    "ignore", "error::balanced_grad.InactiveBalancerWarning"
)
every = pytest.mark.parametrize("name", MODELS)
REPEATS = 3


class Items(Dataset):
    """Each item of a batch, several times over."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return REPEATS * 4

    def __getitem__(self, index):
        return {key: x[index % 4] if isinstance(x, torch.Tensor) else x for key, x in self.batch.items()}


def collate(items):
    out = {key: torch.stack([item[key] for item in items]) for key in items[0] if key != "return_loss"}
    if "image_grid_thw" in out:
        out["pixel_values"] = out["pixel_values"].flatten(0, 1)
    return out | {key: True for key in items[0] if key == "return_loss"}


def pooled(name):
    """Qwen's vision tower returns the patches of all images in one row."""
    return (lambda output: output.last_hidden_state.unflatten(0, (-1, 16)).mean(1)) if name.startswith("qwen") else None


def with_lora(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=r".*\.(q_proj|v_proj|qkv|query|value)", r=2))


def attached(name, model, tiny, **options):
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    encoders = {modality: inner.get_submodule(path) for modality, path in tiny.encoders.items()}
    return bg.attach(model, encoders, num_outputs=tiny.outputs, pool=pooled(name), **options)


def targets(tiny):
    return "answer" if "answer" in tiny.batch else "labels"


def trainer_of(model, tiny, folder, balancer, settings=None, base=None, **given):
    transformers = pytest.importorskip("transformers")
    from balanced_grad.integrations.transformers import BalancedTrainerMixin

    class BalancedTrainer(BalancedTrainerMixin, base or transformers.Trainer):
        pass

    settings = {"max_steps": 3, "per_device_train_batch_size": 4, "use_cpu": True, "logging_steps": 1} | (
        settings or {}
    )
    given = {"targets": targets(tiny), "data_collator": collate, "train_dataset": Items(tiny.batch)} | given
    return BalancedTrainer(model, transformers.TrainingArguments(str(folder), **settings), balancer=balancer, **given)


def prepared(name, folder, balancer=None, settings=None, lora=False, dtype=torch.float32, **given):
    tiny = build(name)
    model = with_lora(tiny.model) if lora else tiny.model
    model.to(dtype)
    heads = attached(name, model, tiny)
    return trainer_of(model, tiny, folder, balancer or bg.MinNorm(), settings, heads=heads, **given)


def states(trainer):
    ours = trainer._in_forward.state_dict()
    return trainer.model.state_dict(), ours


def assert_same(first, second):
    for a, b in zip(states(first), states(second), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@every
@pytest.mark.parametrize("lora", [False, True])
def test_trains_logs_and_saves_with_the_defaults(name, lora, tmp_path):
    pytest.importorskip("tensorboard")
    trainer = prepared(name, tmp_path, lora=lora, settings={"report_to": "tensorboard"})
    model = trainer.model
    seen = {}

    def look(*_, **__):
        seen.update({n: p.grad is not None for n, p in model.named_parameters()})

    transformers = pytest.importorskip("transformers")
    trainer.add_callback(type("Look", (transformers.TrainerCallback,), {"on_pre_optimizer_step": look})())
    before = {n: p.detach().clone() for n, p in model.named_parameters() if not torch.nn.parameter.is_lazy(p)}
    trainer.train()
    assert trainer.balancer.last.names == ("joint", *trainer._in_forward.heads.heads)
    assert {f"train/balance/weight/{modality}" for modality in trainer.balancer.last.names} <= of_events(tmp_path)
    assert "balance/conflict" in trainer.state.log_history[0]
    moved = {n for n, p in model.named_parameters() if n in before and not torch.equal(p, before[n])}
    if lora:
        assert {n for n, has in seen.items() if has} == {n for n, p in model.named_parameters() if p.requires_grad}
        assert all("lora_" in n for n in moved)
    assert any("lora_" in n or not lora for n in moved)
    assert all(p.grad is None or n in seen for n, p in model.named_parameters())
    checkpoint = tmp_path / "checkpoint-3"
    assert (checkpoint / "balanced_grad.pt").exists()
    saved = checkpoint / ("adapter_model.safetensors" if lora else "model.safetensors")
    names = pytest.importorskip("safetensors.torch").load_file(saved)
    assert names
    assert not any("balanced_grad" in n for n in names)


@every
@pytest.mark.parametrize("lora", [False, True])
def test_gradients_are_those_of_separate_backwards(name, lora, tmp_path):
    """In float64, two micro-batches of unequal numbers of labels: what is compared are the means, in each of them."""
    weights = {"joint": 1.0, "image": 0.5, "text": 2.0, "audio": 3.0}
    tiny = build(name)
    if "labels" in tiny.batch and tiny.batch["labels"].dim() > 1:
        tiny.batch["labels"][1, -2:] = -100
    weights = {"joint": 1.0} | {m: weights[m] for m in tiny.encoders}
    model = (with_lora(tiny.model) if lora else tiny.model).double()
    tiny.batch.update(
        {k: x.double() for k, x in tiny.batch.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    )
    batches = [{k: x[i : i + 2] if isinstance(x, torch.Tensor) else x for k, x in tiny.batch.items()} for i in (0, 2)]
    heads = attached(name, model, tiny)
    settings = {"max_grad_norm": 0.0, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    settings |= {"max_steps": 1, "train_sampling_strategy": "sequential", "optim": "sgd", "learning_rate": 1.0}
    settings |= {"lr_scheduler_type": "constant"}
    trainer = trainer_of(model, tiny, tmp_path, bg.Uniform(weights, record_gramian=True), settings, heads=heads)
    trainer._build()
    without_dropout(model)
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    counts = [
        int((b["labels"] != -100).sum()) if trainer.model_accepts_loss_kwargs and "labels" in b else 1 for b in batches
    ]
    total = {n: torch.zeros_like(p) for n, p in start.items()}
    for inputs, count in zip(batches, counts, strict=True):
        inputs = collate(list(_items(inputs)))
        answer = inputs.pop("answer") if "answer" in inputs else inputs["labels"]
        losses = heads.losses(model(**inputs)["loss"], answer)
        for loss_name, loss in losses.items():
            leaves = {n: p for n, p in model.named_parameters() if p.requires_grad}
            found = torch.autograd.grad(loss, leaves.values(), retain_graph=True, allow_unused=True)
            for n, gradient in zip(leaves, found, strict=True):
                if gradient is not None:
                    total[n] += weights[loss_name] * gradient * count / sum(counts)
    trainer.train()
    moved = {n: start[n] - p.detach() for n, p in model.named_parameters() if n in start}
    generates = counts[0] != 1  # transformers computes the loss of tokens in float32
    torch.testing.assert_close(moved, total, rtol=1e-5 if generates else 1e-10, atol=1e-7 if generates else 1e-12)


def without_dropout(model):
    """The reference draws other numbers."""
    for module in model.modules():
        for setting in [key for key, value in vars(module).items() if "dropout" in key and isinstance(value, float)]:
            setattr(module, setting, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _items(batch):
    return ({k: x[i] if isinstance(x, torch.Tensor) else x for k, x in batch.items()} for i in range(2))


@every
@pytest.mark.parametrize("balancer", [bg.MIMO, bg.MMPareto])
def test_resumed_is_as_never_stopped(name, balancer, tmp_path):
    settings = {"max_steps": 4, "save_steps": 2, "gradient_accumulation_steps": 2}
    through = prepared(name, tmp_path, balancer(), settings, lora=name != "clip")
    through.train()
    resumed = prepared(name, tmp_path, balancer(), settings, lora=name != "clip")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(resumed, through)
    assert resumed.balancer.state_dict().keys() == through.balancer.state_dict().keys()
