"""Started by torchrun: trainers on two processes, the balancer in ``forward``, against gradients written by hand."""

import tempfile
import warnings

import lightning.pytorch as pytorch
import torch
import transformers
from accelerate import Accelerator
from torch import distributed
from torch.utils.data import DataLoader

from tests.arrangements.reference import METHODS, error, reference
from tests.arrangements.test_trainers import Items, Recorded

warnings.simplefilter("ignore")


def whole(inputs):
    """The batches of both processes together."""
    out = {}
    for key, x in inputs.items():
        parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, x.contiguous())
        out[key] = torch.cat(parts)
    return out


def compared(name, recorded, clip=None):
    """A call that compares the first gradient that it sees."""
    seen = []

    def look():
        if not seen:
            inputs = whole(recorded.inputs)
            recorded.balancer.process_group = None  # the reference is computed by each process alone
            seen.append(error(recorded.model, reference_alone(name, inputs), clip=clip))
            recorded.balancer.process_group = "default"

    return seen, look


def reference_alone(name, inputs):
    if name != "BOGC":
        return reference(name, inputs)
    from tests.arrangements import reference as module

    make = METHODS["BOGC"]

    def alone(model):
        balancer = make(model)
        balancer.process_group = None
        return balancer

    METHODS["BOGC"] = alone
    try:
        return module.bogc(inputs)
    finally:
        METHODS["BOGC"] = make


def hugging_face(name):
    class OnStep(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            look()

    recorded = Recorded(name, inside=True)
    seen, look = compared(name, recorded, clip=1.0)
    arguments = transformers.TrainingArguments(tempfile.mkdtemp(), use_cpu=True, num_train_epochs=2)
    trainer = transformers.Trainer(recorded, arguments, train_dataset=Items(), callbacks=[OnStep()])
    trainer.train()
    return seen[0]


def accelerate(name):
    recorded = Recorded(name, inside=True)
    seen, look = compared(name, recorded)
    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(
        recorded, torch.optim.SGD(recorded.parameters(), lr=0.1), DataLoader(Items(), batch_size=6)
    )
    for inputs in loader:
        accelerator.backward(model(**inputs)["loss"])
        look()
        optimizer.step()
        optimizer.zero_grad()
    return seen[0]


def lightning(name, strategy="ddp"):
    class Module(pytorch.LightningModule):
        def __init__(self):
            super().__init__()
            self.recorded = recorded

        def training_step(self, inputs):
            return self.recorded(**inputs)["loss"]

        def on_before_optimizer_step(self, optimizer):
            look()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    recorded = Recorded(name, inside=True)
    seen, look = compared(name, recorded)
    folder = tempfile.mkdtemp()
    trainer = pytorch.Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy=strategy, default_root_dir=folder)
    trainer.fit(Module(), DataLoader(Items(), batch_size=6))
    return seen[0]


def lightning_unused(name):
    return lightning(name, "ddp_find_unused_parameters_true")


def main():
    transformers.logging.set_verbosity_error()
    Accelerator(cpu=True)  # starts the processes' group, from the environment that torchrun made
    for name in METHODS:
        for trainer in (hugging_face, accelerate, lightning, lightning_unused):
            errors = [None, None]
            distributed.all_gather_object(errors, trainer(name))
            if distributed.get_rank() == 0:
                said = "right" if max(errors) < 2e-4 else str(errors)
                print(f"\nRESULT {trainer.__name__} {name}: {said}", flush=True)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
