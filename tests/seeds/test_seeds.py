"""The seeds against counts and shapes worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from morphir.errors import MorphirError
from morphir.seeds import SEEDS, resolve

VGG_WIDTHS = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
MOBILENET_WIDTHS = [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def vgg_count(widths: list[int], inputs: int, classes: int) -> int:
    count = 0
    for width in widths:
        count += 9 * inputs * width + 2 * width
        inputs = width
    return count + classes * inputs + classes


def mobilenet_count(stem: int, widths: list[int], inputs: int, classes: int) -> int:
    count = 9 * inputs * stem + 2 * stem
    for width in widths:
        count += 9 * stem + 2 * stem + stem * width + 2 * width
        stem = width
    return count + classes * stem + classes


def resnet_count(base: int, inputs: int, classes: int) -> int:
    count = 9 * inputs * base + 2 * base
    inputs = base
    for width in (base, 2 * base, 4 * base):
        for _ in range(3):
            count += 9 * inputs * width + 9 * width * width + 4 * width
            if inputs != width:
                count += inputs * width + 2 * width
            inputs = width
    return count + classes * inputs + classes


def test_vgg19_has_the_papers_shape() -> None:
    assert parameters(resolve("vgg19")) == vgg_count(VGG_WIDTHS, 3, 10)
    narrow = resolve("vgg19", width=16, in_channels=1, classes=7)
    assert parameters(narrow) == vgg_count([16] * 16, 1, 7)


def test_mobilenetv1_has_the_papers_shape() -> None:
    assert parameters(resolve("mobilenetv1")) == mobilenet_count(32, MOBILENET_WIDTHS, 3, 10)
    narrow = resolve("mobilenetv1", width=32, in_channels=1, classes=7)
    assert parameters(narrow) == mobilenet_count(32, [32] * 13, 1, 7)


@pytest.mark.parametrize("base", [8, 16])
def test_resnet20_has_the_papers_shape(base: int) -> None:
    assert parameters(resolve("resnet20", width=base, in_channels=1)) == resnet_count(base, 1, 10)


def test_vgg19_pools_after_layers_2_4_8_12_and_16() -> None:
    layers = resolve("vgg19", width=4).get_submodule("features")
    convs, pooled_after = 0, []
    for layer in layers.children():
        convs += isinstance(layer, nn.Conv2d)
        if isinstance(layer, nn.MaxPool2d):
            pooled_after.append(convs)
    assert pooled_after == [2, 4, 8, 12, 16]


@pytest.mark.parametrize(("side", "pools"), [(1, 0), (8, 3), (28, 4), (32, 5), (64, 5)])
def test_vgg19_leaves_out_pools_of_single_pixels(side: int, pools: int) -> None:
    model = resolve("vgg19", width=4, image_size=side)
    assert sum(isinstance(m, nn.MaxPool2d) for m in model.modules()) == pools


@pytest.mark.parametrize("name", sorted(SEEDS))
@pytest.mark.parametrize("side", [8, 28, 32])
def test_every_seed_takes_every_image_size(name: str, side: int) -> None:
    model = resolve(name, width=4, in_channels=2, classes=5, image_size=side)
    logits = model(torch.randn(3, 2, side, side))
    assert logits.shape == (3, 5)
    logits.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_seeds_are_reproducible(name: str) -> None:
    torch.manual_seed(3)
    first = resolve(name, width=4).state_dict()
    torch.manual_seed(3)
    second = resolve(name, width=4).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_kaiming_counts_a_depthwise_layers_own_inputs() -> None:
    model = resolve("mobilenetv1")
    pointwise, depthwise = (
        model.get_parameter("features.15.3.weight"),
        model.get_parameter("features.15.0.weight"),
    )
    assert pointwise.std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.02)
    assert depthwise.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)


def test_a_residual_stage_halves_the_image_and_doubles_the_channels() -> None:
    model = resolve("resnet20", width=4)
    stream = torch.randn(2, 4, 16, 16)
    assert model.get_submodule("layer2")(stream).shape == (2, 8, 8, 8)


def test_unknown_model_lists_what_exists() -> None:
    with pytest.raises(MorphirError, match=r"unknown model 'vgg9'\n.*did you mean vgg19\?.*mobilenetv1"):
        resolve("vgg9")
    with pytest.raises(MorphirError, match="did you mean torchvision:resnet18"):
        resolve("resnet18")


@pytest.mark.parametrize("name", ["width", "in_channels", "classes", "image_size"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(MorphirError, match=f"{name} must be at least 1, got 0"):
        resolve("vgg19", **{name: 0})


def test_torchvision_models_take_classes_and_channels() -> None:
    model = resolve("torchvision:squeezenet1_1", in_channels=1, classes=7)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert (stem.in_channels, stem.out_channels, stem.stride) == (1, 64, (2, 2))


def test_torchvision_errors() -> None:
    with pytest.raises(MorphirError, match="did you mean .*resnet18"):
        resolve("torchvision:resnet19")
    with pytest.raises(MorphirError, match="takes no width"):
        resolve("torchvision:squeezenet1_1", width=16)
