"""Items of tensors that the program assigns to, and functions that torch.fx.wrap keeps whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from morphir.analysis.tracing import trace
from morphir.errors import MorphirWarning, RewriteError
from morphir.ir.graph import Graph
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.runtime.learning.learner import Learner
from passes.transform import transform

Prove = Callable[..., Any]


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def test_a_mask_made_by_assignment(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        mask = h.new_zeros((h.size(2), h.size(3)))
        for row in range(0, 8, 3):
            mask[row : row + 2, row - 1] = row + 1
        mask[1] = mask.sum(0)
        return net.head(h * mask)

    prove(forward, {"stem": "4 exact"}, onnx=True, stem=conv(3, 4), head=conv(4, 2))


def test_places_of_every_channel_assigned_to(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        h[:, :, 0] = 0
        h[..., -1:] = h[..., :1] * 2
        return net.head(h)

    prove(forward, {"stem": "4 exact"}, onnx=True, stem=conv(3, 4), head=conv(4, 2))


def test_another_value_assigned_to_places_of_every_channel(prove: Prove) -> None:
    """The channels of both are one: each of the target lies beside its own of the value."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h, k = net.stem(x), net.side(x)
        h[:, :, :2] = k[:, :, 2:4]
        return net.head(h)

    prove(forward, {"stem": "4 exact"}, onnx=True, stem=conv(3, 4), side=conv(3, 4), head=conv(4, 2))


def test_channels_assigned_to_by_position(prove: Prove) -> None:
    """As temporal shift does: the number that are shifted is no share of the channels that a split keeps."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        h[:, :2] = 0
        return net.head(h)

    prove(forward, {"stem": "4 frozen:in-place-write"}, stem=conv(3, 4), head=conv(4, 2))


def test_channels_assigned_into_a_tensor_without(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        shifted = torch.zeros(2, 4, 8, 8)
        shifted[:, :, 1:] = h[:, :, :-1]
        return net.head(shifted)

    prove(forward, {"stem": "4 frozen:in-place-write"}, stem=conv(3, 4), head=conv(4, 2))


def test_a_number_assigned_by_a_mask(prove: Prove) -> None:
    """As masked_fill: the mask's channels are those of the target; and one over leading dimensions alone."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h, k = net.stem(x), net.side(x)
        h[h < 0] = 0
        h[k > 0.5] = 0.25
        h[h.mean((2, 3)) < 0.1] = -1
        return net.head(h)

    prove(forward, {"stem": "4 exact"}, onnx=True, stem=conv(3, 4), side=conv(3, 4), head=conv(4, 2))


class Activated(nn.Module):
    """A convolution, an activation in place of its result, and a head; from the same weights each time."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.activation = activation
        self.stem, self.head = conv(3, 4, 3), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.stem(x))).mean((2, 3))


def rectified_by_a_mask(h: Tensor) -> Tensor:
    h[h < 0] = 0
    return h


def test_the_learner_follows_a_number_assigned_by_a_mask() -> None:
    """``h[h < 0] = 0`` is a rectifier: every score is that of the network with one, in float64."""
    images, targets = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    found: list[Tensor] = []
    for activation in (rectified_by_a_mask, torch.relu):
        graph = trace(Activated(activation).double(), images)
        torch.manual_seed(0)
        learner = Learner(graph, F.cross_entropy)
        for _ in range(3):
            learner.step(images, targets)
        found.append(torch.tensor([score.delta_loss for score in learner.scores()], dtype=torch.float64))
    assert found[0].numel() == 8  # four splits, four prunes
    assert found[0].abs().min() > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-15)


def test_a_mask_of_other_channels_is_broadcast(prove: Prove) -> None:
    """One mask for all of them: a split's halves are both assigned to."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        h[(x[:, :1] < 0).expand(-1, h.size(1), -1, -1)] = 0
        return net.head(h)

    prove(forward, {"stem": "4 exact"}, onnx=True, stem=conv(3, 4), head=conv(4, 2))


def test_values_assigned_by_a_list(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        h[:, [0, 2]] = 0
        return net.head(h)

    prove(forward, {"stem": "4 frozen:in-place-write"}, stem=conv(3, 4), head=conv(4, 2))


class Edge(nn.Module):
    """Assigns to items of a view."""

    def forward(self, x: Tensor) -> Tensor:
        h = x * 2
        row = h[:, :, 0]
        row[:, :, 0] = 1
        return h


def test_an_item_of_a_view_assigned_to() -> None:
    """What else the assignment changes is not in the program, so the module that does it is kept whole."""
    model = nn.Sequential(conv(3, 4), Edge(), conv(4, 2))
    with pytest.warns(MorphirWarning, match=r"Edge at '1' .* sees an assignment .*\(test_assignments"):
        graph = trace(model, torch.randn(2, 3, 8, 8))
    assert {verdict.code for verdict in graph.spaces["0"].verdicts} == {"opaque-module"}


@fx.wrap
def mixed_twice(x: Tensor, first: Tensor, second: Tensor, training: bool) -> Tensor:
    if x.shape[-1] > 4:
        x = x[:, :, 1:]
    h = F.dropout(F.conv2d(x, first).relu(), 0.0, training)
    return F.conv2d(h, second)


def test_kernels_inside_a_wrapped_function(prove: Prove) -> None:
    """Kept whole, the channels between its kernels would be out of reach; so it is traced into."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        return net.head(mixed_twice(h, net.first, net.second, net.training))

    prove(
        forward,
        {"stem": "4 exact", "first": "3 exact", "second": "5 exact"},
        onnx=True,
        stem=conv(3, 4),
        first=nn.Parameter(torch.randn(3, 4, 1, 1)),
        second=nn.Parameter(torch.randn(5, 3, 1, 1)),
        head=conv(5, 2),
    )


@fx.wrap
def mixed_through_a_view(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    h = F.conv2d(x, first)
    h[0][:, 0] = 0
    return F.conv2d(h, second)


def test_a_wrapped_function_that_cannot_be_traced(prove: Prove) -> None:
    """The channels between its kernels stay out of reach."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(mixed_through_a_view(net.stem(x), net.first, net.second))

    graph = prove(
        forward,
        {
            "stem": "4 frozen:opaque-module",
            "first": "3 frozen:opaque-module",
            "second": "5 frozen:opaque-module",
        },
        stem=conv(3, 4),
        first=nn.Parameter(torch.randn(3, 4, 1, 1)),
        second=nn.Parameter(torch.randn(5, 3, 1, 1)),
        head=conv(5, 2),
    )
    assert mixed_through_a_view in {node.target for node in graph.graph.nodes}


@fx.wrap
def scaled_by_root(x: Tensor) -> Tensor:
    return x * x.shape[1] ** -0.5


@fx.wrap
def first_two_doubled(x: Tensor) -> Tensor:
    return torch.cat([x[:, :2] * 2, x[:, 2:]], 1)


def test_sizes_and_positions_inside_wrapped_functions(prove: Prove) -> None:
    """Out of sight of the rules while the functions are whole, so they are tried, and traced into."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(scaled_by_root(net.stem(x))) + net.tail(first_two_doubled(net.side(x)))

    graph = prove(
        forward,
        {"stem": "4 exact", "side": "5 exact"},
        onnx=True,
        stem=conv(3, 4),
        side=conv(3, 5),
        head=conv(4, 2),
        tail=conv(5, 2),
    )
    assert not {scaled_by_root, first_two_doubled} & {node.target for node in graph.graph.nodes}


@fx.wrap
def first_two_doubled_in_place(x: Tensor) -> Tensor:
    x = x * 1
    x[:, :2][:, :] *= 2
    return x


@fx.wrap
def noisy(x: Tensor, training: bool) -> Tensor:
    if not training:
        return x
    return x * torch.rand(x.shape[0], 1, 1, 1)


def test_wrapped_functions_that_stay_whole(prove: Prove) -> None:
    """One runs other operators in each mode, and is harmless; the other writes through a view, and is not."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = noisy(net.stem(x), net.training)
        return net.head(h) + net.tail(first_two_doubled_in_place(net.side(x)))

    graph = prove(
        forward,
        {"stem": "4 exact", "side": "5 frozen:opaque-module"},
        stem=conv(3, 4),
        side=conv(3, 5),
        head=conv(4, 2),
        tail=conv(5, 2),
    )
    assert {noisy, first_two_doubled_in_place} <= {node.target for node in graph.graph.nodes}


class ReadsBefore(nn.Module):
    """Reads a view of what it assigns to, before and after."""

    def forward(self, x: Tensor) -> Tensor:
        h = x * 2
        flat = h.view(h.shape[0], -1)
        h[:, :, 0] = 0.5
        return flat.view(h.shape)


def test_a_view_that_sees_an_assignment() -> None:
    model = nn.Sequential(conv(3, 4), ReadsBefore(), conv(4, 2))
    with pytest.warns(MorphirWarning, match=r"ReadsBefore at '1' .* sees an assignment"):
        graph = trace(model, torch.randn(2, 3, 8, 8))
    assert {verdict.code for verdict in graph.spaces["0"].verdicts} == {"opaque-module"}


@fx.wrap
def put_first(mask: Tensor, value: int) -> None:
    mask[0] = value


def test_numbers_of_channels_in_assignments(prove: Prove) -> None:
    """What is assigned, where, and what a function that yields nothing does with them: all are values."""

    def forward(net: Any, x: Tensor) -> Tensor:
        one, two, three = net.one(x), net.two(x), net.three(x)
        one[:, :, 0] = one.size(1)
        mask = x.new_ones((8, 8))
        mask[: two.size(1)] = 0
        mask[x.size(0) - 1] = 2
        put_first(mask, three.size(1))
        return net.head(one * mask) + net.head(two) + net.head(three)

    prove(
        forward,
        {"one": "4 frozen:size-as-value"},
        one=conv(3, 4),
        two=conv(3, 4),
        three=conv(3, 4),
        head=conv(4, 2),
    )


def test_numbers_of_channels_that_lay_out_shapes(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x) * net.scale.view((*net.scale.shape, 1, 1))
        cut = h.size(1) - h.size(1) // 2
        h = torch.cat([h[:, :cut].relu(), h[:, cut:]], 1)
        return net.head(h.view(h.size(0), h.size(1) * h.size(2) * h.size(3)))

    prove(
        forward,
        {"stem": "2 exact"},
        stem=conv(3, 4),
        scale=nn.Parameter(torch.rand(4)),
        head=nn.Linear(256, 2),
    )


def test_functions_with_a_number_beside_the_tensor(prove: Prove) -> None:
    """torch's argument parser asks the traced value for its type, and must not take it for a tensor."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        assert isinstance(h, Tensor)
        return net.head(torch.pow(torch.where(h > 0, h, 0.0), 2))

    prove(forward, {"stem": "4 exact"}, onnx=True, stem=conv(3, 4), head=conv(4, 2))


@fx.wrap
def scaled_in_training(x: Tensor, training: bool) -> Tensor:
    return x * x.size(1) if training else x


@fx.wrap
def doubled_at_five(x: Tensor) -> Tensor:
    return x * 2 if x.size(1) == 5 else x


@fx.wrap
def eight_rectified(x: Tensor) -> Tensor:
    return torch.cat([x[:, :8].relu(), x[:, 8:]], 1)


@fx.wrap
def scaled_up_to_four(x: Tensor) -> Tensor:
    return x * min(x.size(1), 4)


class Between(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, body: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.head, self.body = conv(3, 4), conv(4, 2), body

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, self.stem(x)))


def traced_through(body: Callable[[nn.Module, Tensor], Tensor]) -> Graph:
    return trace(Between(body).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64))


def test_a_wrapped_function_that_differs_in_training_alone() -> None:
    graph = traced_through(lambda net, x: scaled_in_training(x, net.training))
    assert {verdict.code for verdict in graph.spaces["stem"].verdicts} == {"opaque-module"}


@pytest.mark.parametrize(
    ("body", "right", "refused"),
    [
        (lambda net, x: doubled_at_five(x), 0, [Split("stem", 0)]),
        (lambda net, x: eight_rectified(x), 4, [Split("stem", 0)]),
        (lambda net, x: scaled_up_to_four(x), 2, [Prune("stem", i) for i in range(3)]),
    ],
)
def test_wrapped_functions_that_differ_at_other_widths(
    body: Callable[[nn.Module, Tensor], Tensor], right: int, refused: list[Split | Prune]
) -> None:
    """Every rewrite tries them on its own copies, and is refused where they do not follow."""
    graph = traced_through(body)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    wanted = graph(x)
    for _ in range(right):
        transform(graph, [Split("stem", 0)])
        torch.testing.assert_close(graph(x), wanted, rtol=1e-9, atol=1e-12)
    before = graph(x)
    with pytest.raises(RewriteError, match="does not yield copies") as caught:
        transform(graph, refused)
    assert caught.value.code == "does-not-follow"
    assert "test_assignments.py:" in str(caught.value)
    assert torch.equal(graph(x), before)


def test_items_of_a_tensor_of_several_names(prove: Prove) -> None:
    """An in-place operator's result, a view: other names of one memory, which nothing reads afterwards."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.act(net.stem(x)).contiguous()
        h[:, :, 0] = 0
        flat = h.view(h.size(0), h.size(1), -1)
        flat[..., :3] = 1
        return net.head(flat.unsqueeze(3))

    prove(
        forward, {"stem": "4 exact"}, onnx=True, stem=conv(3, 4), act=nn.ReLU(inplace=True), head=conv(4, 2)
    )


ATTEMPTS: list[type] = []


@fx.wrap
def mixed_into_two(x: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    ATTEMPTS.append(type(x))
    h = F.conv2d(x, first)
    return F.conv2d(h, second), h


def test_a_wrapped_function_that_cannot_be_traced_is_tried_once() -> None:
    """Not again in the other mode, nor by a further trace for the sake of what it freezes."""
    ATTEMPTS.clear()
    model = nn.Sequential(conv(3, 4), MixedIntoTwo(), conv(5, 2))
    graph = trace(model, torch.randn(2, 3, 8, 8))
    assert {verdict.code for verdict in graph.spaces["0"].verdicts} == {"opaque-module"}
    assert sum(issubclass(kind, fx.Proxy) for kind in ATTEMPTS) == 1


class MixedIntoTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(3, 4, 1, 1))
        self.second = nn.Parameter(torch.randn(5, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return mixed_into_two(x, self.first, self.second)[0]
