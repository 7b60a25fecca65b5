"""What is compared: a training step, and a learning step over every split and prune of every space."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from timing.cases import Case
from timing.modes import Mode
from timing.tables import described
from torch.nn.functional import cross_entropy

import morphir

Step = Callable[[], object]
Arm = Callable[[Case, Mode, str], Step]


def training(case: Case, mode: Mode, device: str) -> Step:
    """Forward, backward and fused SGD with Nesterov momentum, as the paper trains."""
    model: Any = case.build().to(device, memory_format=mode.memory_format).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True
    )
    images, labels = _data(case, mode, device)
    if mode.compiled:
        model = torch.compile(model)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with mode.autocast(device):
            loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return _captured(step) if mode.graph else step


def learning(case: Case, mode: Mode, device: str, *, curvature: str = "batch", compile: bool = True) -> Step:
    """One step of the learner: forward, backward, all estimates, Adam-mini on every theta, moving averages.

    Args:
        case: The network.
        mode: How it is run.
        device: Where.
        curvature: What theta is learned against, and scored with. The paper's takes one data-gradient pass.
        compile: Whether the elementwise work is compiled, where there is a compiler.
    """
    compile = compile and has_compiler(device)
    model = case.build().to(device, memory_format=mode.memory_format)
    images, labels = _data(case, mode, device)
    graph = morphir.trace(model, images)
    learner = morphir.Learner(
        graph, cross_entropy, learn_curvature=curvature, score_curvature=curvature, compile=compile
    )

    def step() -> None:
        with mode.autocast(device):
            learner.step(images, labels)

    return _captured(step) if mode.graph else step


@cache
def has_compiler(device: str) -> bool:
    """Whether PyTorch's compiler makes kernels on this machine; says so once where it does not."""
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # whatever a missing compiler raises
        print(f"learning is not compiled: {described(error)}")
        return False
    return True


ARMS: dict[str, Arm] = {
    "training": training,
    "learning": learning,
    "uncompiled": partial(learning, compile=False),
    "sampled": partial(learning, curvature="auto"),
    "default": partial(learning, curvature="auto", compile=False),
}
"""``sampled``: with the default curvatures, which take a second pass for the sampled Fisher; ``default``: not
compiled either, as ``Learner(graph, loss)`` is."""


def _data(case: Case, mode: Mode, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = case.data()
    return images.to(device, memory_format=mode.memory_format), labels.to(device)


def _captured(step: Step) -> Step:
    """Captures a step as a CUDA graph, after some steps on a side stream that make what is made once."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
