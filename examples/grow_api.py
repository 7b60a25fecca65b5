"""Grow inside your own training loop: ``Learner`` and ``transform``, without ``grow``.

python examples/grow_api.py
"""

from __future__ import annotations

import torch
from custom_model import build
from torch.nn.functional import cross_entropy

import morphir
from morphir.data import eval_loader, load, train_loader


def main(phases: int = 3, epochs: int = 5, limit: int | None = None) -> tuple[morphir.Graph, torch.optim.SGD]:
    torch.manual_seed(0)
    digits = load("digits", limit=limit)
    batches, test = train_loader(digits, batch_size=64), eval_loader(digits)

    graph = morphir.trace(build(width=4), next(iter(batches))[0])
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for phase in range(phases):
        train(graph, batches, optimizer, range(phase * epochs, (phase + 1) * epochs))
        learner = morphir.Learner(graph, cross_entropy)
        for inputs, targets in batches:
            learner.step(inputs, targets)
        splits = [score for score in learner.scores() if score.morphism.kind == "split"]
        splits.sort(key=lambda score: score.delta_loss)
        best = [score.morphism for score in splits[: max(1, len(splits) // 3)]]
        result = morphir.transform(graph, best, optimizer)
        print(f"phase {phase + 1}: {len(best)} splits, {result.delta_parameters:+d} parameters")
    train(graph, batches, optimizer, range(phases * epochs, (phases + 1) * epochs))
    print({name: space.width for name, space in graph.spaces.items()})
    print(f"test error {test_error(graph, test):.1%}")
    return graph, optimizer


def train(graph, batches, optimizer, epochs) -> None:
    graph.train()
    for epoch in epochs:
        batches.set_epoch(epoch)
        for inputs, targets in batches:
            optimizer.zero_grad()
            cross_entropy(graph(inputs), targets).backward()
            optimizer.step()


@torch.no_grad()
def test_error(graph, batches) -> float:
    graph.eval()
    wrong = sum(int((graph(inputs).argmax(1) != targets).sum()) for inputs, targets in batches)
    return wrong / batches.dataset_size


if __name__ == "__main__":
    main()
