"""Small networks with closed forms, a VGG and a ResNet in miniature, scenes of coloured squares, and tiny transformers models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from graftwork import Dataset, DatasetInfo
from graftwork_grad_cam.testing import Colours, coloured_scenes


class Vgg(nn.Module):
    """Three blocks with in-place ReLUs and pooling, global average pooling, one linear layer."""

    def __init__(self, channels: int = 3, classes: int = 4):
        super().__init__()
        self.features = nn.Sequential()
        for width in (6, 8, 10):
            self.features.extend([nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)])
            channels = width
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.relu, self.conv2 = nn.ReLU(inplace=True), nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.relu(self.bn1(self.conv1(x))))
        out += self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    """Four stages named as torchvision names them; logits, or a map of them."""

    def __init__(self, classes: int = 4, dense: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        widths = (6, 6, 8, 10, 12)
        for stage in range(1, 5):
            setattr(self, f"layer{stage}", nn.Sequential(Block(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)))
        self.fc: nn.Module = nn.Conv2d(12, classes, 1) if dense else nn.Linear(12, classes)
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu_()
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x) if self.dense else self.fc(x.mean(dim=(2, 3)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def vgg() -> Vgg:
    return Vgg().eval()


@pytest.fixture
def resnet() -> ResNet:
    return ResNet().eval()


@pytest.fixture
def block() -> Block:
    return Block(3, 4, 1).eval()


@pytest.fixture
def dense() -> ResNet:
    return ResNet(dense=True).eval()


@pytest.fixture
def colours() -> Colours:
    return Colours().eval()


@pytest.fixture
def scenes() -> Dataset:
    info = DatasetInfo(classes=("red", "green", "blue"), channels=3, size=(32, 32))
    return Dataset({"train": coloured_scenes(16, noise=0.1), "test": coloured_scenes(5, noise=0.1), "none": []}, info)
