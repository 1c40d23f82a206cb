"""What all pictures share: an empty figure, the colours, and how one attention map is drawn.

The colours can be told apart by colour-blind readers (viridis; Okabe and Ito 2008).
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, VERMILION, SKY, GREY = "#0072B2", "#D55E00", "#56B4E9", "0.3"
LINES = (BLUE, VERMILION, "#009E73", "#E69F00", "#CC79A7", SKY, "#000000")
SMALLEST_SHADE = 1e-3  # weights above 0 and below it are drawn as this one


def new_figure(title: str, width: float, height: float) -> "Figure":
    """A figure with a title and nothing else, sizes in inches, on matplotlib's Agg canvas.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install hf_entmax_asr[plots]") from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    return figure


def draw_map(axes: Any, weights: Tensor, seconds_per_position: float) -> Any:
    """One map (T, S) on a logarithmic scale: dark where the weight is large, white where it is exactly 0."""
    values = weights.detach().float().cpu()
    queries, keys = values.shape
    axes.set_facecolor("white")
    return axes.imshow(
        values.masked_fill(values == 0, torch.nan).numpy(),
        cmap="viridis_r",
        norm="log",
        vmin=SMALLEST_SHADE,
        vmax=1.0,
        extent=(0, keys * seconds_per_position, queries * seconds_per_position, 0),
        interpolation="nearest",
        aspect="auto",
    )


def finish_maps(figure: "Figure", panels: Any, image: Any) -> None:
    """Axes in seconds and the colour bar of a grid of maps (2-D array of axes); `image` is any one of them."""
    for panel in panels.flat:
        panel.label_outer()
        panel.tick_params(labelsize=8)
    for column in panels.T:  # where the lowest place is empty, the panel above it has the seconds
        [panel for panel in column if panel.axison][-1].tick_params(labelbottom=True)
    figure.supxlabel("attended to: time in the recording (s)", fontsize=10)
    figure.supylabel("attending: time in the recording (s)", fontsize=10)
    bar = figure.colorbar(image, ax=panels, extend="min", fraction=0.03, pad=0.01, aspect=30)
    bar.set_ticks([SMALLEST_SHADE, 0.01, 0.1, 1.0], labels=[f"{SMALLEST_SHADE:g}", "0.01", "0.1", "1"], fontsize=8)
    bar.set_label("attention weight, logarithmic (white: exactly 0)", fontsize=10)


def zeros_text(share: float) -> str:
    """ "71 % zeros", where 0 and 100 stand for these very values only."""
    if 0 < share < 0.005:
        return "< 0.5 % zeros"
    return "> 99.5 % zeros" if 0.995 <= share < 1 else f"{100 * share:.0f} % zeros"
