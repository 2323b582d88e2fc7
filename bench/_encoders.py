"""The encoders of AV-MNIST in MultiBench and I2M2: convolutions until one pixel is left."""

import torch
from torch import Tensor, nn

PIECE = 500  # items that go through an encoder at once where nothing is learned


class Encoder(nn.Sequential):
    """Layers that evaluate a whole split in pieces, which would not fit into memory at once."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(x)
        parts = [nn.Sequential.forward(self, part) for part in x.split(PIECE)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def stages(side: int) -> int:
    """How often a picture can be halved."""
    return side.bit_length() - 1


def width(side: int, channels: int) -> int:
    """Number of features: channels double from stage to stage."""
    return channels * 2 ** (stages(side) - 1)


def lenet(side: int, channels: int, colours: int = 1) -> Encoder:
    """``(colours, side, side)`` to ``width(side, channels)`` features.

    Per stage a convolution (5 x 5, then 3 x 3, no bias), batch norm, ReLU and the maximum of each 2 x 2: as many stages
    as the side can be halved, so 28 pixels have four and 112 six, those of ``LeNet(1, channels, 3)`` and
    ``LeNet(1, channels, 5)`` in MultiBench.
    """
    layers: list[nn.Module] = []
    inside = colours
    for stage in range(stages(side)):
        outside = channels * 2**stage
        size = 3 if stage else 5
        convolution = nn.Conv2d(inside, outside, size, padding=size // 2, bias=False)
        nn.init.kaiming_uniform_(convolution.weight)
        layers += [convolution, nn.BatchNorm2d(outside), nn.ReLU(), nn.MaxPool2d(2)]
        inside = outside
    return Encoder(*layers, nn.Flatten())
