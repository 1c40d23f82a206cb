"""Figures of attention, by subject; each `plot_…` takes tensors or an analysis and returns a matplotlib Figure.

style             what they share: colours, an empty figure, its PNG file
maps              attention maps of one utterance, by head, transform or checkpoint
heads             what was measured of every head, as matrices, and curves of diagonality
agreement         which heads look alike
weights           how the weights are distributed
monotonic_heads   where the heads stopped, and who waits for whom
phonemes          which phonemes attend to which; the probe
training          α, gates and measures over the steps

`style.save_png` writes a figure to a file.
"""
