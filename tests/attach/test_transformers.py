"""A small, randomly initialised CLIP and ViLT: nothing is downloaded."""

import copy
import warnings

import pytest
import torch

import balanced_grad as bg

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the import, whichever they are in this release
    transformers = pytest.importorskip("transformers")

LABELS = torch.tensor([0, 1, 2, 0])


@pytest.fixture(scope="module")
def clip():
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=size | {"vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 2, "bos_token_id": 0},
        vision_config=size | {"image_size": 8, "patch_size": 4},
        projection_dim=12,
    )
    torch.manual_seed(0)
    return transformers.CLIPModel(config)


@pytest.fixture(scope="module")
def vilt():
    config = transformers.ViltConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=20,
        max_position_embeddings=8,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    torch.manual_seed(0)
    return transformers.ViltForQuestionAnswering(config)


def inputs():
    tokens = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1], [0, 9, 8, 2], [0, 3, 4, 2]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    return {"input_ids": tokens, "attention_mask": mask, "pixel_values": torch.randn(4, 3, 8, 8)}


def test_clip_gains_uni_modal_losses_and_loses_them_without_a_trace(clip):
    was = copy.deepcopy(clip.state_dict())
    optimizer = torch.optim.AdamW(clip.parameters())
    aux = bg.attach(clip, {"text": clip.text_model, "image": clip.vision_model}, num_outputs=3)
    aux.add_to(optimizer)
    balancer = bg.MLB({"text": clip.text_model, "image": clip.vision_model})
    joint = clip(**inputs(), return_loss=True).loss
    losses = aux.losses(joint, LABELS)
    assert list(losses) == ["joint", "text", "image"]
    assert aux.heads["text"].weight.shape == (3, 16)
    balancer(losses, scores=aux.scores(LABELS)).backward()
    assert all(p.grad is not None for p in (*clip.text_model.parameters(), *aux.parameters()))
    clip.zero_grad()
    aux.detach()
    assert all(torch.equal(value, was[name]) for name, value in clip.state_dict().items())
    assert len(optimizer.param_groups) == 1


def test_clip_features_are_the_pooled_outputs(clip):
    x = inputs()
    aux = bg.attach(clip, {"text": clip.text_model, "image": clip.vision_model}, num_outputs=3)
    clip(**x)
    with torch.no_grad():
        wanted = aux.heads["image"](clip.vision_model(pixel_values=x["pixel_values"]).pooler_output)
    clip(**x)
    torch.testing.assert_close(aux.logits()["image"], wanted)
    aux.detach()


def test_vilt_with_either_input_muted(vilt):
    x = inputs()
    labels = torch.nn.functional.one_hot(LABELS, 3).float()
    aux = bg.attach(vilt, ("text", "image"), task="multilabel", mute={"text": "input_ids", "image": "pixel_values"})
    output = vilt(**x, labels=labels)
    found = aux.logits()
    losses = aux.losses(output.loss, labels)
    bg.MIMO()(losses).backward()
    aux.detach()
    vilt.zero_grad()
    vilt.eval()
    with torch.no_grad():
        text_only = vilt(**x | {"pixel_values": torch.zeros(4, 3, 8, 8)}).logits
    vilt.train()
    torch.testing.assert_close(found["text"], text_only)


def test_vilt_embeddings_as_encoders(vilt):
    """Of one stream, what comes before the fusion: sequences of different lengths, one of them with its mask."""
    embeddings = vilt.vilt.embeddings
    aux = bg.attach(vilt, {"text": embeddings.text_embeddings, "image": embeddings.patch_embeddings}, num_outputs=3)
    vilt(**inputs())
    assert {name: logits.shape for name, logits in aux.logits().items()} == {"text": (4, 3), "image": (4, 3)}
    aux.detach()
