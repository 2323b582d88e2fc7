"""What people set in ``TrainingArguments``, with the mix-in on real architectures: steps against those by hand."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from tests.integrations.test_balanced_trainer import (
    Items,
    attached,
    collate,
    every,
    prepared,
    without_dropout,
)
from tests.integrations.tiny_models import build

pytestmark = pytest.mark.filterwarnings("ignore", "error::balanced_grad.InactiveBalancerWarning")
lora = pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
ONE_STEP = {"max_steps": 1, "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 1.0}
ONE_STEP |= {"lr_scheduler_type": "constant", "train_sampling_strategy": "sequential"}


def step_of(name, folder, settings, lora):
    """The gradient of one step, as SGD shows it."""
    trainer = prepared(name, folder, bg.MinNorm(), ONE_STEP | settings, lora=lora)
    trainer._build()
    without_dropout(trainer.model)
    start = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    moved = {n: start[n] - p.detach() for n, p in trainer.model.named_parameters() if n in start}
    return moved, trainer


@every
@lora
def test_metrics_see_the_logits_of_the_model_and_the_labels(name, lora, tmp_path):
    seen = []

    def metrics(prediction):
        seen.append(prediction)
        return {"seen": len(seen)}

    tiny = build(name)
    trainer = prepared(
        name,
        tmp_path,
        settings={"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4},
        lora=lora,
        eval_dataset=Items(tiny.batch),
        compute_metrics=metrics,
    )
    trainer.train()
    assert any("eval_seen" in logs for logs in trainer.state.log_history)
    model = trainer.model.eval()
    inputs = {k: x for k, x in collate([Items(tiny.batch)[i] for i in range(4)]).items() if k != "answer"}
    with torch.no_grad():
        out = model(**inputs)
    last = trainer.predict(Items(tiny.batch))
    logits = last.predictions[0] if isinstance(last.predictions, tuple) else last.predictions
    wanted = out["logits"] if "logits" in out else out["logits_per_image"]
    torch.testing.assert_close(torch.from_numpy(logits)[:4], wanted)
    labels = tiny.batch["labels" if "labels" in tiny.batch else "answer"]  # those of the model, where it has its own
    torch.testing.assert_close(torch.from_numpy(seen[-1].label_ids)[:4], labels)


@every
@lora
def test_activation_checkpointing_changes_nothing(name, lora, tmp_path):
    if name == "wav2vec2 + bert":
        pytest.skip("a model of one's own has no switch for the trainer; its parts have")
    plain, _ = step_of(name, tmp_path, {}, lora)
    for settings in ({}, {"gradient_checkpointing_kwargs": {"use_reentrant": False}}):
        again, trainer = step_of(name, tmp_path, {"gradient_checkpointing": True} | settings, lora)
        if hasattr(trainer.model, "is_gradient_checkpointing"):
            assert trainer.model.is_gradient_checkpointing
        torch.testing.assert_close(again, plain)


@every
@lora
def test_bf16(name, lora, tmp_path):
    plain, _ = step_of(name, tmp_path, {}, lora)
    rounded, trainer = step_of(name, tmp_path, {"bf16": True}, lora)
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    first, second = (torch.cat([g.flatten() for g in each.values()]) for each in (plain, rounded))
    assert 0 < (first - second).norm() < 0.05 * first.norm()


@every
@lora
def test_label_smoothing_is_of_the_loss_of_the_model_and_of_the_heads(name, lora, tmp_path):
    if name == "clip":
        pytest.skip("a contrastive loss has no labels to smooth")
    trainer = prepared(name, tmp_path, settings=ONE_STEP | {"label_smoothing_factor": 0.2}, lora=lora)
    trainer._build()
    without_dropout(trainer.model)
    inputs = next(iter(trainer.get_train_dataloader()))
    heads, labels = trainer._in_forward.heads, inputs["labels"]
    with torch.no_grad():
        logits = trainer.model(**inputs)["logits"]
        wanted = [smoothed(logits[:, :-1], labels[:, 1:]) if labels.dim() > 1 else smoothed(logits, labels)]
        wanted += [smoothed(each, inputs.get("answer", labels)) for each in heads.logits().values()]
    trainer.train()
    torch.testing.assert_close(trainer.balancer.last.losses, torch.stack(wanted))


def smoothed(logits, labels):
    return cross_entropy(logits.flatten(0, -2), labels.flatten(), label_smoothing=0.2)


def test_smoothing_without_logits_is_refused(tmp_path):
    settings = {"label_smoothing_factor": 0.2, "remove_unused_columns": False}
    trainer = prepared("wav2vec2 + bert", tmp_path, settings=settings)
    forward = trainer.model.forward
    trainer.model.forward = lambda **inputs: {"loss": forward(**inputs)["loss"]}
    with pytest.raises(ValueError, match="smooths the model's logits, and it returned none"):
        trainer.train()


def test_what_takes_the_place_of_the_loss_is_refused_wherever_it_comes_from(tmp_path):
    transformers = pytest.importorskip("transformers")
    from balanced_grad.integrations.transformers import BalancedTrainerMixin

    class Rewarded(transformers.Trainer):  # as TRL's with loss_type="dft"
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs, compute_loss_func=lambda outputs, labels, num_items_in_batch: 0)

    class BalancedTrainer(BalancedTrainerMixin, Rewarded):
        pass

    tiny = build("wav2vec2 + bert")
    heads = attached("wav2vec2 + bert", tiny.model, tiny)
    with pytest.raises(ValueError, match=r"return losses by name: losses= .*'chunked_nll'"):
        BalancedTrainer(
            tiny.model, transformers.TrainingArguments(str(tmp_path), use_cpu=True), balancer=bg.MIMO(), heads=heads
        )
