"""Graphs of trained recognisers, for ONNX and torch.export, and greedy decoding with them."""

from .folder import export_recogniser
from .greedy_decoding import OnnxRecogniser, greedy
from .torch_decoding import TorchRecogniser

__all__ = ["OnnxRecogniser", "TorchRecogniser", "export_recogniser", "greedy"]
