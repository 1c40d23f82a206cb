"""How the tokens of an example are written in the pictures of a report."""

from hf_entmax_asr.analysis.word_ends import token_words
from hf_entmax_asr.pretrained import convert_whisper
from hf_entmax_asr.recognition.report_examples import written_tokens
from hf_entmax_asr.tokenization import train_character_tokenizer
from support.small_whisper import make_whisper


def test_tokens_of_bytes_are_written_as_words(tmp_path):
    tokenizer = convert_whisper(str(make_whisper(tmp_path / "whisper")))[1].tokenizer
    ids = tokenizer("the fox señor", add_special_tokens=False).input_ids
    named = tokenizer.convert_tokens_to_ids(["<|notimestamps|>", "<|endoftext|>"])
    tokens = written_tokens(tokenizer, [named[0], *ids, named[1]])
    assert (tokens[0], tokens[-1]) == ("<s>", "</s>")
    assert [word.text for word in token_words(tokens)][:2] == ["the", "fox"]


def test_other_tokens_are_written_as_they_are():
    tokenizer = train_character_tokenizer(["Ġorġ u ommu"])  # Maltese, with the letter that a space of bytes looks like
    ids = tokenizer("Ġorġ u ommu").input_ids
    assert written_tokens(tokenizer, ids) == tokenizer.convert_ids_to_tokens(ids)
