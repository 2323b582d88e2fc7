"""The loops of trainers, unchanged, against a loop of one's own."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import balanced_grad as bg
from balanced_grad.integrations import log_values
from tests.conftest import MODALITIES, LateFusion, make_batch

BATCHES, SIZE = 6, 8
METHODS = {
    "mimo": lambda: bg.MIMO(record_gramian=True),
    "min-norm": bg.MinNorm,
    "mmpareto": bg.MMPareto,
    "features": lambda: bg.MinNorm(level="features"),
}
every = pytest.mark.parametrize("kind", METHODS)
quietly = pytest.mark.filterwarnings(  # what trainers say of workers, devices and themselves
    "ignore", "error::balanced_grad.InactiveBalancerWarning"
)


class Items(Dataset):
    """Item by item what ``make_batch`` makes in one go."""

    def __init__(self):
        self.inputs, self.labels = make_batch(size=BATCHES * SIZE)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {m: self.inputs[m][index] for m in MODALITIES[:2]} | {"labels": self.labels[index]}


class Balanced(nn.Module):
    """A model that returns its loss, as the Hugging Face trainer wants it."""

    accepts_loss_kwargs = False  # its ``**inputs`` would say that it divides its loss by ``num_items_in_batch``

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.model = LateFusion()
        self.balancer = METHODS[kind]()

    def forward(self, labels, **inputs):
        losses = self.model.losses(inputs, labels)
        features = self.model.features if self.balancer.level == "features" else None
        return {"loss": self.balancer(losses, features=features)}


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def own_loop(kind, accumulation):
    """Training with accumulation and clipping, by hand."""
    module = Balanced(kind)
    optimizer = sgd(module)
    for index, batch in enumerate(DataLoader(Items(), batch_size=SIZE)):
        (module(**batch)["loss"] / accumulation).backward()
        if (index + 1) % accumulation == 0:
            nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    return module


def assert_same(module, reference):
    torch.testing.assert_close(list(module.parameters()), list(reference.parameters()), rtol=1e-5, atol=1e-7)
    theirs, ours = log_values(module.balancer.last), log_values(reference.balancer.last)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)


@quietly
@every
@pytest.mark.parametrize("accumulation", [1, 2])
def test_lightning(kind, accumulation, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    from balanced_grad.integrations.lightning import BalanceLogger

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.inner = Balanced(kind)

        def training_step(self, batch):
            return self.inner(**batch)["loss"]

        def configure_optimizers(self):
            return sgd(self)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        accumulate_grad_batches=accumulation,
        gradient_clip_val=0.1,
        callbacks=[BalanceLogger(module.inner.balancer)],
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(Items(), batch_size=SIZE))
    assert_same(module.inner, own_loop(kind, accumulation))
    logged = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("balance/")}
    expected = {name: value.float() for name, value in log_values(module.inner.balancer.last).items()}
    assert {"balance/conflict", "balance/weight/audio", "balance/loss/video"} <= expected.keys()
    torch.testing.assert_close(logged, expected)


@quietly
@every
@pytest.mark.parametrize("accumulation", [1, 2])
def test_hugging_face_trainer(kind, accumulation, tmp_path):
    transformers = pytest.importorskip("transformers")
    from balanced_grad.integrations.transformers import BalanceLogger

    module = Balanced(kind)
    optimizer = sgd(module)
    trainer = transformers.Trainer(
        model=module,
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=1,
            per_device_train_batch_size=SIZE,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0.1,
            logging_steps=1,
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
        ),
        train_dataset=Items(),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
    )
    BalanceLogger(module.balancer).add_to(trainer)
    trainer.train()
    assert_same(module, own_loop(kind, accumulation))
    *training, last, summary = trainer.state.log_history
    assert all("balance/conflict" in logs for logs in training)
    assert "balance/conflict" not in summary
    for name, value in log_values(module.balancer.last).items():
        assert last[name] == pytest.approx(value.item())


class Divided(Balanced):
    """One that divides all of its losses by the labels of the whole step, as models of Hugging Face do."""

    accepts_loss_kwargs = True

    def forward(self, labels, num_items_in_batch=None, **inputs):
        losses = self.model.losses(inputs, labels)
        return {"loss": self.balancer({m: mean * len(labels) / num_items_in_batch for m, mean in losses.items()})}


@quietly
@pytest.mark.parametrize("kind", [Balanced, Divided])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_step_of_the_hugging_face_trainer_is_as_long_whatever_the_accumulation(kind, accumulation, tmp_path):
    transformers = pytest.importorskip("transformers")
    module, reference = kind("mimo"), Balanced("mimo")
    for each in (module, reference):
        each.balancer = bg.Uniform()
    start = [p.detach().clone() for p in module.parameters()]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    settings = {"per_device_train_batch_size": 24 // accumulation, "gradient_accumulation_steps": accumulation}
    args = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=1,
        max_grad_norm=0.0,
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        **settings,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    transformers.Trainer(module, args, train_dataset=Items(), optimizers=(optimizer, schedule)).train()
    reference(**next(iter(DataLoader(Items(), batch_size=24))))["loss"].backward()
    wanted = [p - 0.1 * q.grad for p, q in zip(start, reference.parameters(), strict=True)]
    torch.testing.assert_close(list(module.parameters()), wanted, rtol=1e-5, atol=1e-6)


@quietly
@every
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("rows", [False, True])
def test_accelerate(kind, accumulation, rows):
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState, PartialState

    if rows and kind in ("mimo", "features"):
        pytest.skip("takes no rows")
    try:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
        module = Balanced(kind)
        base = sgd(module)
        optimizer = bg.BalancedOptimizer(base, module.balancer, accumulate="rows") if rows else base
        prepared, optimizer, loader = accelerator.prepare(module, optimizer, DataLoader(Items(), batch_size=SIZE))
        for batch in loader:
            with accelerator.accumulate(prepared):
                accelerator.backward(prepared(**batch)["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(prepared.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
    if rows and accumulation > 1:
        reference = large_batches(kind, accumulation)
        torch.testing.assert_close(list(module.parameters()), list(reference.parameters()), rtol=1e-4, atol=1e-6)
    else:
        assert_same(module, own_loop(kind, accumulation))


@quietly
def test_a_schedule_free_optimizer_inside_the_wrapper(tmp_path):
    transformers = pytest.importorskip("transformers")
    from tests.optim.test_base import AdamWScheduleFree

    module = Balanced("min-norm")
    optimizer = bg.BalancedOptimizer(AdamWScheduleFree(module.parameters()), module.balancer)
    args = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, disable_tqdm=True, use_cpu=True, remove_unused_columns=False
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    transformers.Trainer(module, args, train_dataset=Items(), optimizers=(optimizer, schedule)).train()
    assert module.balancer.last is not None


@quietly
def test_heads_made_in_a_validation_before_the_training(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = LateFusion()
            self.aux = bg.attach(self.model, self.model.encoders, num_outputs=3)
            self.balancer = bg.MIMO()

        def losses(self, batch):
            labels = batch.pop("labels")
            return self.aux.losses(self.model.losses(batch, labels)["joint"], labels)

        def training_step(self, batch):
            return self.balancer(self.losses(batch))

        def validation_step(self, batch):
            self.losses(batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.validate(module, DataLoader(Items(), batch_size=SIZE))
    before = [p.detach().clone() for p in module.aux.parameters()]
    trainer.fit(module, DataLoader(Items(), batch_size=SIZE), DataLoader(Items(), batch_size=SIZE))
    assert not any(map(torch.equal, before, module.aux.parameters()))


def large_batches(kind, accumulation):
    module = Balanced(kind)
    optimizer = sgd(module)
    for batch in DataLoader(Items(), batch_size=accumulation * SIZE):
        module(**batch)["loss"].backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    return module


class TestLogValues:
    def test_before_the_first_step(self):
        assert log_values(bg.MinNorm().last) == {}

    def test_of_a_losses_only_method(self):
        module = Balanced("mimo")
        balancer = bg.MIMO()
        balancer(module.model.losses(*make_batch()))
        names = log_values(balancer.last, prefix="")
        assert set(names) == {f"{kind}/{name}" for kind in ("loss", "weight") for name in ("joint", "audio", "video")}

    def test_conflict_counts_pairs_that_meet(self):
        gramian = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 4.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
        step = bg.Step(("joint", "audio", "video"), torch.zeros(3), torch.ones(3), gramian)
        values = log_values(step)
        assert (values["balance/cosine"], values["balance/conflict"]) == (-0.5, 1.0)
        several = log_values(bg.Step(step.names, step.losses, torch.ones(2, 3), torch.stack([gramian, gramian.abs()])))
        assert (several["balance/cosine"], several["balance/conflict"]) == (0.0, 0.5)
        none = log_values(bg.Step(step.names, step.losses, torch.ones(3), torch.zeros(3, 3)))
        assert (none["balance/cosine"], none["balance/conflict"]) == (0.0, 0.0)

    def test_waits_for_no_device(self):
        from tests.conftest import NoHostReads

        balancer, model = bg.MinNorm(solver="faces"), LateFusion()
        losses = model.losses(*make_batch())
        with NoHostReads():
            balancer(losses).backward()
            log_values(balancer.last)


def test_no_trainer_is_imported_by_the_library():
    heavy = "('lightning', 'transformers', 'accelerate', 'torch.distributed.fsdp')"
    code = f"import sys, balanced_grad.integrations; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
