"""Corpora as datasets: AISHELL-1, WSJ, LibriSpeech, folders with a metadata.csv, and composed sentences.

corpus: the record of a corpus, all that is known of it; each stands in the corpus's own module
registry: the records by their names, for reading, recipes and scoring
folder, aishell1, wsj, librispeech: the corpora
building, rows, report: from files to datasets; the columns; what was found on the way
prompts, sentences: sentences composed of single-word recordings
"""

from hf_entmax_asr.corpora.aishell1 import load_aishell1
from hf_entmax_asr.corpora.building import LoadedCorpus
from hf_entmax_asr.corpora.corpus import Corpus, ShardedCorpus
from hf_entmax_asr.corpora.folder import load_folder
from hf_entmax_asr.corpora.librispeech import from_hub, load_librispeech
from hf_entmax_asr.corpora.prompts import Composition, WordTime, compose, read_word_times, write_compositions
from hf_entmax_asr.corpora.registry import CORPORA, find_corpus, read_corpus, text_rule, text_rules
from hf_entmax_asr.corpora.report import CorpusError, CorpusReport, SplitReport
from hf_entmax_asr.corpora.wsj import load_wsj

__all__ = [
    "CORPORA",
    "Composition",
    "Corpus",
    "CorpusError",
    "CorpusReport",
    "LoadedCorpus",
    "ShardedCorpus",
    "SplitReport",
    "WordTime",
    "compose",
    "find_corpus",
    "from_hub",
    "load_aishell1",
    "load_folder",
    "load_librispeech",
    "load_wsj",
    "read_corpus",
    "read_word_times",
    "text_rule",
    "text_rules",
    "write_compositions",
]
