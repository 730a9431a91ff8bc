"""MJX, imported without the two lines that it prints where its Warp backend is not installed.

    from lrm_jax.run.quiet_mjx import mjx

Those lines go to stdout, where doors print their tables and JSON; only the first import prints.
"""

import contextlib
import io

with contextlib.redirect_stdout(io.StringIO()):
    from mujoco import mjx

__all__ = ["mjx"]
