"""Architectures of transformers in tiny random configurations, with a batch and the encoders that heads go on."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

CLASSES = 3
SIZE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
ROPE = {"num_key_value_heads": 2, "vocab_size": 32, "max_position_embeddings": 64}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGE, VIDEO, START, END = 5, 6, 3, 4  # token ids


class Tiny(NamedTuple):
    model: nn.Module
    batch: dict[str, Any]
    encoders: dict[str, str]  # modality -> path of its encoder
    outputs: int = CLASSES


def text(images, length=4):
    """``(4, T)`` tokens, of which the first are the image's, and labels on the last ``length``."""
    before = torch.tensor([START, *[IMAGE] * images, END] if images else [1]).expand(4, -1)
    tokens = torch.cat([before, torch.randint(7, 32, (4, length))], 1)
    labels = torch.cat([torch.full_like(before, -100), tokens[:, -length:]], 1)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def answers():
    return {"answer": torch.arange(4) % CLASSES}


def clip():
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config=SIZE | SPECIAL | {"vocab_size": 32, "max_position_embeddings": 8},
        vision_config=SIZE | {"image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    tokens = torch.cat([torch.randint(7, 32, (4, 5)), torch.full((4, 1), 2)], 1)
    batch = {"input_ids": tokens, "pixel_values": torch.randn(4, 3, 8, 8), "return_loss": True} | answers()
    return Tiny(CLIPModel(config), batch, {"text": "text_model", "image": "vision_model"})


def llava():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(  # type: ignore[call-arg]
        vision_config=CLIPVisionConfig(**SIZE | {"num_hidden_layers": 2}, image_size=8, patch_size=4),
        text_config=LlamaConfig(**SIZE, **ROPE, **SPECIAL),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
    )
    batch = text(images=4) | {"pixel_values": torch.randn(4, 3, 8, 8)} | answers()
    return Tiny(LlavaForConditionalGeneration(config), batch, {"image": "model.vision_tower"})


def qwen():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config=SIZE | ROPE | SPECIAL | {"rope_scaling": rope},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 16,
            "window_size": 8,
            "fullatt_block_indexes": [0],
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    grid = torch.tensor([[1, 4, 4]]).expand(4, -1)  # patches: 16 of each image, merged to 4
    batch = text(images=4) | {"pixel_values": torch.randn(4, 16, 3 * 2 * 4 * 4), "image_grid_thw": grid} | answers()
    batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE).int()
    return Tiny(Qwen2_5_VLForConditionalGeneration(config), batch, {"image": "model.visual"})


def idefics():
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig

    vision = SIZE | {"image_size": 8, "patch_size": 2}
    config = Idefics3Config(  # type: ignore[call-arg]
        vision_config=vision,
        text_config=LlamaConfig(**SIZE, **ROPE, **SPECIAL),
        scale_factor=2,
        image_token_id=IMAGE,
        pad_token_id=0,
    )
    batch = text(images=4) | {"pixel_values": torch.randn(4, 1, 3, 8, 8)} | answers()
    return Tiny(Idefics3ForConditionalGeneration(config), batch, {"image": "model.vision_model"})


class Spoken(nn.Module):
    """Wav2Vec2 and BERT, late fusion: a model that somebody wrote on top of two pretrained ones."""

    def __init__(self):
        super().__init__()
        from transformers import BertConfig, BertModel, PreTrainedConfig, Wav2Vec2Config, Wav2Vec2Model

        convolution = {"conv_dim": (8,), "conv_stride": (5,), "conv_kernel": (10,), "num_feat_extract_layers": 1}
        position = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
        quiet = {"mask_time_prob": 0.0, "layerdrop": 0.0}
        self.config = PreTrainedConfig()
        self.audio = Wav2Vec2Model(Wav2Vec2Config(**SIZE, **convolution, **position, **quiet))
        self.text = BertModel(BertConfig(**SIZE, vocab_size=32, max_position_embeddings=16))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, input_values, input_ids, attention_mask, labels=None):
        audio = self.audio(input_values).last_hidden_state.mean(1)
        logits = self.head(torch.cat([audio, self.text(input_ids, attention_mask).pooler_output], 1))
        return {"logits": logits} | ({} if labels is None else {"loss": cross_entropy(logits, labels)})


def spoken():
    batch = {"input_values": torch.randn(4, 400), "labels": answers()["answer"]}
    batch |= {"input_ids": torch.randint(7, 32, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.long)}
    return Tiny(Spoken(), batch, {"audio": "audio", "text": "text"})


MODELS = {"clip": clip, "llava": llava, "qwen2.5-vl": qwen, "idefics3": idefics, "wav2vec2 + bert": spoken}


def build(name):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    return MODELS[name]()
