"""The built-in models.

Average pooling and GELU, since max pooling and ReLU turn the last bits that machines differ in into other gradients;
GroupNorm and LayerNorm, since BatchNorm keeps statistics that do not travel; no dropout, which is random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from p2pdfl.learning.sources import CONTEXT, VOCABULARY_SIZE


class DigitsMLP(nn.Sequential):
    """64 pixels -> 10 classes; 17 226 parameters."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


class ImageCNN(nn.Sequential):
    """[example, channel, height, width] -> 10 classes.

    Each stage: a 3x3 convolution; normalization of all channels together, without which plain SGD takes several times
    the rounds; GELU; half the size.
    """

    def __init__(self, channel_counts: tuple[int, ...], size: int) -> None:
        """channel_counts: of the image, then of each stage.  size: height and width of the image."""
        layers: list[nn.Module] = []
        for before, after in pairwise(channel_counts):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(1, after), nn.GELU(), nn.AvgPool2d(2)]
            size //= 2
        super().__init__(*layers, nn.Flatten(), nn.Linear(channel_counts[-1] * size * size, 10))


class DigitsCNN(nn.Sequential):
    """64 pixels -> 10 classes; 1 386 parameters."""

    def __init__(self) -> None:
        super().__init__(nn.Unflatten(1, (1, 8, 8)), *ImageCNN((1, 8), 8))


def mnist_cnn() -> nn.Module:
    """28x28 in one channel, as MNIST and Fashion-MNIST have it; 9 146 parameters."""
    return ImageCNN((1, 8, 16), 28)


def cifar10_cnn() -> nn.Module:
    """32x32 in three channels; 11 274 parameters."""
    return ImageCNN((3, 8, 16, 32), 32)


class CharTransformer(nn.Module):
    """Tokens [example, position] -> [example, next token, position], each from those up to it; 40 849 parameters.

    Vaswani et al. 2017 (NeurIPS), normalized before each part as by Xiong et al. 2020 (ICML).
    """

    def __init__(self, *, width: int = 48, head_count: int = 4, block_count: int = 1) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY_SIZE, width)
        self.position = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, head_count) for _ in range(block_count)))
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Linear(width, VOCABULARY_SIZE)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        classes: Tensor = self.readout(self.norm(self.blocks(embedded)))
        return classes.transpose(1, 2)


class Block(nn.Module):
    """Causal self-attention, then two layers for each position by itself."""

    def __init__(self, width: int, head_count: int) -> None:
        super().__init__()
        self.head_count = head_count
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, embedded: Tensor) -> Tensor:
        between = embedded + self.mixed(self._attention(self.attention_norm(embedded)))
        out: Tensor = between + self.feed_forward(between)
        return out

    def _attention(self, embedded: Tensor) -> Tensor:
        # written out: torch's fused kernels differ from version to version
        example_count, length, width = embedded.shape
        heads = self.queries_keys_values(embedded).reshape(example_count, length, 3, self.head_count, -1)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)  # each [example, head, position, width / heads]
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(width / self.head_count)
        later = torch.ones(length, length, dtype=torch.bool, device=embedded.device).triu(1)
        weights = softmax(scores.masked_fill(later, -math.inf), dim=-1)
        mixed: Tensor = (weights @ values).transpose(1, 2).reshape(example_count, length, width)
        return mixed


BUILT_IN: dict[str, Callable[[], Any]] = {
    "digits_mlp": DigitsMLP,
    "digits_cnn": DigitsCNN,
    "mnist_cnn": mnist_cnn,
    "cifar10_cnn": cifar10_cnn,
    "char_transformer": CharTransformer,
}
