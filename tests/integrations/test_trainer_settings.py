"""What people set in ``TrainingArguments``, with the mix-in on real architectures: steps against those by hand."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from tests.integrations.test_balanced_trainer import (
    Items,
    attached,
    collate,
    every,
    prepared,
    trainer_of,
    with_lora,
    without_dropout,
)
from tests.integrations.tiny_models import IMAGE, build

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


class Contrast(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, image, text):
        return cross_entropy(self.image(image) @ self.text(text).T, torch.arange(len(image)))


def test_a_mean_beside_the_loss_of_tokens_is_compared_with_a_mean(tmp_path):
    """Two micro-batches of unequal numbers of labels, in float64: text alone, and a contrast, beside the answers'."""
    tiny = build("llava")
    model, contrast = with_lora(tiny.model).double(), Contrast().double()
    without_dropout(model)
    batch = {k: x.double() if x.is_floating_point() else x for k, x in tiny.batch.items() if k != "answer"}
    batch["labels"][1, -2:] = -100

    def losses(model, inputs, outputs):
        ids, labels = inputs["input_ids"], inputs["labels"]
        words = ids != IMAGE
        blind = model(input_ids=ids.masked_fill(~words, 0), attention_mask=words.long(), labels=labels)
        image = outputs["image_hidden_states"].unflatten(0, (len(ids), -1)).mean(1)
        text = model.get_input_embeddings()(ids[:, -2:]).mean(1)
        return {"joint": outputs["loss"], "text": blind.loss, "image": contrast(image, text)}

    weights = {"joint": 1.0, "text": 0.5, "image": 2.0}
    settings = ONE_STEP | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = trainer_of(
        model,
        tiny,
        tmp_path,
        bg.Uniform(weights, record_gramian=True),
        settings,
        heads=contrast,
        losses=losses,
        targets="labels",
        train_dataset=Items(batch),
    )
    parts = [{k: x[i : i + 2] for k, x in batch.items()} for i in (0, 2)]
    leaves = [p for p in model.parameters() if p.requires_grad]
    counts = [int((part["labels"][:, 1:] != -100).sum()) for part in parts]
    wanted = [torch.zeros_like(p) for p in leaves]
    for part, count in zip(parts, counts, strict=True):
        for name, loss in losses(model, part, model(**part)).items():
            found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
            for total, gradient in zip(wanted, found, strict=True):
                total += weights[name] * gradient * count / sum(counts)
    start = [p.detach().clone() for p in leaves]
    trainer.train()
    assert counts[0] != counts[1]
    moved = [before - after.detach() for before, after in zip(start, leaves, strict=True)]
    torch.testing.assert_close(moved, wanted, rtol=1e-5, atol=1e-7)  # the loss of tokens is computed in float32
    assert all(g.norm() > 0 for g in moved[-4:])


def test_items_without_targets_are_predicted(tmp_path):
    tiny = build("clip")
    trainer = prepared("clip", tmp_path)
    trainer.train()
    unlabelled = Items({name: x for name, x in tiny.batch.items() if name not in ("answer", "return_loss")})
    found = trainer.predict(unlabelled)
    assert found.label_ids is None
    assert found.predictions[0].shape[0] == len(unlabelled)


@lora
def test_the_best_model_comes_back_with_its_heads(lora, tmp_path):
    tiny = build("llava")
    settings = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "learning_rate": 0.1}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "rising", "greater_is_better": False}
    steps = iter(range(9))
    trainer = prepared(
        "llava",
        tmp_path,
        bg.MIMO(),
        settings,
        lora=lora,
        eval_dataset=Items(tiny.batch),
        compute_metrics=lambda prediction: {"rising": next(steps)},
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    best = torch.load(tmp_path / "checkpoint-1" / "balanced_grad.pt", weights_only=True)
    last = torch.load(tmp_path / "checkpoint-3" / "balanced_grad.pt", weights_only=True)
    torch.testing.assert_close(dict(trainer._in_forward.state_dict()), dict(best), rtol=0, atol=0)
    assert any(not torch.equal(best[name], last[name]) for name in best)
