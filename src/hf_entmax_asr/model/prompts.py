"""What a decoder is given before the text: the start token, and Whisper's language, task and sign of no times."""

import torch
from torch import Tensor
from transformers import GenerationConfig

DETECT = "auto"


def prompt_ids(generation: GenerationConfig, language: str | None = None, task: str | None = None) -> list[int]:
    """Tokens between the start token and the text of a model that started from Whisper.

    Args:
        generation: with Whisper's own fields `is_multilingual`, `lang_to_id`, `task_to_id`, `no_timestamps_token_id`.
        language: "en", "zh", …; English by default.
        task: "transcribe", the default, or "translate".

    Raises:
        ValueError: a language or task that the model does not know.
    """
    no_times = getattr(generation, "no_timestamps_token_id", None)
    end = [] if no_times is None else [no_times]
    if not getattr(generation, "is_multilingual", False):
        if language not in (None, "en", "<|en|>") or task not in (None, "transcribe"):
            raise ValueError(
                f"language = {language!r}, task = {task!r}: this model has no tokens for languages and tasks, it "
                "transcribes what it was trained on. Leave both out."
            )
        return end
    languages, tasks = language_ids(generation), getattr(generation, "task_to_id", None) or {}
    code = (language or "en").strip("<|>").lower()
    if code not in languages:
        raise ValueError(f"language = {language!r} is not known to this model. Use one of: {', '.join(languages)}.")
    if (task or "transcribe") not in tasks:
        raise ValueError(f"task = {task!r} is not known to this model. Use one of: {', '.join(tasks)}.")
    return [languages[code], tasks[task or "transcribe"], *end]


def language_ids(generation: GenerationConfig) -> dict[str, int]:
    """Token of each language by its code, in the order of the codes."""
    known = getattr(generation, "lang_to_id", None) or {}
    return {name.strip("<|>"): token for name, token in sorted(known.items())}


def likeliest_languages(logits: Tensor, generation: GenerationConfig) -> list[str]:
    """Logits (B, V) of the token behind the start token -> the likeliest language of each utterance.

    Raises:
        ValueError: the model knows no languages.
    """
    languages = language_ids(generation)
    if not languages:
        raise ValueError(f"language = {DETECT!r}: this model knows no languages to choose from. Leave it out.")
    tokens = torch.tensor(list(languages.values()), device=logits.device)
    names = list(languages)
    return [names[index] for index in logits[:, tokens].argmax(1).tolist()]
