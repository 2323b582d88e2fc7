"""The Hugging Face ``Trainer`` with the mix-in on two processes, against one with batches of twice the size."""

import os
import socket
import warnings

import pytest
import torch
from torch import distributed

import balanced_grad as bg
from tests.integrations.test_balanced_trainer import Items, attached, targets, trainer_of, with_lora, without_dropout
from tests.integrations.tiny_models import build
from tests.releases import fully_shard_on_cpu

pytest.importorskip("transformers")
pytest.importorskip("peft")
METHODS = {
    "mimo": lambda model: bg.MIMO(smoothing=0.1),
    "min-norm": lambda model: bg.MinNorm(params=model),
    "mmpareto": lambda model: bg.MMPareto(params=model),
}
SETTINGS = {"max_steps": 2, "gradient_accumulation_steps": 2, "max_grad_norm": 0.0, "optim": "sgd"}
SETTINGS |= {"learning_rate": 0.1, "lr_scheduler_type": "constant", "train_sampling_strategy": "sequential"}
SETTINGS |= {"disable_tqdm": True, "report_to": "none", "gradient_checkpointing": True, "logging_steps": 10}
SETTINGS |= {"save_strategy": "no"}  # that of shards is the trainer's, which wants an accelerator for it


def sharding():
    """A ``Trainer`` with FSDP2 as its settings would make it, which they do on accelerators only."""
    import accelerate
    import transformers
    from accelerate.utils import DistributedType

    class Sharding(transformers.Trainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            plugin = accelerate.FullyShardedDataParallelPlugin(
                fsdp_version=2,
                auto_wrap_policy="transformer_based_wrap",
                transformer_cls_names_to_wrap=["LlamaDecoderLayer", "CLIPEncoderLayer"],
                reshard_after_forward=True,
                cpu_ram_efficient_loading=False,
            )
            shared = {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
            self.accelerator.state._shared_state.update(shared)
            self.is_fsdp_enabled = True

    return Sharding


def train(rank, name, kind, folder, port, way="ddp"):
    import transformers
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from balanced_grad.integrations._outputs import gathered

    if rank is not None:
        distributed.destroy_process_group()  # Accelerate starts its own, from what torchrun would set
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            tiny = build(name)
            model = with_lora(tiny.model)
            without_dropout(model)
            heads = attached(name, model, tiny)
            size = {"per_device_train_batch_size": 4 if rank is None else 2}
            trainer = trainer_of(
                model,
                tiny,
                folder,
                METHODS[kind](model),
                SETTINGS | size,
                base=transformers.Trainer if rank is None or way == "ddp" else sharding(),
                heads=heads,
                targets=targets(tiny),
                train_dataset=Items(tiny.batch),
            )
            trainer.train()
            assert (trainer.model_wrapped is not trainer.model) == (rank is not None and way == "ddp")
            trained = [p for p in model.parameters() if p.requires_grad]
            assert all(hasattr(p, "full_tensor") for p in trained) == (rank is not None and way != "ddp")
            return trainer.balancer.last.weights, [gathered(p.detach()) for p in trained]
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(variable, None)


CASES = [(name, "ddp") for name in ("llava", "qwen2.5-vl")]  # a contrastive loss is one of its batch, halves another
CASES += [pytest.param("llava", "fsdp2", marks=fully_shard_on_cpu)]


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize(("name", "way"), CASES)
def test_adapters_train_as_on_one_process(pair, name, way, kind, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    weights, whole = train(None, name, kind, tmp_path, port)
    (first_weights, first), (_, second) = pair(train, name, kind, tmp_path, port, way)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, whole, rtol=1e-4, atol=1e-5)
    if weights.dim() == 1:
        torch.testing.assert_close(first_weights, weights, rtol=1e-4, atol=1e-5)
