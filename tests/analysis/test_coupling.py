"""Which channels belong together, on nets small enough to work the groups out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphir.analysis.tracing import trace
from morphir.analysis.verify import verify_channels
from morphir.ir.graph import Graph


class Net(nn.Module):
    """Submodules by name, and a forward that is a plain function of them."""

    def __init__(self, forward: Callable[..., object], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.body = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> object:
        return self.body(self, x)


def traced(forward: Callable[..., object], *shape: int, **parts: nn.Module | nn.Parameter) -> Graph:
    graph = trace(Net(forward, **parts), torch.randn(*shape))
    verify_channels(graph)
    return graph


def bound(graph: Graph, space: str) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(b.parameter, b.axis): b.groups for b in graph.spaces[space].bindings}


def kinds(graph: Graph, space: str) -> set[tuple[str, str, str | None]]:
    return {(v.kind, v.code, v.node) for v in graph.spaces[space].verdicts}


EXACT = {("exact", "", None)}
TWO = (0, 1)


def head(width: int) -> nn.Linear:
    return nn.Linear(width, 3)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def test_plain_stack_binds_norms_biases_and_flattened_columns() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * 49, 5),
    )
    graph = trace(model, torch.randn(2, 3, 14, 14))
    verify_channels(graph)
    assert list(graph.spaces) == ["0", "5"]
    assert bound(graph, "0") == {
        ("0.weight", 0): TWO,
        ("0.bias", 0): TWO,
        ("1.weight", 0): TWO,
        ("1.bias", 0): TWO,
        ("1.running_mean", 0): TWO,
        ("1.running_var", 0): TWO,
        ("5.weight", 1): (0,) * 49 + (1,) * 49,
    }
    assert kinds(graph, "0") == EXACT
    assert kinds(graph, "5") == {("frozen", "model-output", "output")}
    space = graph.spaces["0"]
    assert [p.node for p in space.producers] == ["_0"]
    (consumer,) = space.consumers
    assert (consumer.node, consumer.tensor, consumer.parameter) == ("_5", "_4", "5.weight")
    assert (consumer.in_axis, consumer.out_axis, consumer.dim) == (1, 0, 1)
    assert consumer.groups == (0,) * 49 + (1,) * 49
    assert {b.role for b in space.bindings if b.parameter == "0.weight"} == {"producer"}
    assert {b.role for b in space.bindings if b.parameter == "5.weight"} == {"consumer"}
    assert {b.role for b in space.bindings if b.parameter.startswith("1.")} == {"region"}


def test_residual_with_projection_is_one_space_of_two_producers() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.fc(pooled(F.relu(net.two(F.relu(net.one(x))) + net.down(x))))

    graph = traced(
        forward,
        *(2, 3, 6, 6),
        stem=nn.Conv2d(3, 4, 3),
        one=nn.Conv2d(4, 5, 3, padding=1),
        two=nn.Conv2d(5, 2, 3, padding=1),
        down=nn.Conv2d(4, 2, 1),
        fc=head(2),
    )
    assert list(graph.spaces) == ["stem", "one", "two", "fc"]
    assert [p.node for p in graph.spaces["two"].producers] == ["two", "down"]
    assert bound(graph, "two")["down.weight", 0] == bound(graph, "two")["two.weight", 0] == TWO
    assert [(c.node, c.tensor) for c in graph.spaces["stem"].consumers] == [("one", "stem"), ("down", "stem")]
    assert kinds(graph, "two") == EXACT


def test_depthwise_belongs_to_the_region() -> None:
    graph = traced(
        lambda net, x: net.last(net.deep(net.first(x))).sum((2, 3)),
        *(2, 3, 6, 6),
        first=nn.Conv2d(3, 2, 3),
        deep=nn.Conv2d(2, 2, 3, groups=2),
        last=nn.Conv2d(2, 3, 1),
    )
    assert list(graph.spaces) == ["first", "last"]
    assert graph.spaces["first"].binding("deep.weight", 0).groups == TWO
    assert graph.spaces["first"].binding("deep.weight", 0).role == "region"
    assert [c.node for c in graph.spaces["first"].consumers] == ["last"]


def test_depthwise_with_multiplier_repeats_each_channel() -> None:
    graph = traced(
        lambda net, x: pooled(net.last(net.deep(net.first(x)))),
        *(2, 3, 6, 6),
        first=nn.Conv2d(3, 2, 3),
        deep=nn.Conv2d(2, 4, 3, groups=2),
        last=nn.Conv2d(4, 3, 1),
    )
    assert bound(graph, "first")["deep.weight", 0] == (0, 0, 1, 1)
    assert bound(graph, "first")["last.weight", 1] == (0, 0, 1, 1)


def test_grouped_convolution_ties_the_same_inner_index() -> None:
    graph = traced(
        lambda net, x: pooled(net.last(net.grouped(net.first(x)))),
        *(2, 3, 6, 6),
        first=nn.Conv2d(3, 6, 3),
        grouped=nn.Conv2d(6, 4, 3, groups=2),
        last=nn.Conv2d(4, 3, 1),
    )
    assert bound(graph, "first")["first.weight", 0] == (0, 1, 2, 0, 1, 2)
    assert bound(graph, "first")["grouped.weight", 1] == (0, 1, 2)
    assert bound(graph, "grouped")["grouped.weight", 0] == (0, 1, 0, 1)
    assert bound(graph, "grouped")["last.weight", 1] == (0, 1, 0, 1)
    assert kinds(graph, "first") == kinds(graph, "grouped") == EXACT


def test_chunks_stay_equal() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        left, right = net.first(x).chunk(2, 1)
        return pooled(net.last(left * torch.sigmoid(right)))

    graph = traced(forward, 2, 3, 6, 6, first=nn.Conv2d(3, 4, 3), last=nn.Conv2d(2, 3, 1))
    assert bound(graph, "first")["first.weight", 0] == (0, 1, 0, 1)
    assert bound(graph, "first")["last.weight", 1] == TWO


def test_concatenation_keeps_its_parts_apart() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return pooled(net.last(torch.cat([net.left(x), net.right(x), x], 1)))

    graph = traced(
        forward, 2, 3, 6, 6, left=nn.Conv2d(3, 2, 1), right=nn.Conv2d(3, 1, 1), last=nn.Conv2d(6, 3, 1)
    )
    assert bound(graph, "left")["last.weight", 1] == (0, 1, -1, -1, -1, -1)
    assert bound(graph, "right")["last.weight", 1] == (-1, -1, 0, -1, -1, -1)
    assert kinds(graph, "left") == kinds(graph, "right") == EXACT
    (value,) = graph.channels.values["cat"]
    assert [(layout.space, layout.dim, layout.groups) for layout in value.layouts] == [
        ("left", 1, (0, 1, -1, -1, -1, -1)),
        ("right", 1, (-1, -1, 0, -1, -1, -1)),
    ]


def test_squeeze_excite_gate_joins_the_space_that_it_gates() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.conv(x)
        gate = net.expand(F.relu(net.squeeze(x.mean((2, 3), keepdim=True))))
        return pooled(net.last(x * torch.sigmoid(gate)))

    graph = traced(
        forward,
        *(2, 3, 6, 6),
        conv=nn.Conv2d(3, 4, 3),
        squeeze=nn.Conv2d(4, 2, 1),
        expand=nn.Conv2d(2, 4, 1),
        last=nn.Conv2d(4, 3, 1),
    )
    assert list(graph.spaces) == ["conv", "squeeze", "last"]
    space = graph.spaces["conv"]
    assert [p.node for p in space.producers] == ["conv", "expand"]
    assert [(c.node, c.tensor) for c in space.consumers] == [("squeeze", "mean"), ("last", "mul")]
    assert bound(graph, "conv")["expand.weight", 0] == (0, 1, 2, 3)
    assert kinds(graph, "conv") == EXACT


@pytest.mark.parametrize(
    "lay",
    [
        lambda gate: gate.view(gate.shape[0], 4, 1, 1),
        lambda gate: gate.reshape(-1, 4, 1, 1),
        lambda gate: gate[:, :, None, None],
        lambda gate: gate.unsqueeze(-1).unsqueeze(-1),
        lambda gate: gate.unflatten(1, (4, 1, 1)),
    ],
)
def test_a_gate_from_vectors_lies_along_the_channels(lay: Callable[[Tensor], Tensor]) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.conv(x)
        return pooled(net.last(x * lay(torch.sigmoid(net.gate(x.mean((2, 3)))))))

    graph = traced(
        forward, 2, 3, 6, 6, conv=nn.Conv2d(3, 4, 3), gate=nn.Linear(4, 4), last=nn.Conv2d(4, 3, 1)
    )
    assert bound(graph, "conv")["gate.weight", 0] == (0, 1, 2, 3)
    assert kinds(graph, "conv") == EXACT


def test_a_single_channel_follows_views() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Conv2d(1, 1, 2), nn.Flatten(), nn.Linear(1, 3))
    graph = trace(model, torch.randn(2, 3, 4, 4))
    assert kinds(graph, "0") == kinds(graph, "2") == EXACT
    flattened = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Flatten(), nn.Linear(4, 3))
    graph = trace(flattened, torch.randn(2, 3, 4, 4))
    assert kinds(graph, "0") == EXACT
    assert bound(graph, "0")["2.weight", 1] == (0, 0, 0, 0)


def test_prelu_and_layer_scale_are_bound() -> None:
    graph = traced(
        lambda net, x: pooled(net.last(net.prelu(net.conv(x)) * net.scale)),
        *(2, 3, 6, 6),
        conv=nn.Conv2d(3, 2, 3),
        prelu=nn.PReLU(2),
        scale=nn.Parameter(torch.ones(1, 2, 1, 1)),
        last=nn.Conv2d(2, 3, 1),
    )
    assert bound(graph, "conv")["prelu.weight", 0] == bound(graph, "conv")["scale", 1] == TWO
    assert kinds(graph, "conv") == EXACT


def test_channel_shuffle_ties_the_same_inner_index() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return pooled(net.last(x))

    graph = traced(forward, 2, 3, 5, 5, first=nn.Conv2d(3, 6, 3), last=nn.Conv2d(6, 3, 1))
    assert bound(graph, "first")["first.weight", 0] == (0, 1, 2, 0, 1, 2)
    assert bound(graph, "first")["last.weight", 1] == (0, 0, 1, 1, 2, 2)
    assert kinds(graph, "first") == EXACT


def test_shuffle_by_hand_grows_along_the_dimension_whose_size_is_computed() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        n, c, h, w = x.shape
        x = x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)
        return pooled(net.last(x))

    graph = traced(forward, 2, 3, 5, 5, first=nn.Conv2d(3, 8, 3), last=nn.Conv2d(2, 3, 1))
    assert bound(graph, "first")["first.weight", 0] == (0, 0, 0, 0, 1, 1, 1, 1)
    assert bound(graph, "first")["last.weight", 1] == TWO


def test_pixel_shuffle_ties_what_becomes_one_channel() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.last(F.pixel_shuffle(net.first(x), 2)).mean((2, 3))

    graph = traced(forward, 2, 3, 5, 5, first=nn.Conv2d(3, 8, 3), last=nn.Conv2d(2, 3, 1))
    assert bound(graph, "first")["first.weight", 0] == (0, 0, 0, 0, 1, 1, 1, 1)
    assert bound(graph, "first")["last.weight", 1] == TWO


def test_layer_norm_allows_pruning_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 2))
    graph = trace(model, torch.randn(2, 4))
    verify_channels(graph)
    assert kinds(graph, "0") == {("prune-only", "channel-norm", "_1")}
    assert bound(graph, "0")["1.weight", 0] == (0, 1, 2)


def test_group_norm_ties_across_its_groups_and_allows_pruning_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1), nn.Flatten())
    graph = trace(model, torch.randn(2, 3, 2, 2))
    assert bound(graph, "0")["1.weight", 0] == (0, 1, 0, 1)
    assert kinds(graph, "0") == {("prune-only", "channel-norm", "_1")}


def test_softmax_over_channels_allows_pruning_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1), nn.Linear(3, 2))
    assert kinds(trace(model, torch.randn(2, 4)), "0") == {("prune-only", "channel-softmax", "_1")}


def test_model_output_is_frozen() -> None:
    graph = traced(lambda net, x: (net.one(x), net.two(net.one(x))), 2, 4, one=nn.Linear(4, 3), two=head(3))
    assert kinds(graph, "one") == {("frozen", "model-output", "output")}


def test_model_input_freezes_what_is_added_to_it() -> None:
    graph = traced(lambda net, x: net.two(net.one(x) + x), 2, 4, one=nn.Linear(4, 4), two=head(4))
    assert kinds(graph, "one") == {("frozen", "model-input", "x")}


def test_size_one_broadcast_freezes_the_single_channel_only() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return pooled(net.last(net.wide(x) * torch.sigmoid(net.mask(x))))

    graph = traced(
        forward, 2, 3, 6, 6, wide=nn.Conv2d(3, 2, 1), mask=nn.Conv2d(3, 1, 1), last=nn.Conv2d(2, 3, 1)
    )
    assert kinds(graph, "mask") == {("frozen", "size-1-broadcast", "mul")}
    assert kinds(graph, "wide") == EXACT


def test_unknown_operator_freezes_with_its_name_and_the_users_line() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.two(torch.renorm(net.one(x), 2.0, 1, 1.0))

    graph = traced(forward, 2, 4, one=nn.Linear(4, 3), two=head(3))
    verdict = graph.spaces["one"].verdict(0)
    assert (verdict.kind, verdict.code, verdict.node) == ("frozen", "unknown-operator", "renorm")
    assert "renorm" in verdict.reason
    assert verdict.source is not None
    assert verdict.source.file == __file__
    assert verdict.source.line == forward.__code__.co_firstlineno + 1


def test_functional_convolution_names_the_space_after_the_bare_parameter() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return pooled(net.last(F.relu(F.conv2d(x, net.kernel, net.offset))))

    graph = traced(
        forward,
        *(2, 3, 6, 6),
        kernel=nn.Parameter(torch.randn(2, 3, 3, 3)),
        offset=nn.Parameter(torch.randn(2)),
        last=nn.Conv2d(2, 3, 1),
    )
    assert bound(graph, "kernel") == {("kernel", 0): TWO, ("offset", 0): TWO, ("last.weight", 1): TWO}
    assert kinds(graph, "kernel") == EXACT


def test_matrix_product_with_a_transposed_parameter() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.fc(net.one(x) @ net.middle.t())

    graph = traced(
        forward, 2, 4, one=nn.Linear(4, 2), middle=nn.Parameter(torch.randn(3, 2)), fc=nn.Linear(3, 2)
    )
    assert bound(graph, "one")["middle", 1] == TWO
    assert bound(graph, "middle") == {("middle", 0): (0, 1, 2), ("fc.weight", 1): (0, 1, 2)}
    assert [(c.node, c.tensor) for c in graph.spaces["one"].consumers] == [("matmul", "one")]


def test_shared_module_called_twice_is_one_producer_in_two_places() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.last(net.shared(x)).mean((2, 3)) + net.other(net.shared(x * 2)).mean((2, 3))

    graph = traced(
        forward,
        *(2, 3, 6, 6),
        shared=nn.Conv2d(3, 2, 3),
        last=nn.Conv2d(2, 4, 1),
        other=nn.Conv2d(2, 4, 1),
    )
    space = graph.spaces["shared"]
    assert [p.node for p in space.producers] == ["shared", "shared_1"]
    assert {p.parameter for p in space.producers} == {"shared.weight"}
    assert bound(graph, "shared")["last.weight", 1] == bound(graph, "shared")["other.weight", 1] == TWO


def test_recurrent_module_binds_its_rows_and_its_columns_to_one_space() -> None:
    graph = traced(
        lambda net, x: net.fc(net.square(F.relu(net.square(net.first(x))))),
        *(2, 3),
        first=nn.Linear(3, 2),
        square=nn.Linear(2, 2),
        fc=head(2),
    )
    roles = {(b.parameter, b.axis): b.role for b in graph.spaces["first"].bindings}
    assert roles["square.weight", 0] == "producer"
    assert roles["square.weight", 1] == "consumer"
    assert bound(graph, "first")["square.weight", 0] == bound(graph, "first")["square.weight", 1] == TWO


def test_tied_parameter_whose_rows_make_and_read_channels_is_frozen() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.fc(F.linear(F.relu(F.linear(x, net.tied)), net.tied.t()))

    graph = traced(forward, 2, 3, tied=nn.Parameter(torch.randn(4, 3)), fc=head(3))
    assert {(v.kind, v.code) for v in graph.spaces["tied"].verdicts} == {("frozen", "tied-parameter")}


def test_flatten_after_nhwc_interleaves_the_columns() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.fc(net.conv(x).permute(0, 2, 3, 1).flatten(1))

    graph = traced(forward, 2, 3, 4, 4, conv=nn.Conv2d(3, 2, 3), fc=nn.Linear(8, 3))
    assert bound(graph, "conv")["fc.weight", 1] == (0, 1) * 4


def test_split_in_unequal_pieces_keeps_the_channels_apart() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        left, right = torch.split(net.first(x), [1, 3], 1)
        return pooled(net.one(left)) + pooled(net.two(right))

    graph = traced(
        forward, 2, 3, 6, 6, first=nn.Conv2d(3, 4, 3), one=nn.Conv2d(1, 2, 1), two=nn.Conv2d(3, 2, 1)
    )
    assert bound(graph, "first")["one.weight", 1] == (0,)
    assert bound(graph, "first")["two.weight", 1] == (1, 2, 3)
    assert kinds(graph, "first") == EXACT


def test_slices_with_literal_bounds_follow_their_channels() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        return pooled(net.one(x[:, :1])) + pooled(net.two(x[:, 1:]))

    graph = traced(
        forward, 2, 3, 6, 6, first=nn.Conv2d(3, 4, 3), one=nn.Conv2d(1, 2, 1), two=nn.Conv2d(3, 2, 1)
    )
    assert bound(graph, "first")["two.weight", 1] == (1, 2, 3)
    assert kinds(graph, "first") == EXACT


def test_slices_with_a_step_take_one_channel_of_each_block() -> None:
    graph = traced(
        lambda net, x: net.fc(net.first(x)[:, ::2]), 2, 3, first=nn.Linear(3, 6), fc=nn.Linear(3, 3)
    )
    assert bound(graph, "first")["first.weight", 0] == (0, 0, 1, 1, 2, 2)
    assert bound(graph, "first")["fc.weight", 1] == (0, 1, 2)
    assert kinds(graph, "first") == EXACT


def test_computed_bounds_follow_where_they_are_a_share_of_the_channels() -> None:
    def halved(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        return net.fc(x[:, : x.shape[1] // 2])

    def shortened(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        return net.fc(x[:, : x.shape[1] - 2])

    parts = {"first": nn.Linear(3, 4), "fc": nn.Linear(2, 3)}
    graph = traced(halved, 2, 3, **parts)
    assert bound(graph, "first")["first.weight", 0] == (0, 1, 0, 1)
    assert kinds(graph, "first") == EXACT
    assert kinds(traced(shortened, 2, 3, **parts), "first") == {("frozen", "computed-slice", "getitem_1")}


def test_flip_reverses_the_order() -> None:
    graph = traced(
        lambda net, x: net.fc(torch.flip(net.first(x), [1])), 2, 3, first=nn.Linear(3, 3), fc=head(3)
    )
    assert bound(graph, "first")["fc.weight", 1] == (2, 1, 0)


def test_transposed_convolution_swaps_the_kernels_axes() -> None:
    graph = traced(
        lambda net, x: pooled(net.last(net.up(net.first(x)))),
        *(2, 3, 6, 6),
        first=nn.Conv2d(3, 2, 3),
        up=nn.ConvTranspose2d(2, 4, 2, stride=2),
        last=nn.Conv2d(4, 3, 1),
    )
    assert bound(graph, "first")["up.weight", 0] == TWO
    assert bound(graph, "up")["up.weight", 1] == (0, 1, 2, 3)
    (producer,) = graph.spaces["up"].producers
    assert (producer.out_axis, producer.in_axis) == (1, 0)


def test_a_kernel_computed_from_parameters_is_frozen() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.fc(F.linear(x, net.kernel * 2))

    graph = traced(forward, 2, 3, kernel=nn.Parameter(torch.randn(4, 3)), fc=head(4))
    assert {verdict.code for verdict in graph.spaces["kernel"].verdicts} == {"computed-kernel"}
    assert {verdict.code for verdict in graph.spaces["fc"].verdicts} == {"model-output"}


class Masked(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.rand(shape) > 0.5).float())

    def forward(self, kernel: Tensor) -> Tensor:
        return kernel * self.mask


def test_parametrised_kernels_are_frozen() -> None:
    """Weight norm makes the kernel of two parameters, a mask of a parameter and a buffer."""
    masked = nn.Linear(5, 3)
    nn.utils.parametrize.register_parametrization(masked, "weight", Masked((3, 5)))
    graph = traced(
        lambda net, x: net.fc(net.masked(net.normed(net.first(x)))),
        *(2, 3),
        first=nn.Linear(3, 4),
        normed=nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)),
        masked=masked,
        fc=head(3),
    )
    kernels = "first", "normed.parametrizations.weight.original1", "masked.parametrizations.weight.original"
    assert [graph.spaces[name].width for name in kernels] == [4, 5, 3]
    assert {verdict.code for name in kernels for verdict in graph.spaces[name].verdicts} == {
        "computed-kernel"
    }


def test_constant_made_while_tracing_is_bound_like_a_buffer() -> None:
    graph = traced(
        lambda net, x: net.fc(net.first(x) + torch.ones(2)), 2, 3, first=nn.Linear(3, 2), fc=head(2)
    )
    assert bound(graph, "first")["_tensor_constant0", 0] == TWO
    assert kinds(graph, "first") == EXACT


def test_channels_added_to_a_tensor_made_at_run_time_are_frozen() -> None:
    graph = traced(
        lambda net, x: net.fc(net.first(x) + torch.arange(x.shape[1])),
        *(2, 4),
        first=nn.Linear(4, 4),
        fc=head(4),
    )
    assert kinds(graph, "first") == {("frozen", "meets-constant", "add")}


def test_attention_heads_freeze_queries_and_keys() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True))
    graph = trace(nn.Sequential(model, nn.Linear(4, 2)).eval(), torch.randn(2, 5, 3))
    assert {v.kind for v in graph.spaces["0.0"].verdicts} == {"frozen"}


def test_labels_are_read_by_training_and_evaluation_graphs_alike() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    train, evaluate = trace(model, torch.randn(2, 3, 3, 3)), trace(model.eval(), torch.randn(2, 3, 3, 3))
    assert train.spaces == evaluate.spaces
    assert train.training
    assert not evaluate.training


@pytest.mark.parametrize(
    "scale",
    [
        lambda h: h / h.numel(),
        lambda h: h / (h.size(1) * h.size(2)),
        lambda h: torch.full_like(h, h.size(1)) + h,
        lambda h: h + torch.arange(h.size(1) * 5, device=h.device).view(1, h.size(1), 5, 1),
    ],
)
def test_a_channel_count_used_as_a_value_freezes_the_channels(scale: Callable[[Tensor], Tensor]) -> None:
    graph = traced(
        lambda net, x: net.b(scale(net.a(x))), 2, 3, 5, 5, a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(2, 3, 1)
    )
    assert {(v.kind, v.code) for v in graph.spaces["a"].verdicts} == {("frozen", "size-as-value")}


@pytest.mark.parametrize(
    "scale",
    [
        lambda h: h / h.size(0) / h.size(2) / h.shape[-1],
        lambda h: h.view(h.size(0), h.size(1), -1).reshape(h.shape),
        lambda h: h + F.interpolate(h, size=h.shape[2:]),
    ],
)
def test_other_sizes_and_shapes_leave_the_channels_exact(scale: Callable[[Tensor], Tensor]) -> None:
    graph = traced(
        lambda net, x: net.b(scale(net.a(x))), 2, 3, 5, 5, a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(2, 3, 1)
    )
    assert kinds(graph, "a") == EXACT


def test_a_module_of_two_names_keeps_its_weights() -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 2)
            self.second = self.first
            self.out = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.first(x).relu() + self.second(2 * x))

    model, x = Aliased(), torch.randn(4, 5)
    graph = trace(model, x)
    verify_channels(graph)
    torch.testing.assert_close(graph(x), model(x), rtol=0, atol=0)
    assert graph.second is graph.first
    assert set(graph.state_dict()) == set(model.state_dict())
    assert kinds(graph, "first") == EXACT
