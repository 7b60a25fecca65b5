"""The networks that growth starts from: the paper's seeds, torchvision's models, a user's own file."""

from morphir.seeds.mobilenet import MobileNetV1
from morphir.seeds.registry import MODEL_NAMES, SEEDS, resolve
from morphir.seeds.resnet import ResNet20
from morphir.seeds.vgg import VGG19

__all__ = ["MODEL_NAMES", "SEEDS", "VGG19", "MobileNetV1", "ResNet20", "resolve"]
