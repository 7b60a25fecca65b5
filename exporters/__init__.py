"""From a graph to files that need no MorphIR: PyTorch source and ONNX, each verified as part of exporting."""

from exporters.onnx import OnnxExport, export_onnx
from exporters.pytorch_source import PytorchExport, export_pytorch
from exporters.registry import EXPORTERS, Exporter

__all__ = ["EXPORTERS", "Exporter", "OnnxExport", "PytorchExport", "export_onnx", "export_pytorch"]
