"""Grow inside somebody else's trainer: a callback is all it takes.

``Trainer`` here is the usual one in miniature: it owns the loop and the optimizer, and calls back at the
end of each epoch with what it holds. Hugging Face's own ``Trainer`` calls ``on_epoch_end`` with the same
names; in Lightning the body of ``on_epoch_end`` goes into ``LightningModule.on_train_epoch_end``. The
optimizer that the trainer holds stays the same object throughout, so its learning-rate scheduler keeps
working.

    python examples/huggingface_style_loop.py
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from custom_model import build
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import morphir
from morphir.data import load


@dataclass
class GrowthCallback:
    """Every few epochs: learn on one pass over the data, apply the best splits and prunes."""

    every: int = 2
    share: float = 0.2
    history: list[dict[str, int]] = field(default_factory=list)

    def on_epoch_end(self, *, epoch, model, optimizer, train_dataloader, **_) -> None:
        """What the trainer calls."""
        if (epoch + 1) % self.every:
            return
        learner = morphir.Learner(model, cross_entropy)
        for inputs, targets in train_dataloader:
            learner.step(inputs, targets)
        best = {}  # one morphism per channel group: a split and a prune of the same one exclude each other
        for score in sorted(learner.scores(), key=lambda score: score.delta_loss):
            best.setdefault((score.morphism.space, score.morphism.index), score)
        chosen = [score for score in best.values() if score.delta_loss < 0]
        chosen = chosen[: max(1, int(self.share * len(chosen)))]
        morphir.transform(model, [score.morphism for score in chosen], optimizer)
        self.history.append({name: space.width for name, space in model.spaces.items()})


@dataclass
class Trainer:
    """Owns model, optimizer, scheduler and loop, and knows nothing of growing."""

    model: torch.nn.Module
    train_dataset: TensorDataset
    callbacks: list[GrowthCallback]
    epochs: int = 6
    batch_size: int = 64
    lr: float = 3e-3

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.lr)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, self.epochs)
        self.loader = DataLoader(self.train_dataset, self.batch_size, shuffle=True)

    def train(self) -> float:
        """Trains, and returns the last epoch's mean loss."""
        for epoch in range(self.epochs):
            losses = [self.training_step(inputs, targets) for inputs, targets in self.loader]
            self.scheduler.step()
            for callback in self.callbacks:
                callback.on_epoch_end(
                    epoch=epoch, model=self.model, optimizer=self.optimizer, train_dataloader=self.loader
                )
        return float(torch.stack(losses).mean())

    def training_step(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One step of the optimizer; returns the batch's loss."""
        self.model.train()
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(inputs), targets)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def main(epochs: int = 6, limit: int | None = None) -> Trainer:
    torch.manual_seed(0)
    split = load("digits", limit=limit).train
    images, targets = split.fetch(torch.arange(len(split)))
    dataset = TensorDataset(images.float() / images.max(), targets)
    graph = morphir.trace(build(width=6), dataset[:2][0])
    growth = GrowthCallback()
    trainer = Trainer(graph, dataset, [growth], epochs)
    loss = trainer.train()
    for number, widths in enumerate(growth.history, 1):
        print(f"after growth {number}: {widths}")
    print(f"training loss {loss:.3f}")
    return trainer


if __name__ == "__main__":
    main()
