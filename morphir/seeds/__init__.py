"""The networks that growth starts from: the paper's seeds, torchvision's models, a user's own file."""

from morphir.seeds.mobilenet import MobileNetV1
from morphir.seeds.registry import SEEDS, resolve
from morphir.seeds.resnet import ResNet20
from morphir.seeds.vgg import VGG19

__all__ = ["SEEDS", "VGG19", "MobileNetV1", "ResNet20", "resolve"]
