"""Greedy decoding with programs of torch.export."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_entmax_asr.export.folder import SETTINGS
from hf_entmax_asr.export.greedy_decoding import Graph, greedy


class TorchRecogniser:
    """The folder that `scripts/export.py --format torch` has written."""

    def __init__(self, folder: str | Path):
        self.settings = json.loads((Path(folder) / SETTINGS).read_text(encoding="utf-8"))
        self.encoder = torch_graph(Path(folder), self.settings["encoder"])
        self.decoder = torch_graph(Path(folder), self.settings["decoder"])

    def generate(self, input_features: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """As `greedy_decoding.greedy`."""
        return greedy(self.settings, self.encoder, self.decoder, input_features, attention_mask)


def torch_graph(folder: Path, part: dict[str, Any]) -> Graph:
    """The program of a part, to be called with its inputs by name."""
    module = torch.export.load(folder / part["file"]).module()

    def run(**tensors: Any) -> dict[str, Any]:
        with torch.no_grad():
            outputs = module(*(torch.as_tensor(tensors[name]) for name in part["inputs"]))
        return dict(zip(part["outputs"], outputs, strict=True))

    return run
