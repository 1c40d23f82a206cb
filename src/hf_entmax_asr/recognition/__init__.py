"""What anyone needs who does not train: load a recogniser, transcribe, score, look inside, make it smaller.

checkpoint: a model and its processor out of a folder or the Hub
utterances, collating, batches: rows of a data set as the model takes them
transcription, evaluation: files to text; many utterances to text and scores
inspection (with attention_meters, phoneme_labels, document_parts): what attention does over a data set
report_examples: single utterances to look at and to listen to
attention_section: what an analysis found, in the model card
surgery: smaller models out of trained ones
"""

from hf_entmax_asr.analysis.document import load_analysis, save_analysis
from hf_entmax_asr.recognition.checkpoint import CheckpointError, load_recogniser
from hf_entmax_asr.recognition.collating import SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.evaluation import decoding_as, recognise, score_decodings
from hf_entmax_asr.recognition.inspection import analyze
from hf_entmax_asr.recognition.surgery import gated_off, remove_heads, share_maps
from hf_entmax_asr.recognition.transcription import Transcript, transcribe_files
from hf_entmax_asr.recognition.utterances import DataError

__all__ = [
    "CheckpointError",
    "DataError",
    "SpeechSeq2SeqCollator",
    "Transcript",
    "analyze",
    "decoding_as",
    "gated_off",
    "load_analysis",
    "load_recogniser",
    "recognise",
    "remove_heads",
    "save_analysis",
    "score_decodings",
    "share_maps",
    "transcribe_files",
]
