"""What attention did: functions of attention maps and head boundaries (tensors), never of models.

sparsity   exact zeros, support sizes, distribution of the weights
word_ends  monotonic heads against the true ends of words; word times
plots      pictures of all of it (needs the extra `plots`)
"""

from hf_entmax_asr.analysis.plots import (
    plot_alphas,
    plot_attention_maps,
    plot_boundaries,
    plot_scores,
    plot_transforms,
    save_png,
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
    "HeadScore",
    "ScoreHistogram",
    "SparsityCounts",
    "SparsityMeter",
    "TokenWord",
    "WordEndErrors",
    "WordTime",
    "align_words",
    "allowed_entries",
    "best_heads",
    "plot_alphas",
    "plot_attention_maps",
    "plot_boundaries",
    "plot_scores",
    "plot_transforms",
    "save_png",
    "sparsity_counts",
    "token_words",
    "word_end_errors",
    "word_times",
]
