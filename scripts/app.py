#!/usr/bin/env python
"""A page to try a recogniser: speak or upload, read along, see where every head stopped, play a word by clicking on it.

    python scripts/app.py runs/mine/best
    python scripts/app.py owner/name --port 7861
    python scripts/app.py runs/mine/best --space my_space      # a folder to push to the Hub as a Space

CHECKPOINT is a folder or a Hub repository; in a Space it stands beside this file. Needs gradio: pip install
'hf_entmax_asr[app]'.
"""

import argparse
import base64
import importlib.metadata
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", nargs="?", help="folder or Hub repository (default: that beside this file)")
    parser.add_argument("--chunk-ms", type=float, default=640.0, help="audio that the encoder takes at a time")
    parser.add_argument("--host", help="address to serve (default: this machine alone, in a Space what it wants)")
    parser.add_argument("--port", type=int, help="(default: 7860 or the next that is free)")
    parser.add_argument("--space", type=Path, help="make a Space in this folder instead of serving the page")
    parser.add_argument("--device", help="for example cpu or cuda:0 (default: a GPU where there is one)")
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import numpy as np
import soundfile
from transformers.utils.logging import disable_progress_bar

import hf_entmax_asr
from hf_entmax_asr.atomic_files import atomic_folder
from hf_entmax_asr.audio import audio_blocks
from hf_entmax_asr.error_messages import described, reports_errors
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.recognition.collating import SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.live_page import Heard, Hearing, why_not_live
from hf_entmax_asr.recognition.page_picture import picture
from hf_entmax_asr.recognition.page_scripts import LISTEN, MICROPHONE, PLAY_ON_CLICK
from hf_entmax_asr.recognition.transcript_forms import written_as

SPACE_CHECKPOINT = "checkpoint"  # a folder beside the file, or a file with the name of a repository
SERVED = "gradio_api/file="  # before the path of a file, where gradio serves it
MOST_MICROPHONES = 16
REQUIRED = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "soundfile", "gradio")
SPACE_CARD = """---
title: Speech recognition
sdk: gradio
sdk_version: {gradio}
app_file: app.py
---
Made by `scripts/app.py --space` of hf_entmax_asr.
"""


class Page:
    """What the page does, whoever shows it."""

    def __init__(self, model: Any, processor: Any, folder: Path, chunk_ms: float = 640.0):
        self.model, self.processor, self.folder, self.chunk_ms = model, processor, folder, chunk_ms
        if hasattr(processor.feature_extractor, "maximum"):
            processor.feature_extractor.maximum = "running"  # that of the whole recording is not known before its end
        self.reason = why_not_live(model)
        self._computing = threading.Lock()  # one recording at a time has the processor's cores
        self._hearings: dict[str, Hearing] = {}  # of microphones, the one that was begun last at the end

    def hear(self, given: dict[str, Any]) -> str:
        """The next samples of a microphone: its key, their rate, and 16-bit samples in base64 -> the text so far."""
        samples = np.frombuffer(base64.b64decode(given["samples"]), dtype="<i2")
        with self._computing:
            if given["key"] not in self._hearings:
                self._hearings[given["key"]] = self._begin()
                for key in list(self._hearings)[:-MOST_MICROPHONES]:  # whoever closed the page did not say so
                    del self._hearings[key]
            return self._hearings[given["key"]].hear(round(given["rate"]), samples)

    def finish(self, given: dict[str, Any]) -> dict[str, str]:
        """A microphone was stopped -> text and HTML of what it heard."""
        with self._computing:
            hearing = self._hearings.pop(given["key"], None)
            if hearing is None:
                return {"text": "", "html": ""}
            heard = hearing.finish()
        return {"text": heard.text, "html": self._shown(heard, "recording")}

    def upload(self, file: str | None) -> Iterator[tuple[str, str]]:
        """A file: its text as it is heard, then text and HTML."""
        if file is None:
            yield "", ""
            return
        hearing = self._begin()
        for block in audio_blocks(file, hearing.rate):
            for first in range(0, len(block), hearing.rate):
                with self._computing:
                    text = hearing.hear(hearing.rate, block[first : first + hearing.rate])
                yield text, ""
        with self._computing:
            heard = hearing.finish()
        yield heard.text, self._shown(heard, Path(file).stem)

    def _begin(self) -> Hearing:
        return Hearing(self.model, self.processor, self.chunk_ms)

    def _shown(self, heard: Heard, name: str) -> str:
        """Writes the audio and the files to take away; returns HTML."""
        if not len(heard.waveform):
            return ""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        audio, srt, record = (place / f"{name}.{kind}" for kind in ("wav", "srt", "json"))
        soundfile.write(audio, heard.waveform, heard.sampling_rate)
        transcript = heard.transcript(audio.name)
        for file in (srt, record):
            file.write_text(written_as(file.suffix[1:], [transcript], [name], several=False), encoding="utf-8")
        features = SpeechSeq2SeqCollator(self.processor)([{"audio": heard.waveform}])["input_features"][0]
        frames = -(-len(heard.waveform) // self.processor.feature_extractor.hop_samples)
        downloads = {"SRT": f"{SERVED}{srt}", "JSON": f"{SERVED}{record}"}
        return picture(heard, features[:frames].numpy(), f"{SERVED}{audio}", downloads)


def blocks(page: Page, title: str) -> Any:
    """The page in gradio."""
    import gradio as gr

    def hear(given: dict[str, Any]) -> str:  # functions of the browser's `server`; gradio marks them, methods it cannot
        return page.hear(given)

    def finish(given: dict[str, Any]) -> dict[str, str]:
        return page.finish(given)

    note = "Text is written while you speak." if page.reason is None else f"Text comes at the end: {page.reason}"
    with gr.Blocks(title=title) as made:
        gr.Markdown(f"# {title}\n{note}")
        with gr.Tab("Microphone"):
            scripts = PLAY_ON_CLICK + LISTEN
            gr.HTML(MICROPHONE, elem_id="microphone", js_on_load=scripts, server_functions=[hear, finish])
        with gr.Tab("File"):
            file = gr.Audio(sources=["upload"], type="filepath", label="File", elem_id="file")
            text = gr.Textbox(label="Text", lines=3, elem_id="text")
            shown = gr.HTML(elem_id="picture", js_on_load=PLAY_ON_CLICK)
            file.upload(page.upload, [file], [text, shown])
    return made


def make_space(checkpoint: str, folder: Path) -> None:
    """A folder that is a Space of the Hub: this file, the package, what it requires, and the checkpoint."""
    package = Path(hf_entmax_asr.__file__).parent
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in REQUIRED}
    with atomic_folder(folder) as space:
        shutil.copy(Path(__file__), space / "app.py")
        shutil.copytree(package, space / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        (space / "requirements.txt").write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
        (space / "README.md").write_text(SPACE_CARD.format(gradio=versions["gradio"]))
        if Path(checkpoint).is_dir():
            skipped = shutil.ignore_patterns("training_state")
            shutil.copytree(Path(checkpoint).resolve(), space / SPACE_CHECKPOINT, ignore=skipped)
        else:
            (space / SPACE_CHECKPOINT).write_text(checkpoint + "\n")


def found_checkpoint() -> str:
    """The one beside this file.

    Raises:
        FileNotFoundError: there is none.
    """
    beside = Path(__file__).parent / SPACE_CHECKPOINT
    if not beside.exists():
        raise FileNotFoundError("name a checkpoint: a folder or a Hub repository")
    return str(beside) if beside.is_dir() else beside.read_text().strip()


@reports_errors("app.py")
def main() -> int:
    arguments = parse()
    checkpoint = arguments.checkpoint or found_checkpoint()
    if arguments.space is not None:
        make_space(checkpoint, arguments.space)
        print(f"{arguments.space} is a Space: hf upload owner/name {arguments.space} --repo-type space")
        return 0
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError(f"the page needs gradio: pip install 'hf_entmax_asr[app]' ({described(error)})") from error
    disable_progress_bar()
    model, processor = load_recogniser(checkpoint, arguments.device)
    with tempfile.TemporaryDirectory(prefix="hf_entmax_asr_page.") as folder:
        page = blocks(Page(model, processor, Path(folder), arguments.chunk_ms), Path(checkpoint).name)
        page.launch(server_name=arguments.host, server_port=arguments.port, allowed_paths=[folder])
    return 0


if __name__ == "__main__":
    sys.exit(main())
