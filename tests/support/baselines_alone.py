"""As a program: what checkpoints of the systems to compare with do in a process that cannot import this package.

python tests/support/baselines_alone.py AUDIO CHECKPOINT ... prints a report of each as JSON.
"""

import json
import sys

from checkpoint_alone import NoPackage


def examine(audio: str, folder: str, **loading) -> dict:
    """Loads `folder` through transformers alone and transcribes a recording, by itself and by the stock pipeline."""
    import soundfile
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline

    speech, rate = soundfile.read(audio, dtype="float32")
    options = {"max_new_tokens": 6, "num_beams": 2}
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, **loading)
    processor = AutoProcessor.from_pretrained(folder, **loading)
    transcribe = pipeline("automatic-speech-recognition", folder, **loading)
    inputs = processor(audio=speech, sampling_rate=rate)
    return {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "branch": transcribe.type,
        "tokens": model.generate(**inputs, **options).tolist(),
        "text": processor.decode(model.generate(**inputs, **options)[0], skip_special_tokens=True),
        "pipeline": transcribe(speech.copy(), generate_kwargs=options)["text"],
    }


if __name__ == "__main__":
    sys.meta_path.insert(0, NoPackage())
    print(json.dumps([examine(sys.argv[1], folder, trust_remote_code=True) for folder in sys.argv[2:]]))
