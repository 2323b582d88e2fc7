"""What reaches the reports, and what is said where the trainer passes the balancer by."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import balanced_grad as bg
from tests.integrations.test_trainers import SIZE, Balanced, Items, sgd

quietly = pytest.mark.filterwarnings("ignore", "error::balanced_grad.InactiveBalancerWarning")
inactive = pytest.mark.filterwarnings("ignore", "always::balanced_grad.InactiveBalancerWarning")


class WithLogits(Balanced):
    """As models of Hugging Face: without labels there is no loss."""

    def __init__(self):
        super().__init__("min-norm")
        self.config = pytest.importorskip("transformers").PretrainedConfig()

    def forward(self, labels=None, **inputs):
        z = torch.cat([encoder(inputs[m]) for m, encoder in self.model.encoders.items()], 1)
        out = {"logits": self.model.fused(z)}
        return out if labels is None else super().forward(labels, **inputs) | out


def of_events(folder):
    """Names of all scalars in the event files of TensorBoard."""
    loaded = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    files = [path.parent for path in folder.rglob("events.out.tfevents.*")]
    return {tag for path in files for tag in loaded.EventAccumulator(str(path)).Reload().Tags()["scalars"]}


class TestHuggingFace:
    def trainer(self, module, folder, steps=6, given=None, **settings):
        transformers = pytest.importorskip("transformers")
        settings = {"max_steps": steps, "logging_steps": 1, "disable_tqdm": True, "use_cpu": True} | settings
        args = transformers.TrainingArguments(str(folder), remove_unused_columns=False, **settings)
        return transformers.Trainer(module, args, train_dataset=Items(), **(given or {}))

    def logger(self, balancer):
        pytest.importorskip("transformers")
        from balanced_grad.integrations.transformers import BalanceLogger

        return BalanceLogger(balancer)

    @quietly
    @pytest.mark.parametrize("twice", [False, True])
    def test_values_reach_tensorboard(self, tmp_path, twice):
        pytest.importorskip("tensorboard")
        module = WithLogits()
        trainer = self.trainer(module, tmp_path, report_to="tensorboard")
        logger = self.logger(module.balancer)
        for _ in range(1 + twice):
            logger.add_to(trainer)
        assert trainer.callback_handler.callbacks.count(logger) == 1
        trainer.train()
        names = of_events(tmp_path)
        assert {"train/balance/weight/audio", "train/balance/conflict"} <= names
        assert "balance/weight/audio" in trainer.state.log_history[0]

    @quietly
    def test_as_an_ordinary_callback_values_reach_the_history(self, tmp_path):
        module = WithLogits()
        trainer = self.trainer(module, tmp_path, given={"callbacks": [self.logger(module.balancer)]})
        trainer.train()
        assert "balance/weight/audio" in trainer.state.log_history[0]

    @inactive
    @pytest.mark.parametrize("how", ["label smoothing", "a loss function", "another balancer"])
    def test_a_balancer_that_is_passed_by_is_said_once(self, how, tmp_path):
        module = WithLogits()
        settings = {"label_smoothing_factor": 0.1} if how == "label smoothing" else {}
        loss = {"compute_loss_func": lambda out, labels, num_items_in_batch=None: cross_entropy(out["logits"], labels)}
        trainer = self.trainer(module, tmp_path, given=loss if how == "a loss function" else {}, **settings)
        self.logger(bg.MIMO() if how == "another balancer" else module.balancer).add_to(trainer)
        with pytest.warns(bg.InactiveBalancerWarning) as said:
            trainer.train()
        said = [str(w.message) for w in said if issubclass(w.category, bg.InactiveBalancerWarning)]
        assert len(said) == 1
        assert all(name in said[0] for name in ("label_smoothing_factor", "compute_loss_func", "labels"))

    @inactive
    def test_one_that_is_no_longer_called(self, tmp_path):
        module = WithLogits()
        module(**{k: v.unsqueeze(0) for k, v in Items()[0].items()})
        assert module.balancer.last is not None
        trainer = self.trainer(module, tmp_path, steps=12, label_smoothing_factor=0.1)
        self.logger(module.balancer).add_to(trainer)
        with pytest.warns(bg.InactiveBalancerWarning, match="has not been called in 10 steps in a row"):
            trainer.train()


class TestLightning:
    def fit(self, module, folder, balancer, **settings):
        lightning = pytest.importorskip("lightning.pytorch")
        from balanced_grad.integrations.lightning import BalanceLogger

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.inner = module

            def training_step(self, batch):
                return self.inner(**batch)["loss"]

            def configure_optimizers(self):
                return sgd(self)

        trainer = lightning.Trainer(
            accelerator="cpu",
            callbacks=[BalanceLogger(balancer)],
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            **{"max_epochs": 1, "log_every_n_steps": 1} | settings,
        )
        trainer.fit(Module(), DataLoader(Items(), batch_size=SIZE))
        return trainer

    @quietly
    def test_values_reach_the_default_logger_and_the_checkpoint_is_written(self, tmp_path):
        pytest.importorskip("tensorboard")
        module = Balanced("min-norm")
        self.fit(module, tmp_path, module.balancer)
        assert {"balance/weight/audio", "balance/conflict"} <= of_events(tmp_path)
        (checkpoint,) = tmp_path.rglob("*.ckpt")
        assert any("inner.model" in name for name in torch.load(checkpoint, weights_only=False)["state_dict"])

    @inactive
    def test_a_balancer_that_is_never_called(self, tmp_path):
        class Joint(nn.Module):
            def __init__(self):
                super().__init__()
                self.model = Balanced("mimo").model

            def forward(self, labels, **inputs):
                return {"loss": self.model.losses(inputs, labels)["joint"]}

        with pytest.warns(bg.InactiveBalancerWarning, match="has not been called .* from training_step") as said:
            self.fit(Joint(), tmp_path, bg.MIMO())
        assert sum(issubclass(w.category, bg.InactiveBalancerWarning) for w in said) == 1
