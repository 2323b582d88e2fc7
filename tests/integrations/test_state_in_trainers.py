"""A balancer inside the model, in trainers with their default checkpoints: stopped and resumed is as never stopped."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.conftest import make_batch
from tests.state_cases import METHODS, built, train

SIZE, STEPS, STOP = 8, 6, 4
every = pytest.mark.parametrize("kind", METHODS)
quietly = pytest.mark.filterwarnings("ignore")  # what trainers say of workers, devices and themselves


class Items(Dataset):
    """Item by item what ``make_batch`` makes in one go."""

    def __init__(self, batches=STEPS):
        self.inputs, self.labels = make_batch(size=batches * SIZE)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {m: x[index] for m, x in self.inputs.items()} | {"labels": self.labels[index]}


def assert_same(first, second):
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


@quietly
@every
def test_hugging_face_trainer(kind, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)

    def trainer(seed=0):
        arguments = transformers.TrainingArguments(str(tmp_path), num_train_epochs=1, save_steps=STOP, use_cpu=True)
        return transformers.Trainer(model=built(kind, seed), args=arguments, train_dataset=Items())

    through, resumed = trainer(), trainer(seed=1)
    through.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STOP}"))
    assert_same(resumed.model, through.model)


@quietly
@every
def test_lightning(kind, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self, seed=0):
            super().__init__()
            self.inner = built(kind, seed)

        def training_step(self, batch):
            return self.inner(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def fitted(module, epochs, path=None):
        trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=tmp_path)
        trainer.fit(module, DataLoader(Items(3), batch_size=SIZE), ckpt_path=path)
        return trainer.checkpoint_callback.best_model_path

    through, resumed = Module(), Module(seed=1)
    fitted(through, 2)
    fitted(resumed, 2, fitted(Module(), 1))
    assert_same(resumed, through)


@quietly
@every
def test_accelerate(kind, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState, PartialState

    try:
        accelerator = accelerate.Accelerator(cpu=True)
        through = accelerator.prepare(train(built(kind), range(4)))
        alone = accelerator.prepare(built(kind).balancer)
        accelerator.save_state(tmp_path / "state")
        train(through, range(4, 8))
        after = built(kind)
        after.load_state_dict(through.state_dict())
        train(through, range(8, 9))
        accelerator.load_state(tmp_path / "state")
        assert_same(train(through, range(4, 8)), after)
        assert alone.state_dict().keys() == after.balancer.state_dict().keys()
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()


@quietly
@every
def test_safetensors_model_file(kind, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    through, resumed = train(built(kind), range(4)), built(kind, seed=1)
    safetensors.save_model(through, str(tmp_path / "model.safetensors"))
    safetensors.load_model(resumed, str(tmp_path / "model.safetensors"))
    assert_same(train(resumed, range(4, 8)), train(through, range(4, 8)))


@quietly
@every
def test_pretrained_model(kind, tmp_path):
    transformers = pytest.importorskip("transformers")

    class Pretrained(transformers.PreTrainedModel):
        config_class = transformers.PretrainedConfig

        def __init__(self, config, balanced=True):
            super().__init__(config)
            inner = built(kind)
            self.model = inner.model
            if balanced:
                self.balancer = inner.balancer
            self.post_init()

    through = Pretrained(transformers.PretrainedConfig())
    inner = built(kind)
    through.model, through.balancer = inner.model, inner.balancer
    train(inner, range(4))
    through.save_pretrained(tmp_path / "whole")
    loaded = Pretrained.from_pretrained(tmp_path / "whole")
    assert_same(loaded, through)
    half = Pretrained.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    torch.testing.assert_close(half.balancer.state_dict(), inner.balancer.state_dict(), rtol=0, atol=0)
    Pretrained(transformers.PretrainedConfig(), balanced=False).save_pretrained(tmp_path / "base")
    fresh = Pretrained.from_pretrained(tmp_path / "base")  # a checkpoint that has no balancer: as it was built
    torch.testing.assert_close(fresh.balancer.state_dict(), built(kind).balancer.state_dict(), rtol=0, atol=0)
