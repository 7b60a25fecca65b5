"""One small finished run with splits and prunes in it; a line of its source must not be taken for HTML."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from morphir.analysis.tracing import trace
from morphir.report import write_report
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.growth import grow

HOSTILE = "# </script><script>document.title = 'taken over'</script>"
MODEL = f"""\
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.block = Block(6)
        self.head = nn.Linear(6, 3)

    def forward(self, images):
        x = torch.relu(self.stem(images))  {HOSTILE}
        return self.head(self.block(x).mean((2, 3)))
"""
CONFIG = GrowthConfig(
    phases=3,
    train_epochs=2,
    learn_epochs=2,
    final_epochs=1,
    lr=0.05,
    theta_lr=0.2,
    ema=0.2,
    lambda_parameters=0,
)


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reported_net", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three phases, with its report."""
    folder = tmp_path_factory.mktemp("report")
    source = folder / "net.py"
    source.write_text(MODEL)
    torch.manual_seed(3)
    model: nn.Module = _imported(source).Net()
    images = torch.randn(48, 1, 6, 6)
    targets = torch.randint(3, (48,))
    batches = [(images[i : i + 16], targets[i : i + 16]) for i in range(0, 48, 16)]
    graph = trace(model, torch.zeros(2, 1, 6, 6))
    out = folder / "run"
    loss = functional.cross_entropy
    grow(graph, batches, loss, config=CONFIG, eval_data=batches, out=out, quiet=True)
    write_report(out)
    return out


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium without a network, driven by selenium; skips where either is not there."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    switches = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync")
    switches += ("disable-background-networking", "disable-component-update", "disable-dev-shm-usage")
    for switch in (*switches, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=service.Service(driver))
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield browser
    browser.quit()
