#!/usr/bin/env python
"""Make a recogniser of this package out of a Whisper checkpoint: the same weights, the same outputs.

    python scripts/convert_whisper.py openai/whisper-tiny.en --output runs/tiny
    python scripts/convert_whisper.py my_whisper/ --output runs/monotonic --config cross_attention=monotonic \\
        monotonic_chunk_size=null

Any Whisper that transformers loads, from the Hub or a folder, of any size, English or multilingual. --config changes
the configuration (`EntmaxAsrConfig`) on the way: sparse transforms, monotonic cross-attention, a CTC head.
"""

import argparse
import logging
import sys
from pathlib import Path


def key_and_value(pair: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"KEY=VALUE is wanted, got {pair!r}")
    return key, value


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("whisper", metavar="NAME_OR_FOLDER", help="Hub repository or folder of a Whisper")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the recogniser")
    parser.add_argument("--language", help="what a multilingual one transcribes by default (en)")
    parser.add_argument("--task", default="transcribe", choices=("transcribe", "translate"))
    parser.add_argument(
        "--min-seconds", type=float, default=30.0, help="shorter audio is padded to that (30); 0 before fine-tuning"
    )
    parser.add_argument(
        "--config", nargs="+", type=key_and_value, default=[], metavar="KEY=VALUE", help="fields of EntmaxAsrConfig"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what stands at --output")
    return parser.parse_args(words)


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.atomic_files import atomic_folder, check_folder_writable
from hf_entmax_asr.error_messages import in_one_line, reports_errors
from hf_entmax_asr.pretrained import convert_whisper, converted_card


@reports_errors("convert_whisper.py")
def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    disable_progress_bar()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        if arguments.output.exists() and not arguments.overwrite:
            raise ValueError(f"{arguments.output} exists; name another folder, or add --overwrite")
        check_folder_writable(arguments.output)  # before the work
        model, processor = convert_whisper(
            arguments.whisper,
            language=arguments.language,
            task=arguments.task,
            min_seconds=arguments.min_seconds,
            **{key: yaml.safe_load(value) for key, value in arguments.config},
        )
        with atomic_folder(arguments.output) as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            (folder / "README.md").write_text(converted_card(arguments.whisper, model), encoding="utf-8")
    except (OSError, ValueError, StrictDataclassError, yaml.YAMLError) as error:
        print(f"convert_whisper.py: {in_one_line(error)}", file=sys.stderr)
        return 1
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{arguments.output}: {size:.1f} M parameters, started from {arguments.whisper}")
    print(f"transcribe with: python scripts/transcribe.py {arguments.output} recording.wav")
    return 0


if __name__ == "__main__":
    sys.exit(main())
