"""Whether a language model and a recogniser write alike."""

from typing import Any

from hf_entmax_asr.ngram_lm.scoring import LanguageModelError, NgramModel

WORDS_TRIED = 1000  # the likeliest
SPELLED_AT_LEAST = 0.5


def check_spelling(model: NgramModel, tokenizer: Any) -> None:
    """Refuse a language model most of whose words the recogniser cannot write: it would forbid whatever is heard.

    Raises:
        LanguageModelError: with the share, words, and what is most often wrong, the case.
    """
    if tokenizer.unk_token_id in (None, tokenizer.eos_token_id):
        return  # pieces of bytes, which spell everything
    likeliest = sorted(model.unigrams, key=lambda unit: -model.unigrams[unit])[:WORDS_TRIED]
    unknown = tokenizer.unk_token_id
    spelled = [unit for unit in likeliest if unknown not in tokenizer(unit).input_ids]
    if len(spelled) >= SPELLED_AT_LEAST * len(likeliest):
        return
    strange = [unit for unit in likeliest if unit not in spelled]
    folded = {"lower": [unit.lower() for unit in strange], "upper": [unit.upper() for unit in strange]}
    hint = next(
        (
            f" In {case} case it can: write the texts of the language model so, and train it anew."
            for case, units in folded.items()
            if sum(unknown not in tokenizer(unit).input_ids for unit in units) > SPELLED_AT_LEAST * len(units)
        ),
        "",
    )
    raise LanguageModelError(
        f"{model.path}: the recogniser's tokenizer can write {len(spelled)} of the {len(likeliest)} likeliest "
        f"{model.unit}s, and not {', '.join(strange[:5])}: the two write differently.{hint}"
    )
