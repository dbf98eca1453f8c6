"""Models and data that tests name as `learning.custom:function`."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

NOT_A_FUNCTION = 3


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 4, 3),
        nn.GroupNorm(2, 4),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 10),
    )


def relu_and_max_pool() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10)
    )


def shipped_weights() -> nn.Module:
    module = nn.Linear(64, 10)
    with torch.no_grad():
        module.weight.copy_(torch.arange(640).reshape(10, 64) / 640)
    return module


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 10), nn.Dropout(0.1))


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10))


class FunctionalDropout(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return functional.dropout(super().forward(inputs), training=self.training)


def with_functional_dropout() -> nn.Module:
    return FunctionalDropout(64, 10)


class Counting(nn.Linear):
    def __init__(self) -> None:
        super().__init__(64, 10)
        self.passes: Tensor
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(inputs)


def with_counter() -> nn.Module:
    return Counting()


def with_frozen_random_layer() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64).requires_grad_(False), nn.Linear(64, 10))


def without_parameters() -> nn.Module:
    return nn.Flatten()


def other_input_size() -> nn.Module:
    return nn.Linear(65, 10)


def too_few_classes() -> nn.Module:
    return nn.Linear(64, 9)


def not_a_module() -> object:
    return [1.0]


def tokens() -> tuple[np.ndarray, ...]:
    """Next-token data over 7 tokens: inputs and classes are both sequences."""
    sequences = np.arange(7 * 12).reshape(7, 12) % 7
    return sequences[:5, :-1], sequences[:5, 1:], sequences[5:, :-1], sequences[5:, 1:]


class NextToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.readout = nn.Linear(16, 7)

    def forward(self, token: Tensor) -> Tensor:
        embedded = self.embedding(token)
        mixed, _ = self.attention(embedded, embedded, embedded, need_weights=False)
        classes: Tensor = self.readout(embedded + mixed)
        return classes.transpose(1, 2)  # [example, class, position]


def next_token() -> nn.Module:
    return NextToken()


def missing_file() -> tuple[np.ndarray, ...]:
    return tuple(np.load("/nonexistent.npy") for _ in range(4))


def classes_of_another_shape() -> tuple[np.ndarray, ...]:
    return np.zeros((2, 64)), np.zeros((2, 3), np.int64), np.zeros((2, 64)), np.zeros((2, 3), np.int64)


def three_arrays() -> tuple[np.ndarray, ...]:
    return (np.zeros((2, 64)),) * 3


def with_nan() -> tuple[np.ndarray, ...]:
    return np.full((2, 64), np.nan), np.zeros(2, np.int64), np.zeros((2, 64)), np.zeros(2, np.int64)


def different_lengths() -> tuple[np.ndarray, ...]:
    return np.zeros((2, 64)), np.zeros(3, np.int64), np.zeros((2, 64)), np.zeros(2, np.int64)


def float_classes() -> tuple[np.ndarray, ...]:
    return np.zeros((2, 64)), np.zeros(2), np.zeros((2, 64)), np.zeros(2, np.int64)
