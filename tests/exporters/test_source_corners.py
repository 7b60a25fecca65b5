"""Programs whose calls cannot all be written as calls again, and names that source must not trip over."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exporters import export_pytorch
from morphir.ir.trace import trace_program


class Add(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + y * 2


class SameTwice(nn.Module):
    """One module called with one value twice, then with two values: no one forward serves both calls."""

    def __init__(self) -> None:
        super().__init__()
        self.add = Add()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.add(self.add(x, x), x)


class Borrower(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.borrowed = [layer]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.borrowed[0](x) * 2


class Borrowed(nn.Module):
    """Modules that call a layer that is not theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.first = Borrower(self.layer)
        self.second = Borrower(self.layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.linear(x)
        return y, y.relu()


class Pairs(nn.Module):
    """Several results, of which not every caller reads all."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Pair(), Pair()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        a, b = self.one(x)
        c, _ = self.two(a)
        return self.one(c)[1], [b, x]


class Names(nn.Module):
    """Attributes that are no identifiers, private ones, and ones that shadow modules; parameters as well."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", nn.Linear(4, 4))
        self.__private = nn.Linear(4, 4)
        self.torch = nn.Linear(4, 4)
        self.scales = nn.ParameterDict({"a": torch.ones(4), "b": torch.zeros(4)})
        self.unused = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), Add())
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, torch: torch.Tensor) -> torch.Tensor:
        x = self.__private(getattr(self, "0")(torch)) * self.scales["a"] + self.scales["b"]
        return self.torch(self.frozen(x)).softmax(-1)


class Expressions(nn.Module):
    def forward(self, x: torch.Tensor, scale: float = 2.0) -> tuple[torch.Tensor, ...]:
        y = F.interpolate(F.interpolate(x, scale_factor=2, mode="bilinear"), size=x.shape[-2:])
        masked = torch.where(x < -1, x, -x * 0.5)
        floor = F.pad(x, (1, 1, 0, 0), value=float("-inf")).amax() * scale
        flat = x.reshape((x.shape[0] * x.shape[1]) // 2, -1)
        power = 3.0 ** x.abs().floor() - (-x) ** 2 + 2**x
        z = F.relu(x - 1, inplace=True)
        z += 3
        return (
            torch.einsum("nchw,ndhw->ncd", x, y),
            masked[masked > 0].sum(),
            floor,
            flat,
            power,
            z,
            x[:, [2, 0, 1]][..., None],
            ~(x > 0) | (x < -1),
        )


class Layers(nn.Module):
    """Layers whose options hide: tuples, strings, several spellings, absent attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv1d(2, 4, 3, padding="same", dilation=2),
                nn.PReLU(4),
                nn.BatchNorm1d(4, track_running_stats=False),
                nn.InstanceNorm1d(4, affine=True),
                nn.MaxPool1d(2, stride=1, ceil_mode=True),
                nn.AdaptiveMaxPool1d(6),
                nn.Upsample(scale_factor=2),
                nn.Hardtanh(-2, 3),
                nn.GELU("tanh"),
                nn.LayerNorm((4, 12), bias=False),
                nn.Flatten(),
                nn.Unflatten(1, (4, 12)),
                nn.ConstantPad1d((1, 2), 3.5),
                nn.LocalResponseNorm(3, alpha=0.1),
                nn.RMSNorm(15),
                nn.Softmax(dim=1),
                nn.LPPool1d(2, 3),
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 6, padding_idx=0)
        self.rnn = nn.LSTM(6, 4, num_layers=2, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x, (hidden, _) = self.rnn(self.embed(tokens))
        return self.attention(x, x, x)[0] + hidden.sum()


ROW, IMAGE = torch.linspace(-1, 1, 8).view(2, 4), torch.linspace(-3, 3, 96).view(2, 3, 4, 4)


class Lists(nn.Module):
    """Functions of torch that are given tensors in a list, out of fx's sight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = torch.arange(x.size(2)), torch.arange(x.size(3))
        y, z = torch.meshgrid([rows, columns], indexing="ij")
        left, right = torch.broadcast_tensors(*[x, x[:, :1]])
        return left * y + right * z


class Counted(nn.Module):
    """Sizes read in every way that there is; one that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x.nelement() // x.size(0)
        x.nelement()
        return self.linear(x.view(-1, count)) / (x.nelement() + x.numel() + x.shape[1] * x.dim() - x.ndim)


CASES = {
    "counted": (Counted, IMAGE),
    "same-twice": (SameTwice, ROW),
    "borrowed": (Borrowed, ROW),
    "pairs": (Pairs, ROW),
    "names": (Names, ROW),
    "expressions": (Expressions, IMAGE),
    "lists": (Lists, IMAGE),
    "layers": (Layers, torch.linspace(-1, 1, 36).view(2, 2, 9)),
    "sequence": (Sequence, torch.tensor([[0, 1, 2], [4, 3, 0]])),
    "sequential": (lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), ROW),
    "bfloat16": (lambda: nn.Sequential(nn.Linear(4, 3)).bfloat16(), ROW.bfloat16()),
}


@pytest.mark.parametrize("case", CASES)
def test_source_computes_what_the_model_computes(case: str, tmp_path: Path) -> None:
    factory, x = CASES[case]
    torch.manual_seed(0)
    model = factory().eval()
    exported = export_pytorch(trace_program(model, x.clone()), tmp_path / "net.py")
    namespace: dict[str, object] = {"__name__": "exported", "__file__": str(exported.source)}
    exec(compile(exported.source.read_text(), "net.py", "exec"), namespace)
    network = namespace["load"]()
    with torch.no_grad():
        wanted, found = model(x.clone()), network(x.clone())
    wanted, found = torch.utils._pytree.tree_leaves(wanted), torch.utils._pytree.tree_leaves(found)
    assert len(wanted) == len(found)
    assert all(torch.equal(left, right) for left, right in zip(wanted, found, strict=True))
    assert network.state_dict().keys() == model.state_dict().keys()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name for name, parameter in network.named_parameters() if not parameter.requires_grad} == frozen


def test_sizes_are_written_as_expressions(tmp_path: Path) -> None:
    model = Counted().eval()
    exported = export_pytorch(trace_program(model, IMAGE.clone()), tmp_path / "net.py")
    source = exported.source.read_text()
    assert "x.nelement() // x.size(0)\n" in source and "/ (((x.nelement() + x.numel()) + " in source
    assert source.count("nelement()") == 2, "the one that nothing reads is left out"
    namespace: dict[str, object] = {"__name__": "exported", "__file__": str(exported.source)}
    exec(compile(source, "net.py", "exec"), namespace)
    network, other = namespace["load"](), torch.linspace(-1, 1, 5 * 48).view(5, 3, 4, 4)
    assert torch.equal(network(other), model(other))
