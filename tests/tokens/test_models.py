"""Real architectures in tiny random configurations: full and LoRA, checkpointed and not, in autocast."""

from typing import Any

import pytest
import torch

import balanced_grad as bg
from balanced_grad.capture import reached
from balanced_grad.tokens._tag import tag_type
from tests.integrations import tiny_models
from tests.tokens.test_rows import Ones, Only

VLMS = ("llava", "qwen2.5-vl", "idefics3")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
vlms = pytest.mark.parametrize("name", VLMS)


def build(name, *, lora=False, checkpointed=False):
    tiny = tiny_models.build(name)
    model, batch = tiny.model, {key: value for key, value in tiny.batch.items() if key != "answer"}
    if lora:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]))
        for n, p in model.named_parameters():
            if "lora_B" in n:
                torch.nn.init.normal_(p, std=0.1)
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if lora:
            model.enable_input_require_grads()
    return model.train(), batch


def grads(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@vlms
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_the_rows_add_up(name, lora, checkpointed):
    model, batch = build(name, lora=lora, checkpointed=checkpointed)
    balancer = Ones(level=bg.Tokens(model))
    model(**batch).loss.backward()
    want = grads(model)
    model.zero_grad()
    balancer({"joint": model(**batch).loss}).backward()  # masks from the model's own inputs
    got = grads(model)
    assert got.keys() == want.keys()
    for label in want:
        torch.testing.assert_close(got[label], want[label], rtol=1e-4, atol=1e-6, msg=label)
    assert {"text", "image"} <= set(balancer.last.names)
    assert (balancer.last.gramian.diagonal()[:2] > 0).all()


@vlms
def test_checkpointing_changes_no_row(name):
    found = []
    for checkpointed in (False, True):
        model, batch = build(name, lora=True, checkpointed=checkpointed)
        balancer = Only("image", level=bg.Tokens(model))
        balancer({"joint": model(**batch).loss}).backward()
        found.append((grads(model), balancer.last.gramian))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


@vlms
def test_frozen_layers_are_no_work(name):
    """No row is made for them, and no tag stands behind them."""
    model, batch = build(name, lora=True)
    tokens = bg.Tokens(model)
    loss = model(**batch).loss
    noted: Any = reached(loss, (tag_type(),)).noted
    layers = [node.call.layer for node in noted]
    assert layers
    assert all(any(p.requires_grad for p in layer.parameters()) for layer in layers)
    balancer = bg.MinNorm(level=tokens)
    balancer({"joint": loss}).backward()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert balancer._source.memory.arena.nbytes <= 4 * len(balancer.last.names) * (trained + 64 * len(layers))


@vlms
def test_in_autocast(name):
    model, batch = build(name, lora=True)
    balancer = bg.MinNorm(level=bg.Tokens(model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    balancer({"joint": loss}).backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in model.parameters() if p.requires_grad)


@vlms
def test_it_trains(name):
    model, batch = build(name)
    balancer = bg.MinNorm(level=bg.Tokens(model), groups="tensor", params=model)
    optimizer = bg.BalancedOptimizer(torch.optim.AdamW(model.parameters(), 1e-2), balancer)
    seen = []
    for _ in range(8):
        loss = model(**batch).loss
        optimizer.zero_grad()
        balancer({"joint": loss}).backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.8 * seen[0]


def test_without_graphs_nothing_is_noted():
    model, batch = build("llava")
    tokens = bg.Tokens(model)
    with torch.no_grad():
        model(**batch)
    model.eval()
    out = model.generate(**{k: v for k, v in batch.items() if k != "labels"}, max_new_tokens=2, do_sample=False)
    assert out.shape[1] == batch["input_ids"].shape[1] + 2
    assert tokens._noted is None
