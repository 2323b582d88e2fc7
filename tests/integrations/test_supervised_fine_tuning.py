"""The mix-in on a trainer that does to ``Trainer`` what TRL 1.10's ``SFTTrainer`` does, which need not be installed.

It reads labels and outputs around ``super().compute_loss``, counts in metrics of its own, by training or evaluation,
adds inputs, names its own columns, steps inside a context, and by default replaces the forward of the model on the
instance by one that returns no logits, a loss in checkpointed pieces, and fields of its own.
"""

import contextlib
import inspect
import itertools
import types
from collections import defaultdict
from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import balanced_grad as bg
from tests.integrations.test_balanced_trainer import Items, attached, collate, with_lora, without_dropout
from tests.integrations.tiny_models import IMAGE, build

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore", "error::balanced_grad.InactiveBalancerWarning")
pieces = pytest.mark.parametrize("in_pieces", [False, True], ids=["nll", "chunked_nll"])


@dataclass
class InPieces(transformers.modeling_outputs.CausalLMOutputWithPast):
    correct: torch.Tensor | None = None
    counted: torch.Tensor | None = None


def piece(hidden, weight, labels):
    logits = (hidden @ weight.T).float()
    return cross_entropy(logits, labels, reduction="sum"), (logits.argmax(-1) == labels).sum()


def compute_in_pieces(model, size=3):
    """Replaces ``forward`` on the instance: logits of labelled tokens only, ``size`` at a time."""
    original = model.forward

    def forward(self, input_ids=None, attention_mask=None, labels=None, num_items_in_batch=None, **kwargs):
        if labels is None:
            return original(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        hidden = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        hidden, labels = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        known = labels != -100
        parts = [
            checkpoint(piece, h, self.lm_head.weight, y, use_reentrant=False)
            for h, y in zip(hidden[known].split(size), labels[known].split(size), strict=True)
        ]
        counted = known.sum()
        loss = sum(loss for loss, _ in parts) / (counted if num_items_in_batch is None else num_items_in_batch)
        return InPieces(loss=loss, correct=sum(right for _, right in parts), counted=counted)

    vars(forward)["__signature__"] = inspect.signature(original.__func__)
    model.forward = types.MethodType(forward, model)


class Supervised(transformers.Trainer):
    _signature_columns: list[str] | None

    def __init__(self, model, args, in_pieces=False, **kwargs):
        if in_pieces:
            compute_in_pieces(model.get_base_model() if hasattr(model, "get_base_model") else model)
        self.in_pieces = in_pieces
        super().__init__(model=model, args=args, **kwargs)
        self.metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self.step_context = contextlib.nullcontext()

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns = ["input_ids", "labels", "pixel_values", "attention_mask"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        inputs.pop("_losses_only", None)
        labels = inputs["labels"]
        inputs["use_cache"] = False
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        with torch.no_grad():
            if self.in_pieces:
                accuracy = outputs.correct / outputs.counted
            else:
                known = labels[:, 1:] != -100
                accuracy = (outputs.logits[:, :-1].argmax(-1) == labels[:, 1:])[known].float().mean()
        self.metrics[mode]["accuracy"].append(accuracy.item())
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs["_losses_only"] = prediction_loss_only
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)

    def training_step(self, *args, **kwargs):
        with self.step_context:
            return super().training_step(*args, **kwargs)

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        prefix = "eval_" if mode == "eval" else ""
        logs |= {prefix + name: sum(values) / len(values) for name, values in self.metrics[mode].items()}
        super().log(logs, start_time)
        self.metrics[mode].clear()


def mixed():
    from balanced_grad.integrations.transformers import BalancedTrainerMixin

    class BalancedSupervised(BalancedTrainerMixin, Supervised):
        pass

    return BalancedSupervised


SETTINGS = {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 1}
SETTINGS |= {"use_cpu": True, "eval_strategy": "steps", "eval_steps": 1, "report_to": "none"}
SETTINGS |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}


def prepared(folder, trainer, in_pieces, settings=(), answers=False, arguments=transformers.TrainingArguments, **given):
    tiny = build("llava")
    model = with_lora(tiny.model)
    without_dropout(model)
    tiny.batch["labels"][1, -2:] = -100
    batch = {name: x for name, x in tiny.batch.items() if answers or name != "answer"}
    if isinstance(given.get("balancer"), types.FunctionType):
        given["balancer"] = given["balancer"](model)
    heads = given.pop("heads", lambda tiny, model: None)(tiny, model)
    if heads is not None:
        given["heads"] = heads
    return trainer(
        model,
        arguments(str(folder), **SETTINGS | dict(settings)),
        in_pieces=in_pieces,
        data_collator=collate,
        train_dataset=Items(batch),
        eval_dataset=Items(batch),
        **given,
    )


def result(trainer):
    trainer.train()
    timeless = [
        {k: v for k, v in logs.items() if not any(word in k for word in ("runtime", "per_second", "balance/"))}
        for logs in trainer.state.log_history
    ]
    return timeless, {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}


def joint_alone(model, inputs, outputs):
    return {"joint": outputs.loss}


def without_image(model, inputs, outputs):
    words = inputs["input_ids"] != IMAGE
    ids = inputs["input_ids"].masked_fill(~words, 0)
    blind = model(input_ids=ids, attention_mask=words.long(), labels=inputs["labels"])
    return {"joint": outputs.loss, "text": blind.loss}


@pieces
def test_of_the_joint_loss_alone_it_is_the_trainer_itself(in_pieces, tmp_path):
    plain, moved = result(prepared(tmp_path, Supervised, in_pieces))
    ours, ours_moved = result(prepared(tmp_path, mixed(), in_pieces, balancer=bg.Uniform(), losses=joint_alone))
    assert any("eval_accuracy" in logs for logs in plain)
    assert [logs.keys() for logs in ours] == [logs.keys() for logs in plain]
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    torch.testing.assert_close(ours_moved, moved, rtol=1e-4, atol=1e-6)


def test_in_pieces_it_trains_as_in_one(tmp_path):
    """Methods that take a backward per loss, on a loss that is computed in checkpointed pieces."""
    (_, whole), (_, parts) = (
        result(prepared(tmp_path, mixed(), in_pieces, balancer=bg.MinNorm(), losses=without_image))
        for in_pieces in (False, True)
    )
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


@pieces
def test_attached_heads_are_made_without_a_trace_in_the_metrics(in_pieces, tmp_path):
    trainer = prepared(
        tmp_path,
        mixed(),
        in_pieces,
        answers=True,
        balancer=bg.MMPareto(),
        heads=lambda tiny, model: attached("llava", model, tiny),
        targets="answer",
    )
    trainer._build()
    assert not trainer._in_forward.lazy
    assert not any(trainer.metrics.values())
    trainer.train()
    assert trainer.balancer.last.names == ("joint", "image")


@pieces
def test_resumes(in_pieces, tmp_path):
    settings = {"max_steps": 4, "save_steps": 2}
    given = {"settings": settings, "losses": without_image}
    _, through = result(prepared(tmp_path, mixed(), in_pieces, balancer=bg.MIMO(), **given))
    again = prepared(tmp_path, mixed(), in_pieces, balancer=bg.MIMO(), **given)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    resumed = {n: p for n, p in again.model.named_parameters() if p.requires_grad}
    torch.testing.assert_close(resumed, through, rtol=0, atol=0)


@dataclass
class Offloading(transformers.TrainingArguments):
    activation_offloading: bool = True


def fetched_once():
    """Activations kept elsewhere, and gone from there when they are fetched."""
    kept, numbers = {}, itertools.count()

    def put(tensor):
        number = next(numbers)
        kept[number] = tensor
        return number

    return torch.autograd.graph.saved_tensors_hooks(put, kept.pop)


@pytest.mark.parametrize(
    "given",
    [
        {"balancer": lambda model: bg.Uniform(), "losses": without_image},
        {"balancer": lambda model: bg.MIMO(), "losses": without_image},
        {"balancer": lambda model: bg.EqualNorms(level=bg.Tokens(model)), "losses": joint_alone},
    ],
    ids=["uniform", "mimo", "tokens"],
)
def test_activations_that_are_fetched_once_serve_one_backward(given, tmp_path):
    settings = {"gradient_checkpointing": False, "eval_strategy": "no"}
    _, kept = result(prepared(tmp_path, mixed(), False, settings, **given))
    trainer = prepared(tmp_path, mixed(), False, settings, arguments=Offloading, **given)
    trainer.step_context = fetched_once()
    _, offloaded = result(trainer)
    torch.testing.assert_close(offloaded, kept)


@pieces
def test_groups_of_tokens(in_pieces, tmp_path):
    given = {"balancer": lambda model: bg.EqualNorms(level=bg.Tokens(model)), "losses": joint_alone}
    trainer = prepared(tmp_path, mixed(), in_pieces, **given)
    trainer.train()
    assert trainer.balancer.last.names == ("text", "image")


def test_activations_that_are_fetched_once_are_refused_where_several_backwards_want_them(tmp_path):
    trainer = prepared(tmp_path, mixed(), False, arguments=Offloading, balancer=bg.MinNorm(), losses=without_image)
    with pytest.raises(ValueError, match=r"activation_offloading=True fetches each activation once, and MinNorm"):
        trainer.train()
