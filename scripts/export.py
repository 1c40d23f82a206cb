#!/usr/bin/env python
"""Write a trained recogniser as graphs that run without this package: ONNX, or programs of torch.export.

    python scripts/export.py runs/demo/best --output exported
    python scripts/export.py runs/demo/best --output exported --format torch

CHECKPOINT is a folder or a Hub repository. What is written: the encoder, a step of the decoder, the processor,
decoding.json with all that decoding needs to know, and greedy_decoding.py, which decodes with numpy and onnxruntime.
"""

import argparse
import sys
from pathlib import Path

from program_options import EXPORT_FORMATS


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the graphs; must not exist")
    parser.add_argument("--format", choices=EXPORT_FORMATS, default="onnx", help="of the graphs (onnx)")
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.export.folder import FORMATS, check_export, export_recogniser
from hf_entmax_asr.recognition.checkpoint import load_recogniser


@reports_errors("export.py")
def main() -> int:
    arguments = parse()
    disable_progress_bar()
    check_export(arguments.format, arguments.output)  # before the checkpoint is loaded
    model, processor = load_recogniser(arguments.checkpoint, "cpu")
    export_recogniser(model, processor, arguments.output, arguments.format)
    for file in sorted(arguments.output.glob(f"*.{FORMATS[arguments.format]}*")):
        print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")
    print("how to decode with them: docs/export.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
