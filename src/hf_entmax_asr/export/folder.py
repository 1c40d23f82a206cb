"""A folder of graphs: the encoder, a step of the decoder, and what decoding with them needs."""

import copy
import importlib.util
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from hf_entmax_asr.atomic_files import atomic_folder, check_folder_writable
from hf_entmax_asr.export import greedy_decoding
from hf_entmax_asr.export.entmax_loop import exportable_forms
from hf_entmax_asr.export.modules import ExportedDecoderStep, ExportedEncoder
from hf_entmax_asr.export.settings import check_exportable, decoding_settings, most_frames
from hf_entmax_asr.model.configuration_entmax_asr import EntmaxAsrConfig

FORMATS = {"onnx": "onnx", "torch": "pt2"}  # by name, the ending of the files
SETTINGS = "decoding.json"
_EXAMPLE = {"batch": 2, "positions": 7, "past": 5}  # sizes while a graph is made; it holds for any


@torch.no_grad()
def export_recogniser(model: Any, processor: Any, folder: str | Path, format: str = "onnx") -> None:
    """Writes encoder and decoder step as graphs that compute in float32, the processor, decoding.json and, to be
    copied, greedy_decoding.py. The folder is whole or absent.

    Args:
        model: an `EntmaxAsrForConditionalGeneration`, which stays as it is.
        processor: of this model.
        folder: must not exist.
        format: "onnx", or "torch" for programs of torch.export.

    Raises:
        ValueError: an unknown format, a model of which no graph is made.
        FileExistsError: the folder is there.
        ImportError: packages that write ONNX are missing.
    """
    folder = Path(folder)
    check_export(format, folder)
    check_exportable(model)
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    encoder, decoder = ExportedEncoder(model), ExportedDecoderStep(model)
    ending = FORMATS[format]
    settings = decoding_settings(model, encoder, decoder, ending)
    with atomic_folder(folder) as partial, _quiet():
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            program = graph_of(part, model.config)
            if format == "onnx":
                _write_onnx(program, part, partial / f"{name}.{ending}")
            else:
                torch.export.save(program, partial / f"{name}.{ending}")
        (partial / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        shutil.copyfile(greedy_decoding.__file__, partial / Path(greedy_decoding.__file__).name)
        processor.save_pretrained(partial)


def check_export(format: str, folder: Path) -> None:
    """Finds out before the work what would stop it.

    Raises:
        ValueError, FileExistsError, ImportError: as `export_recogniser`.
        OSError: nothing may be written there.
    """
    if format not in FORMATS:
        raise ValueError(f"format = {format!r} is not known. Use one of: {', '.join(FORMATS)}.")
    if folder.exists():
        raise FileExistsError(f"{folder} exists; name another folder.")
    check_folder_writable(folder)
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if format == "onnx" and missing:
        raise ImportError(f"to write ONNX, {' and '.join(missing)} must be there: pip install 'hf_entmax_asr[export]'.")


def graph_of(part: ExportedEncoder | ExportedDecoderStep, config: EntmaxAsrConfig) -> ExportedProgram:
    """The part as a graph of standard operators, for any number of utterances, positions and tokens before."""
    step, most = config.frames_per_position, most_frames(config)
    sizes = {**_EXAMPLE, "frames": step * _EXAMPLE["positions"]}
    positions = Dim("positions", min=2, max=None if most is None else most // step)
    past = Dim("past", max=config.max_target_positions - 1 if config.decoder_positions == "learned" else None)
    # Frames as a multiple of positions, and not positions as frames divided and rounded, keep sizes simple.
    dims = {"batch": Dim("batch"), "positions": positions, "frames": step * positions, "past": past}
    examples, shapes = [], []
    for given in part.inputs:
        shape = [sizes[size] if isinstance(size, str) else size for size in given.axes]
        examples.append(torch.zeros(shape, dtype=given.dtype))
        shapes.append({axis: dims[size] for axis, size in enumerate(given.axes) if isinstance(size, str)})
    with exportable_forms():
        return torch.export.export(part, tuple(examples), dynamic_shapes=(tuple(shapes),), strict=False)


def _write_onnx(program: ExportedProgram, part: ExportedEncoder | ExportedDecoderStep, file: Path) -> None:
    names = tuple({i: size for i, size in enumerate(given.axes) if isinstance(size, str)} for given in part.inputs)
    written = torch.onnx.export(
        program,
        dynamo=True,
        dynamic_shapes=names,  # of the axes, which the program has made its own for
        input_names=[given.name for given in part.inputs],
        output_names=list(part.outputs),
        verbose=False,
    )
    written.save(file)  # type: ignore[union-attr]  # a program, for dynamo


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch tells about its own exporter: old names that it uses, torchvision that is not there."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
