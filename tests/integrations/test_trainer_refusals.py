"""What the mix-in refuses before training, of DeepSpeed by what Accelerate knows of it: it need not be installed."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from tests.integrations.test_balanced_trainer import prepared

pytestmark = pytest.mark.filterwarnings("ignore", "error::balanced_grad.InactiveBalancerWarning")
ENCODERS = {"audio": nn.Linear(2, 2), "video": nn.Linear(2, 2)}
CAPTURING = r"ZeRO 2 collects each gradient in one backward, and \w+ takes one per loss.*level='features'.*MIMO"
REFUSED = [
    (2, bg.MinNorm(), {}, CAPTURING),
    (2, bg.MMPareto(), {}, CAPTURING),
    (2, bg.MIMO(record_gramian=True), {}, CAPTURING),
    (2, bg.BOGC(ENCODERS), {}, CAPTURING),
    (2, bg.EqualNorms(level=bg.Tokens(nn.Linear(2, 2))), {}, CAPTURING),
    (2, bg.MinNorm(level="features"), {"accumulate": "rows"}, CAPTURING),
    (0, bg.MinNorm(), {}, "^DeepSpeed collects each gradient in one backward"),
    (3, bg.MinNorm(level="features"), {}, r"ZeRO 3 gathers parameters around one backward.*use ZeRO 1 or 2"),
    (3, bg.OGM(ENCODERS, target="gradient"), {}, r"ZeRO 3 gathers parameters around one backward"),
    (3, bg.MIMO(), {"heads": nn.Linear(2, 2)}, r"ZeRO 3 leaves no head whole.*use ZeRO 1 or 2, or FSDP2"),
    (1, bg.OGM(ENCODERS), {}, r"whose updates OGM cannot multiply.*target='gradient'"),
    (1, bg.HeldOut(bg.MIMO()), {}, r"in which HeldOut cannot check"),
]
ALLOWED = [
    (2, bg.Uniform(), {}),
    (2, bg.MIMO(), {"heads": nn.Linear(2, 2)}),
    (2, bg.MinNorm(level="features"), {}),
    (1, bg.OGM(ENCODERS, target="gradient"), {}),
    (3, bg.MIMO(), {}),
]


def ask(stage, balancer, options):
    pytest.importorskip("transformers")
    from balanced_grad.integrations._hugging_face_refusals import refuse_settings

    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    accelerator = SimpleNamespace(state=state)
    trainer = SimpleNamespace(args=SimpleNamespace(), is_deepspeed_enabled=True, accelerator=accelerator)
    refuse_settings(trainer, balancer, options.get("heads"), options.get("accumulate", "gradients"))


@pytest.mark.parametrize(("stage", "balancer", "options", "message"), REFUSED)
def test_of_deepspeed_what_cannot_work_is_named(stage, balancer, options, message):
    with pytest.raises(ValueError, match=message):
        ask(stage, balancer, options)


@pytest.mark.parametrize(("stage", "balancer", "options"), ALLOWED)
def test_of_deepspeed_what_takes_one_backward_is_let_through(stage, balancer, options):
    ask(stage, balancer, options)


def test_a_trainer_that_calls_the_model_without_labels_is_stopped(tmp_path):
    """As TRL's for preferences and rewards."""
    transformers = pytest.importorskip("transformers")

    class Preferring(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            return cross_entropy(model(**inputs)["logits"], labels)

    trainer = prepared("wav2vec2 + bert", tmp_path, bg.MIMO(), base=Preferring)
    with pytest.raises(ValueError, match="the model returned no loss, which is the joint one"):
        trainer.train()


def test_before_the_first_step(tmp_path, monkeypatch):
    trainer = prepared("clip", tmp_path, bg.MinNorm())
    plugin = SimpleNamespace(zero_stage=2)
    monkeypatch.setattr(type(trainer.accelerator.state), "deepspeed_plugin", plugin)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match=CAPTURING):
        trainer.train()
    assert trainer._in_forward.lazy  # no forward has been run


def test_a_resume_under_deepspeed_reads_heads_and_balancer(tmp_path, monkeypatch):
    """DeepSpeed reads the model by itself, so that the trainer does not ask for it."""
    trainers = pytest.importorskip("transformers.trainer")
    monkeypatch.setattr(trainers, "DeepSpeedSchedulerWrapper", SimpleNamespace, raising=False)
    settings = {"max_steps": 2, "save_steps": 2}
    first = prepared("wav2vec2 + bert", tmp_path, bg.MIMO(), settings)
    first.train()
    again = prepared("wav2vec2 + bert", tmp_path, bg.MIMO(), settings)
    again.is_deepspeed_enabled = True
    again.lr_scheduler = SimpleNamespace()
    again._load_optimizer_and_scheduler(None)
    assert again._in_forward.lazy
    again._load_optimizer_and_scheduler(str(tmp_path / "checkpoint-2"))
    states = (each._in_forward.state_dict() for each in (again, first))
    torch.testing.assert_close(*states, rtol=0, atol=0)
