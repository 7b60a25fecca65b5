"""``path/to/file.py:factory``: what is passed, and what each mistake says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import nn

from morphir.errors import MorphirError
from morphir.seeds import resolve


def write(folder: Path, body: str, name: str = "net.py") -> Path:
    path = folder / name
    path.write_text("from torch import nn\n" + body)
    return path


def test_a_factory_gets_the_arguments_that_it_names(tmp_path: Path) -> None:
    path = write(tmp_path, "def net(classes, width=5):\n    return nn.Linear(width, classes)\n")
    model = resolve(f"{path}:net", classes=7)
    assert isinstance(model, nn.Linear)
    assert (model.in_features, model.out_features) == (5, 7)
    assert resolve(f"{path}:net", classes=7, width=3).get_parameter("weight").shape == (7, 3)


def test_a_factory_may_take_everything_or_be_a_class(tmp_path: Path) -> None:
    body = """
class Net(nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        self.sizes = sizes
"""
    model = resolve(f"{write(tmp_path, body)}:Net", in_channels=1, classes=4, image_size=8)
    assert vars(model)["sizes"] == {"in_channels": 1, "classes": 4, "image_size": 8}


def test_each_use_imports_the_file_afresh(tmp_path: Path) -> None:
    path = write(tmp_path, "def net():\n    return nn.Linear(1, 1)\n")
    resolve(f"{path}:net")
    write(tmp_path, "def net():\n    return nn.Linear(2, 2)\n")
    assert resolve(f"{path}:net").get_parameter("weight").shape == (2, 2)


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "def block(n):\n    return nn.Linear(n, n)\n", "neighbour_of_net.py")
    path = write(tmp_path, "from neighbour_of_net import block\n\ndef net():\n    return block(4)\n")
    before = list(sys.path)
    assert resolve(f"{path}:net").get_parameter("weight").shape == (4, 4)
    assert sys.path == before


def test_mistakes_in_the_name(tmp_path: Path) -> None:
    path = write(tmp_path, "def net():\n    return nn.Linear(1, 1)\n")
    with pytest.raises(MorphirError, match="names no factory"):
        resolve(str(path))
    with pytest.raises(MorphirError, match="does not exist"):
        resolve(f"{tmp_path}/absent.py:net")
    with pytest.raises(MorphirError, match=r"no factory 'nett'\n  hint: it defines net"):
        resolve(f"{path}:nett")


def test_mistakes_in_the_file_name_its_line(tmp_path: Path) -> None:
    failing = write(tmp_path, "def net():\n    raise KeyError('lost')\n")
    with pytest.raises(MorphirError, match=r"factory 'net' failed: KeyError: 'lost'\n  at: .*net\.py:3"):
        resolve(f"{failing}:net")
    leaving = write(tmp_path, "def net():\n    raise SystemExit(3)\n", "leaving.py")
    with pytest.raises(MorphirError, match=r"factory 'net' failed: SystemExit: 3\n  at: .*leaving\.py:3"):
        resolve(f"{leaving}:net")
    broken = write(tmp_path, "\n1 / 0\n", "broken.py")
    with pytest.raises(MorphirError, match=r"cannot be imported: ZeroDivisionError.*\n  at: .*broken\.py:3"):
        resolve(f"{broken}:net")
    unparsable = write(tmp_path, "def net(:\n", "unparsable.py")
    with pytest.raises(MorphirError, match=r"SyntaxError.*\n  at: .*unparsable\.py:2"):
        resolve(f"{unparsable}:net")
    assert not [name for name in sys.modules if name.endswith(("_broken", "_unparsable"))]


def test_mistakes_in_the_signature(tmp_path: Path) -> None:
    body = """
def fixed():
    return nn.Linear(1, 1)

def greedy(depth):
    return depth

def odd():
    return 3
"""
    path = write(tmp_path, body)
    with pytest.raises(MorphirError, match="'fixed' takes no width"):
        resolve(f"{path}:fixed", width=4)
    with pytest.raises(MorphirError, match=r"'greedy\(depth\)' cannot be called: missing .*'depth'"):
        resolve(f"{path}:greedy")
    with pytest.raises(MorphirError, match="returned int, not a torch.nn.Module"):
        resolve(f"{path}:odd")
