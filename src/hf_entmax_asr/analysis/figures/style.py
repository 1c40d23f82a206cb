"""What all figures share: an empty one, its PNG file, colours, and how amounts are worded.

The colours can be told apart by colour-blind readers (viridis; Okabe and Ito 2008). matplotlib (extra `plots`) is
imported when a figure is made, and none of its global state is touched.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_entmax_asr.atomic_files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, VERMILION, SKY, GREY = "#0072B2", "#D55E00", "#56B4E9", "0.3"
LINES = (BLUE, VERMILION, "#009E73", "#E69F00", "#CC79A7", SKY, "#000000")
NOT_MEASURED = "not measured"


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


def save_png(figure: "Figure", path: str | Path, dots_per_inch: int = 150) -> Path:
    """Writes a figure under a temporary name and renames it, so that a reader never meets half a picture."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path.name} must end in .png.")
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=dots_per_inch)
    return path


def layer_colour(layer: int, deepest: int) -> Any:
    """Dark for layer 0, light green for the deepest; not up to yellow, which is faint on white."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.87 * layer / max(1, deepest))


def zeros_text(share: float) -> str:
    """ "71 % zeros", where 0 and 100 stand for these very values only."""
    if 0 < share < 0.005:
        return "< 0.5 % zeros"
    return "> 99.5 % zeros" if 0.995 <= share < 1 else f"{100 * share:.0f} % zeros"


def amount_text(value: float | None, form: str) -> str:
    """A number in the format `form`, such as ".2f"; in words where it was not measured."""
    return NOT_MEASURED if value is None or math.isnan(value) else format(value, form)
