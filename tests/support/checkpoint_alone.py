"""What a checkpoint does, read through transformers alone. As a program: in a process that cannot import this package.

python tests/support/checkpoint_alone.py AUDIO CHECKPOINT COPY examines the checkpoint, saves a copy of it with the code
that came with it, examines the copy, and prints both as JSON; test_hub.py compares that with what the
installed package does.
"""

import json
import sys
from pathlib import Path

from support.apart import run_apart


class NoPackage:
    """Makes every import of the package fail."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] == "hf_entmax_asr":
            raise ModuleNotFoundError(f"{name} is not to be imported here")


def examine_apart(audio: str | Path, folder: Path, scratch: Path) -> list[dict]:
    """What `examine` finds in a process without the package, of the checkpoint and of its copy, `scratch`/copy."""
    output = run_apart(Path(__file__), audio, folder, scratch / "copy", folder=scratch)
    assert output.returncode == 0, output.stderr
    return json.loads(output.stdout.splitlines()[-1])


def examine(audio: str, folder: str, copy: str | None = None, **loading) -> dict:
    """Loads `folder` with every Auto class, transcribes a recording, and looks at maps and at α's gradient."""
    import soundfile
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline

    speech, rate = soundfile.read(audio, dtype="float32")
    options = {"max_new_tokens": 12, "num_beams": 1, "suppress_tokens": [0, 1, 2, 3]}  # untrained: keep it talking
    transcribe = pipeline("automatic-speech-recognition", folder, **loading)
    config = AutoConfig.from_pretrained(folder, **loading)
    processor = AutoProcessor.from_pretrained(folder, **loading)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, **loading)
    inner = AutoModel.from_pretrained(folder, **loading)
    timed = pipeline("entmax-asr", folder, trust_remote_code=True)
    inputs = processor(audio=speech, sampling_rate=rate)
    labels = torch.tensor([[5, 6, 7, 2]])
    report = {
        "classes": [type(thing).__name__ for thing in (config, model, processor, transcribe.model, inner)],
        "modules": [type(thing).__module__ for thing in (config, model, processor, transcribe.model, inner)],
        "branch": transcribe.type,
        "pipeline": transcribe(speech.copy(), generate_kwargs=options)["text"],
        "words": json.loads(json.dumps(timed(speech.copy(), return_timestamps="word", generate_kwargs=options))),
        "text": processor.decode(model.generate(**inputs, **options)[0], skip_special_tokens=True),
    }
    for name, loaded in (("model", model), ("pipeline", transcribe.model)):
        output = loaded(**inputs, labels=labels, output_attentions=True)
        output.loss.backward()
        alphas = [value.grad for key, value in loaded.named_parameters() if key.endswith("alpha_logit")]
        report[f"zeros of {name}"] = [(maps == 0).float().mean().item() for maps in output.encoder_attentions]
        report[f"gradient of {name}"] = [grad.abs().min().item() for grad in alphas]
        report[f"loss of {name}"] = output.loss.item()
    if copy is not None:
        model.save_pretrained(copy)
        processor.save_pretrained(copy)
    return report


if __name__ == "__main__":
    sys.meta_path.insert(0, NoPackage())
    audio, checkpoint, copy = sys.argv[1:]
    reports = [
        examine(audio, checkpoint, copy, trust_remote_code=True),
        examine(audio, copy, trust_remote_code=True),
    ]
    print(json.dumps(reports))
