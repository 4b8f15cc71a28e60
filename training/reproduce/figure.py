"""Figures as bytes: drawn without a display, the same for the same input."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def encode_figure(figure: Figure, dpi: int = 120) -> bytes:
    """PNG of `figure`, without a date or version inside."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
