"""Reports: figures, overlay videos, film strips, and the self-contained report.html."""

from lrm_jax.report import blocks, plots
from lrm_jax.report.html import render_report, write_report
from lrm_jax.report.strip import film_strip
from lrm_jax.report.video import Clip, encode_mp4, overlay_video

__all__ = [
    "Clip",
    "blocks",
    "encode_mp4",
    "film_strip",
    "overlay_video",
    "plots",
    "render_report",
    "write_report",
]
