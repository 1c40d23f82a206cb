"""Training n-gram models from text with the tools that exist: KenLM's lmplz, or IRSTLM.

Which tool, by the perplexity (read by KenLM) of the 300 validation and test sentences of the demo after training on its
5,249: words, order 3: lmplz 19.5, IRSTLM 19.7; characters, order 6: lmplz 2.00, IRSTLM 2.02. The Python package arpabo
0.3 is not used: what it writes are not probabilities (those of all next words sum to 1.5 to 3), nor files KenLM reads.
"""

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hf_entmax_asr.atomic_files import atomic_file, check_writable
from hf_entmax_asr.ngram_lm.scoring import MARKS, UNITS, LanguageModelError, read_unigrams
from hf_entmax_asr.tokenization import WORD_BOUNDARY

logger = logging.getLogger(__name__)

LARGEST_ORDER = 6  # that KenLM reads as it is built by pip
IRSTLM_FOLDER = Path("/usr/lib/irstlm/bin")  # where Debian keeps it, outside the PATH
LMPLZ_MEMORY = "25%"  # of the machine; it sorts on disk beyond that
WORDS_OF_ERROR = 60


def train_ngram(
    texts: Iterable[str], output: str | Path, *, order: int = 3, unit: str = "word", tool: str | None = None
) -> str:
    """Train a model with back-off of the texts' words or characters, and write it as an ARPA file.

    Smoothing is modified Kneser-Ney (Chen & Goodman 1998) by either tool; by IRSTLM Witten-Bell where the texts are too
    uniform for Kneser-Ney discounts (small alphabets), with a warning. No n-grams are pruned.

    Args:
        texts: sentences; white space separates words, empty texts are left out.
        output: the ARPA file, written under a temporary name first.
        order: length of the longest n-grams, 2 to 6.
        unit: "word", or "character" with spaces as the word boundary symbol of our tokenizers.
        tool: "lmplz" or "irstlm"; by default lmplz where it is on the PATH.

    Returns:
        What trained it, for a log.

    Raises:
        LanguageModelError: bad arguments, no texts, a text with <s>, </s> or <unk> in it, no tool, or one that failed.
    """
    if not 2 <= order <= LARGEST_ORDER:
        raise LanguageModelError(f"order is {order}; it must be 2 to {LARGEST_ORDER}, which is all that KenLM reads")
    if unit not in UNITS:
        raise LanguageModelError(f"unit is {unit!r}; use 'word' or 'character'")
    output, program = Path(output), _find_tool(tool)
    check_writable(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".language-model-") as folder:
        arpa = Path(folder) / "lm.arpa"
        _write_sentences(Path(folder) / "text", texts, unit, with_ends=program.name == "tlm")
        method = (_run_irstlm if program.name == "tlm" else _run_lmplz)(program, Path(folder), order)
        if not any(entry not in MARKS for entry, _ in read_unigrams(arpa)):
            raise LanguageModelError(f"{program} wrote a language model without words")
        with arpa.open("rb") as made, atomic_file(output) as file:
            shutil.copyfileobj(made, file)
    return method


def _find_tool(name: str | None) -> Path:
    if name not in (None, "lmplz", "irstlm"):
        raise LanguageModelError(f"tool is {name!r}; use 'lmplz' or 'irstlm'")
    found = {"lmplz": shutil.which("lmplz"), "irstlm": shutil.which("tlm") or shutil.which("tlm", path=IRSTLM_FOLDER)}
    for tool in ("lmplz", "irstlm") if name is None else (name,):
        if found[tool] is not None:
            return Path(str(found[tool]))
    raise LanguageModelError(
        f"no tool to train a language model with was found ({name or 'lmplz or irstlm'}): on Debian and Ubuntu "
        "'apt-get install irstlm'; or build KenLM (https://github.com/kpu/kenlm) and put its lmplz on the PATH"
    )


def _write_sentences(path: Path, texts: Iterable[str], unit: str, with_ends: bool) -> None:
    if isinstance(texts, str):
        raise LanguageModelError("texts is one string; give a list of strings")
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for text in texts:
            words = text.split()
            reserved = [mark for mark in MARKS if mark in words] + [WORD_BOUNDARY] * (WORD_BOUNDARY in text)
            if reserved:
                raise LanguageModelError(f"the text {text!r} holds {reserved[0]!r}, which language models keep")
            units = words if unit == "word" else list(WORD_BOUNDARY.join(words))
            if units:
                count += 1
                file.write(" ".join(["<s>", *units, "</s>"] if with_ends else units) + "\n")
    if count == 0:
        raise LanguageModelError("there are no texts to train a language model on")


def _run(arguments: list[str], folder: Path) -> str | None:
    """Run a program in the folder: None if it wrote the model, else what it said last."""
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    arpa = folder / "lm.arpa"
    if done.returncode == 0 and arpa.exists() and arpa.stat().st_size > 0:
        return None
    said = (done.stdout + done.stderr).split()
    return " ".join(said[-WORDS_OF_ERROR:]) or f"it ended with status {done.returncode}"


def _run_lmplz(program: Path, folder: Path, order: int) -> str:
    options = ["-o", str(order), "-S", LMPLZ_MEMORY, "-T", "sorting", "--discount_fallback"]
    error = _run([str(program), *options, "--text", "text", "--arpa", "lm.arpa"], folder)
    if error is not None:
        raise LanguageModelError(f"{program} failed: {error}")
    return "KenLM's lmplz, modified Kneser-Ney"


def _run_irstlm(program: Path, folder: Path, order: int) -> str:
    errors = []
    for code, name in (("msb", "modified Kneser-Ney"), ("wb", "Witten-Bell")):
        error = _run([str(program), "-tr=text", f"-n={order}", f"-lm={code}", "-ps=no", "-oarpa=lm.arpa"], folder)
        if error is None:
            return f"IRSTLM, {name}"
        errors.append(error)
        if code == "msb":
            logger.warning("IRSTLM cannot estimate Kneser-Ney discounts from these texts; it takes Witten-Bell instead")
    raise LanguageModelError(f"{program} failed: {'; '.join(errors)}")
