"""Late-fusion models of the size at which capture cost matters, conv and transformer."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

NAMES = ("audio", "video", "text")


class Transformer(nn.Module):
    """Four-layer encoder of 12 tokens, mean pooled."""

    def __init__(self, width=128):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, x):
        return self.encoder(x).mean(1)


def conv():
    layers, channels = [], 1
    for width in (32, 64, 128):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(512, 128))


def mlp():
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 128))


ENCODERS = {
    "conv": (conv, (1, 28, 28)),
    "transformer": (Transformer, (12, 128)),
    "mlp": (mlp, (784,)),
}


class Model(nn.Module):
    """One encoder and head per modality, a fused head on the concatenated features."""

    def __init__(self, kind: str, modalities: int):
        super().__init__()
        make, self.shape = ENCODERS[kind]
        self.names = NAMES[:modalities]
        self.encoders = nn.ModuleDict({name: make() for name in self.names})
        self.heads = nn.ModuleDict({name: nn.Linear(128, 10) for name in self.names})
        self.fused = nn.Linear(128 * modalities, 10)
        self.features: dict[str, Tensor] = {}

    def last_layers(self):
        """The last linear layer of every encoder."""
        return {name: [m for m in e.modules() if type(m) is nn.Linear][-1] for name, e in self.encoders.items()}

    def batch(self, size: int):
        device = self.fused.weight.device
        inputs = {name: torch.randn(size, *self.shape, device=device) for name in self.names}
        return inputs, torch.randint(10, (size,), device=device)

    def losses(self, inputs, label):
        self.features = {name: encoder(inputs[name]) for name, encoder in self.encoders.items()}
        out = {"joint": cross_entropy(self.fused(torch.cat(list(self.features.values()), 1)), label)}
        return out | {name: cross_entropy(self.heads[name](z), label) for name, z in self.features.items()}
