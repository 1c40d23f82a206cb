"""What attention did: functions of attention maps and head boundaries (tensors), never of models.

sparsity           exact zeros, support sizes, distribution of the weights
locality           near or far: diagonality (CAD), verticality, entropy, agreement between heads
phonemes           phoneme labels in time, from TextGrid and CTM files
phoneme_aligner    the same for English from audio and text (needs the extra `phonemes`)
phoneme_attention  which phonemes attend to which (PAR); which heads are phonetic, which linguistic
probe              how well phonemes can be told apart in each layer
monotonic_heads    who runs ahead and who keeps the others waiting
reuse              which layers can share an attention map, which heads are redundant or waited for
word_ends          monotonic heads against the true ends of words; word times
trajectories       the encoder's measures over training, from the analyses of a run
document           all of these in one analysis, as typed dataclasses and as JSON (by typed_json)
comparison         several checkpoints on the same data, as a table
findings           what an analysis says, in sentences
figures            pictures of all of it (need the extra `plots`)
report             figures and one HTML page of a whole analysis (laid out by page)
"""

from hf_entmax_asr.analysis.document import AnalysisDocument, DocumentError, load_analysis, save_analysis
from hf_entmax_asr.analysis.figures.maps import plot_attention_maps, plot_transforms
from hf_entmax_asr.analysis.figures.monotonic_heads import plot_boundaries
from hf_entmax_asr.analysis.figures.style import save_png
from hf_entmax_asr.analysis.figures.training import plot_alphas
from hf_entmax_asr.analysis.figures.weights import plot_scores
from hf_entmax_asr.analysis.locality import (
    AgreementMeter,
    MeanMeter,
    attention_entropy,
    cross_attention_measures,
    diagonality,
    diagonality_curve,
    head_divergence,
    self_attention_measures,
    uniform_attention,
    verticality,
)
from hf_entmax_asr.analysis.monotonic_heads import MonotonicMeter, MonotonicSummary
from hf_entmax_asr.analysis.phoneme_aligner import AlignmentError, PocketsphinxAligner
from hf_entmax_asr.analysis.phoneme_attention import (
    PhonemeAttention,
    PhonemeAttentionMeter,
    head_roles,
    phoneme_attention,
    relative_diagonality,
)
from hf_entmax_asr.analysis.phonemes import (
    Interval,
    LabelError,
    labels_at_positions,
    labels_of,
    phoneme,
    phoneme_classes,
    place_of,
    read_ctm,
    read_label_folder,
    read_textgrid,
)
from hf_entmax_asr.analysis.probe import PhonemeProbe, ProbeResult, split_disjoint
from hf_entmax_asr.analysis.report import Example, write_report
from hf_entmax_asr.analysis.reuse import (
    MapGroups,
    RedundantHead,
    WaitedForHead,
    map_groups_of,
    propose_map_groups,
    redundant_heads,
    waited_for_heads,
)
from hf_entmax_asr.analysis.sparsity import (
    ScoreHistogram,
    SparsityCounts,
    SparsityMeter,
    allowed_entries,
    sparsity_counts,
)
from hf_entmax_asr.analysis.word_ends import (
    HeadScore,
    TokenWord,
    WordEndErrors,
    WordTime,
    align_words,
    best_heads,
    token_words,
    word_end_errors,
    word_times,
)

__all__ = [
    "AgreementMeter",
    "AlignmentError",
    "AnalysisDocument",
    "DocumentError",
    "Example",
    "HeadScore",
    "Interval",
    "LabelError",
    "MapGroups",
    "MeanMeter",
    "MonotonicMeter",
    "MonotonicSummary",
    "PhonemeAttention",
    "PhonemeAttentionMeter",
    "PhonemeProbe",
    "PocketsphinxAligner",
    "ProbeResult",
    "RedundantHead",
    "ScoreHistogram",
    "SparsityCounts",
    "SparsityMeter",
    "TokenWord",
    "WaitedForHead",
    "WordEndErrors",
    "WordTime",
    "align_words",
    "allowed_entries",
    "attention_entropy",
    "best_heads",
    "cross_attention_measures",
    "diagonality",
    "diagonality_curve",
    "head_divergence",
    "head_roles",
    "labels_at_positions",
    "labels_of",
    "load_analysis",
    "map_groups_of",
    "phoneme",
    "phoneme_attention",
    "phoneme_classes",
    "place_of",
    "plot_alphas",
    "plot_attention_maps",
    "plot_boundaries",
    "plot_scores",
    "plot_transforms",
    "propose_map_groups",
    "read_ctm",
    "read_label_folder",
    "read_textgrid",
    "redundant_heads",
    "relative_diagonality",
    "save_analysis",
    "save_png",
    "self_attention_measures",
    "sparsity_counts",
    "split_disjoint",
    "token_words",
    "uniform_attention",
    "verticality",
    "waited_for_heads",
    "word_end_errors",
    "word_times",
    "write_report",
]
