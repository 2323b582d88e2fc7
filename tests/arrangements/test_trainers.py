"""Trainers with their default settings: the gradient of a step of every method against the one written by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.arrangements.reference import METHODS, Model, batch, error, reference, scalar

methods = pytest.mark.parametrize("name", METHODS)
pytestmark = pytest.mark.filterwarnings("ignore")  # what trainers say of workers, devices and themselves


class Items(Dataset):
    def __init__(self):
        self.batch = batch(size=24)

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return {name: x[index] for name, x in self.batch.items()}


class Recorded(nn.Module):
    """The model, which remembers what it was last called with, and how it was before its first step."""

    def __init__(self, name, inside):
        super().__init__()
        self.model = Model(METHODS[name], inside=inside)
        self.inputs = None

    def forward(self, audio, video, labels):
        self.inputs = {"audio": audio, "video": video, "labels": labels}
        return self.model(audio, video, labels)

    @property
    def balancer(self):
        return self.model.balancer


class First:
    """Compares the gradient of the first step, when it is there."""

    def __init__(self, name, recorded, clip=None):
        self.name, self.recorded, self.clip = name, recorded, clip
        self.error = None

    def __call__(self):
        if self.error is None:
            inputs = copy.deepcopy(self.recorded.inputs)
            self.error = error(self.recorded.model, reference(self.name, inputs), clip=self.clip)


@methods
@pytest.mark.parametrize("inside", [True, False], ids=["inside forward", "in compute_loss"])
def test_hugging_face_trainer(name, inside, tmp_path):
    transformers = pytest.importorskip("transformers")

    class InComputeLoss(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            loss = scalar(recorded.balancer, *outputs)
            return (loss, {"features": outputs[1]}) if return_outputs else loss

    class OnStep(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            first()

    recorded = Recorded(name, inside)
    first = First(name, recorded, clip=1.0)
    trainer = (transformers.Trainer if inside else InComputeLoss)(
        recorded,
        transformers.TrainingArguments(str(tmp_path)),
        train_dataset=Items(),
        callbacks=[OnStep()],
    )
    trainer.train()
    assert first.error < 2e-4  # clipping to norm 1 is the trainer's, in float32
    saved = trainer.model.state_dict()
    assert saved.keys() >= {"model.audio.weight"}
    assert list(tmp_path.glob("checkpoint-*/model.safetensors"))


@methods
@pytest.mark.parametrize("inside", [True, False], ids=["inside forward", "outside"])
def test_accelerate(name, inside, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    recorded = Recorded(name, inside)
    first = First(name, recorded)
    accelerator = accelerate.Accelerator()
    optimizer = torch.optim.AdamW(recorded.parameters())
    model, optimizer, loader = accelerator.prepare(recorded, optimizer, DataLoader(Items(), batch_size=8, shuffle=True))
    for inputs in loader:
        out = model(**inputs)
        accelerator.backward(out["loss"] if inside else scalar(recorded.balancer, *out))
        first()
        optimizer.step()
        optimizer.zero_grad()
    accelerator.save_state(str(tmp_path))
    accelerator.load_state(str(tmp_path))
    assert first.error < 2e-5


@methods
@pytest.mark.parametrize("inside", [True, False], ids=["inside forward", "outside"])
def test_lightning(name, inside, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.recorded = Recorded(name, inside)
            self.first = First(name, self.recorded)

        def training_step(self, inputs):
            out = self.recorded(**inputs)
            return out["loss"] if inside else scalar(self.recorded.balancer, *out)

        def on_before_optimizer_step(self, optimizer):
            self.first()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    module = Module()
    trainer = lightning.Trainer(max_epochs=2, default_root_dir=tmp_path)
    trainer.fit(module, DataLoader(Items(), batch_size=8, shuffle=True))
    assert module.first.error < 2e-5
    assert list(tmp_path.rglob("*.ckpt"))
