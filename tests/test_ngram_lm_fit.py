"""A language model that writes otherwise than the recogniser is refused; and files that KenLM must not see."""

import re

import pytest

from hf_entmax_asr.ngram_lm import LanguageModelError, NgramModel
from hf_entmax_asr.ngram_lm.fit import check_spelling
from hf_entmax_asr.ngram_lm.scoring import LONGEST_LINE, check_arpa
from hf_entmax_asr.tokenization import train_character_tokenizer
from support.language_models import needs_kenlm, word_ngrams, write_arpa


@needs_kenlm
def test_a_model_in_another_case_is_refused_with_the_fix(tmp_path):
    path = write_arpa(tmp_path / "a.arpa", word_ngrams())
    model = NgramModel(path)
    spelled = "".join(model.unigrams)
    check_spelling(model, train_character_tokenizer([spelled]))
    with pytest.raises(LanguageModelError, match=r"can write 0 of the \d+ likeliest words.*In upper case it can"):
        check_spelling(model, train_character_tokenizer([spelled.upper()]))
    with pytest.raises(LanguageModelError, match=r"the two write differently\.$"):
        check_spelling(model, train_character_tokenizer(["жзи"]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: re.sub(r"ngram 1=\d+", "ngram 1=-5", text), "announces ngram 1=-5"),
        (lambda text: re.sub(r"ngram 1=\d+", "ngram 1=99999999999", text), "announces ngram 1=99999999999"),
        (lambda text: re.sub(r"ngram 1=\d+", "ngram 1=x", text), "announces ngram 1=x"),
        (lambda text: re.sub(r"ngram 2=", "ngram 3=", text), "announces ngram 3="),
        (lambda text: text.replace("\\data\\", ""), "does not begin with"),
        (lambda text: text.replace("\\2-grams:", "x" * (LONGEST_LINE + 1)), "it has a line of more than"),
        (lambda text: "", "it has no section"),
    ],
)
def test_what_kenlm_must_not_see_is_refused(tmp_path, change, said):
    path = write_arpa(tmp_path / "a.arpa", word_ngrams())
    check_arpa(path)
    path.write_text(change(path.read_text()))
    with pytest.raises(LanguageModelError, match=said):
        check_arpa(path)
    with pytest.raises(FileNotFoundError, match="there is no language model"):
        check_arpa(tmp_path / "none")
    with pytest.raises(LanguageModelError, match="no regular file"):
        check_arpa(tmp_path)
