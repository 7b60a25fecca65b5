"""What the exported source must be: importable with torch alone, strict to load, bit-equal, and readable."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file, save_file
from torch import fx, nn

from exporters import export_onnx, export_pytorch
from morphir.errors import ExportError, MorphirError
from morphir.ir.graph import Graph
from morphir.ir.trace import trace_program

ISOLATED = """
import importlib.util, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"morphir", "passes", "exporters", "torchvision", "onnx"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
folder, names = sys.argv[1], sys.argv[2:]
import torch
torch.set_num_threads(1)
for name in names:
    assert "safetensors" not in sys.modules
    spec = importlib.util.spec_from_file_location(f"net_{name}", f"{folder}/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
for name in names:
    from safetensors.torch import load_file, save_file
    spec = importlib.util.spec_from_file_location(f"net_{name}", f"{folder}/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    inputs = load_file(f"{folder}/{name}.inputs")
    with torch.no_grad():
        found = module.load()(*[inputs[key] for key in sorted(inputs)])
    found = {"out": found} if isinstance(found, torch.Tensor) else found
    found = {str(i): v for i, v in enumerate(found)} if isinstance(found, tuple) else found
    save_file({key: value.contiguous().clone() for key, value in found.items()}, f"{folder}/{name}.outputs")
"""


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter and statistic a value that no default has: a forgotten tensor would show."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            scale = 0.2 if tensor.ndim < 2 else (2.0 / tensor[0].numel()) ** 0.5
            tensor.data = noise.abs() * 0.3 + 0.7 if "var" in name else noise * scale
    return model


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, (3, 1), stride=2, padding=(1, 0), padding_mode="reflect", bias=False)
        self.bn = nn.BatchNorm2d(6, eps=1e-3, momentum=None, affine=False)
        self.act = nn.LeakyReLU(0.3, inplace=True)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False, ceil_mode=True)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, output_padding=1, dilation=2, groups=2)
        self.norm = nn.GroupNorm(2, 4, eps=1e-4)
        self.drop = nn.Dropout(0.25)
        self.head = nn.Linear(4, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.act(self.bn(self.conv(image))))
        x = self.norm(self.up(x)).mean((2, 3))
        return self.head(self.drop(x))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, p: float = 0.1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return F.dropout(F.relu(y), self.p, self.training)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
        self.stages = nn.ModuleList([Block(4, 6), Block(6, 7, stride=2, p=0.2), Block(7, 9)])
        self.heads = nn.ModuleDict({"coarse": nn.Linear(9, 2), "fine": nn.Linear(9, 5)})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        x = x.flatten(2).mean(-1)
        return {"coarse": self.heads["coarse"](x), "fine": self.heads["fine"](x)}


class Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))
        self.register_buffer("offset", torch.zeros(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma + self.offset


class Functional(nn.Module):
    """Bare tensors, a module called twice, slices, sizes, several inputs and outputs, keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(4, 3, 3, 3))
        self.extra = nn.ParameterList([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3, 2))])
        self.scale = Scale(4)
        self.mixer = nn.Conv2d(4, 4, 1)
        self.encoder = nn.Linear(4, 2)
        self.decoder = nn.Linear(4, 2)
        self.decoder.weight = self.encoder.weight

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor, unused: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        x = F.conv2d(x, self.kernel, padding=1)
        x = self.scale(self.mixer(self.scale(self.mixer(x))))
        batch, channels = x.size(0), x.shape[1]
        left, right = x.chunk(2, dim=1)
        x = torch.cat((right[:, :, 1:-1, ::2], left[:, :, 1:-1, ::2]), dim=1)
        x = x.reshape(batch, channels, -1).amax(dim=-1) ** 2 + bias[..., None, :].squeeze(-2)
        x = F.gelu(x.to(torch.float64).to(torch.float32), approximate="tanh")
        y = self.encoder(x) * self.extra[0]
        return self.decoder(x) - y, F.linear(y, self.extra[1]), (-y).clamp(min=0.0)


class Overlapping(nn.Module):
    """A Sequential that is not called as a whole, a module without state, a list with its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.shuffle = Shuffle()
        self.sum = Sum([nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.features[0](x)
        return self.sum(self.shuffle(self.features[2](first)) + first.mean())


class Shuffle(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Sum(nn.ModuleList):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[0](x) + self[1](x)


IMAGE = (2, 3, 12, 12)
MODELS = {
    "plain": (Plain, (IMAGE,)),
    "residual": (Residual, (IMAGE,)),
    "functional": (Functional, (IMAGE, (2, 4))),
    "overlapping": (Overlapping, (IMAGE,)),
    "resnet18": (torchvision.models.resnet18, ((2, 3, 32, 32),)),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, ((2, 3, 32, 32),)),
    "shufflenet_v2_x0_5": (torchvision.models.shufflenet_v2_x0_5, ((2, 3, 32, 32),)),
    "squeezenet1_1": (torchvision.models.squeezenet1_1, ((2, 3, 32, 32),)),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, ((2, 3, 32, 32),)),
    "densenet121": (torchvision.models.densenet121, ((2, 3, 32, 32),)),
}


def traced(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...], Graph]:
    factory, shapes = MODELS[name]
    model = randomise(factory()).eval()
    generator = torch.Generator().manual_seed(7)
    inputs = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    return model, inputs, trace_program(model, inputs)


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every model exported, and run in a process that sees neither morphir nor torchvision."""
    folder = tmp_path_factory.mktemp("exported")
    for name in MODELS:
        _, inputs, graph = traced(name)
        export_pytorch(graph, folder / f"{name}.py")
        save_file({str(at): tensor for at, tensor in enumerate(inputs)}, folder / f"{name}.inputs")
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", ISOLATED, str(folder), *MODELS]
    finished = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_source_alone_computes_what_the_model_computes(name: str, isolated: Path) -> None:
    model, inputs, _ = traced(name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        wanted = model(*inputs)
    torch.set_num_threads(threads)
    wanted = {"out": wanted} if isinstance(wanted, torch.Tensor) else wanted
    wanted = {str(at): v for at, v in enumerate(wanted)} if isinstance(wanted, tuple) else wanted
    found = load_file(isolated / f"{name}.outputs")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert load_file(isolated / f"{name}.safetensors").keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", MODELS)
def test_source_is_clean(name: str, isolated: Path) -> None:
    text = (isolated / f"{name}.py").read_text()
    assert "= None" not in text
    assert "pickle" not in text
    assert "import morphir" not in text
    assert max(len(line) for line in text.splitlines()) <= 110
    ruff = [sys.executable, "-m", "ruff"]
    file = str(isolated / f"{name}.py")
    subprocess.run([*ruff, "check", "--isolated", "--quiet", file], check=True)
    subprocess.run(
        [*ruff, "format", "--isolated", "--check", "--quiet", "--line-length", "110", file], check=True
    )


def build(path: Path) -> dict[str, object]:
    namespace: dict[str, object] = {"__name__": "exported", "__file__": str(path)}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    return namespace


def test_classes_are_shared_and_differing_literals_are_options(isolated: Path) -> None:
    text = (isolated / "residual.py").read_text()
    assert text.count("class Block") == 1
    assert "Block(4, 6, 0.1)" in text
    assert "Block(6, 7, 0.2, stride=2)" in text
    assert "def forward(self, x):" in text
    assert 'self.heads["fine"](x)' in text
    resnet = (isolated / "resnet18.py").read_text()
    assert "self.layer1 = nn.Sequential(BasicBlock(64), BasicBlock(64))" in resnet
    assert "x = self.layer1(x)" in resnet


def test_parameters_keep_their_names_defaults_and_ties(isolated: Path) -> None:
    text = (isolated / "functional.py").read_text()
    assert "def forward(self, x, bias, unused=None):" in text
    network = build(isolated / "functional.py")["Functional"]()
    assert network.decoder.weight is network.encoder.weight
    assert "def forward(self, image):" in (isolated / "plain.py").read_text()


def test_every_option_of_a_layer_comes_back(isolated: Path) -> None:
    network = build(isolated / "plain.py")["Plain"]()
    model = Plain()
    for name, layer in model.named_children():
        assert repr(layer) == repr(getattr(network, name))
    assert network.bn.momentum is None
    assert network.pool.count_include_pad is False
    assert network.training


def test_train_mode_is_the_models(isolated: Path) -> None:
    model, inputs, _ = traced("residual")
    network = build(isolated / "residual.py")["load"]().train()
    torch.manual_seed(3)
    wanted = model.train()(*inputs)
    torch.manual_seed(3)
    found = network(*inputs)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert torch.equal(network.stem[1][0].running_mean, model.stem[1][0].running_mean)


@pytest.mark.parametrize("name", MODELS)
def test_tracing_the_source_again_gives_the_same_program(name: str, isolated: Path) -> None:
    _, inputs, graph = traced(name)
    again = trace_program(build(isolated / f"{name}.py")["load"](), inputs)
    assert again.state_dict().keys() == graph.state_dict().keys()
    assert program_of(again) == program_of(graph)


def program_of(graph: Graph) -> list[tuple[object, ...]]:
    """Numbers every value, so that programs compare whatever their nodes are called."""
    numbers = {node: number for number, node in enumerate(graph.graph.nodes)}
    return [
        (
            node.op,
            "input" if node.op == "placeholder" else getattr(node.target, "__name__", node.target),
            repr(fx.node.map_arg((node.args, node.kwargs), lambda n: numbers[n])),
        )
        for node in graph.graph.nodes
    ]


def test_export_changes_neither_graph_nor_random_state(tmp_path: Path) -> None:
    _, _, graph = traced("residual")
    graph.train()
    before = {key: tensor.clone() for key, tensor in graph.state_dict().items()}
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    export_pytorch(graph, tmp_path / "net.py")
    assert torch.equal(torch.rand(3), wanted)
    assert all(module.training for module in graph.modules())
    assert all(torch.equal(before[key], tensor) for key, tensor in graph.state_dict().items())


class Changed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).mean((2, 3)))


def test_grown_layers_are_exported_with_their_new_widths(tmp_path: Path) -> None:
    graph = trace_program(randomise(Changed()), torch.randn(IMAGE))
    conv, head = graph.get_submodule("conv"), graph.get_submodule("head")
    conv.weight = nn.Parameter(torch.cat([conv.weight, conv.weight[:1]]).detach())
    conv.bias = nn.Parameter(torch.cat([conv.bias, conv.bias[:1]]).detach())
    head.weight = nn.Parameter(torch.cat([head.weight, head.weight[:, :1]], dim=1).detach())
    conv.out_channels, head.in_features = 5, 5
    text = export_pytorch(graph, tmp_path / "net.py", class_name="Grown").source.read_text()
    assert "nn.Conv2d(3, 5, 3)" in text
    assert "nn.Linear(5, 2)" in text
    assert "Grown: 152 parameters" in text  # 5*3*9 + 5 + 2*5 + 2


def test_options_that_do_not_fit_the_parameters_are_refused(tmp_path: Path) -> None:
    graph = trace_program(Changed(), torch.randn(IMAGE))
    graph.get_submodule("conv").out_channels = 5
    with pytest.raises(ExportError, match=r"'conv' do not fit.*weight is \(4, 3, 3, 3\)"):
        export_pytorch(graph, tmp_path / "net.py")
    assert list(tmp_path.iterdir()) == []


def test_dtypes_are_kept(tmp_path: Path) -> None:
    graph = trace_program(randomise(Residual()).double(), torch.randn(IMAGE, dtype=torch.float64))
    exported = export_pytorch(graph, tmp_path / "net.py")
    network = build(exported.source)["load"]()
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}


class Hidden(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(size) / 7.0, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table


def test_hidden_buffers_are_literals_or_refused(tmp_path: Path) -> None:
    graph = trace_program(nn.Sequential(Hidden(4)), torch.randn(2, 4))
    exported = export_pytorch(graph, tmp_path / "net.py")
    x = torch.randn(3, 4)
    assert torch.equal(build(exported.source)["load"]()(x), x + torch.arange(4) / 7.0)


class Opaque(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@fx.wrap
def outside(x: torch.Tensor) -> torch.Tensor:
    return x + json.loads("1")


class Wrapped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return outside(x)


def test_what_is_not_torchs_is_refused_by_name_and_line(tmp_path: Path) -> None:
    graph = trace_program(Wrapped(), torch.randn(2, 4))
    with pytest.raises(
        ExportError, match=r"outside is not a function of torch.*reads json(.|\n)*test_pytorch_source.py:"
    ):
        export_pytorch(graph, tmp_path / "net.py")

    class Leaves(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    root = nn.Sequential(Opaque())
    graph = trace_program(root, torch.randn(2, 4))
    graph.add_submodule("0", Opaque())
    node = next(iter(graph.graph.nodes))
    with graph.graph.inserting_after(node):
        graph.graph.call_module("0", (node,))
    with pytest.raises(ExportError, match="Opaque at '0' is not a layer of torch.nn"):
        export_pytorch(graph, tmp_path / "net.py")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_export_is_noticed_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = trace_program(randomise(Changed()), torch.randn(IMAGE))
    export_pytorch(graph, tmp_path / "net.py")
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    graph.get_submodule("conv").register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ExportError, match="output 0 of the exported class differs"):
        export_pytorch(graph, tmp_path / "net.py")
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


def test_paths_that_cannot_be_written_are_clear_errors(tmp_path: Path) -> None:
    graph = trace_program(Changed(), torch.randn(IMAGE))
    with pytest.raises(ExportError, match=r"not the name of a \.py file"):
        export_pytorch(graph, tmp_path / "net.onnx")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="the path is a NoneType, not a file name\n.*net.py"):
        export_pytorch(graph, None)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="cannot write"):
        export_pytorch(graph, tmp_path / "file" / "net.py")
    with pytest.raises(ExportError, match="is not a class name"):
        export_pytorch(graph, tmp_path / "net.py", class_name="my net")


@pytest.mark.parametrize("export", [export_pytorch, export_onnx], ids=["pytorch", "onnx"])
def test_a_model_in_place_of_a_graph_is_refused(export: Callable[..., object], tmp_path: Path) -> None:
    with pytest.raises(MorphirError, match=r"expected a morphir.Graph, got Linear"):
        export(nn.Linear(2, 2), tmp_path / "net.py")
    assert list(tmp_path.iterdir()) == []
