"""A model of your own: any factory in any file works wherever MorphIR takes a model.

    morphir inspect examples/custom_model.py:build --width 8
    morphir grow --model examples/custom_model.py:build --data digits --preset demo --out runs/custom

A factory is told those of ``width``, ``in_channels``, ``classes`` and ``image_size`` that it names.
"""

from __future__ import annotations

import torch
from torch import nn

import morphir


class SmallNet(nn.Module):
    """A stem, a residual block with a squeeze-excite gate, a head."""

    def __init__(self, in_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.squeeze = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits ``[N, classes]``."""
        stream = torch.relu(self.stem(images))
        branch = torch.relu(self.norm1(self.conv1(stream)))
        branch = self.norm2(self.conv2(branch))
        gate = torch.sigmoid(self.squeeze(branch.mean((2, 3))))
        stream = torch.relu(stream + branch * gate[:, :, None, None])
        return self.head(stream.mean((2, 3)))


def build(in_channels: int = 1, classes: int = 10, width: int = 8) -> SmallNet:
    """The factory."""
    return SmallNet(in_channels, classes, width)


def main() -> None:
    graph = morphir.trace(build(), torch.zeros(4, 1, 8, 8))
    for space in graph.spaces.values():
        kinds = {space.verdict(index).kind for index in range(space.width)}
        print(f"{space.name:<10} {space.width:>3} channel groups, {', '.join(sorted(kinds))}")
    print(morphir.locality(graph, "conv1"))


if __name__ == "__main__":
    main()
