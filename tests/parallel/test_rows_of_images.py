"""Features that are each row's own give what features that all rows share give."""

from __future__ import annotations

import jax
import numpy as np

from lrm_jax.qwen3_vl import VisionInputs, fixed_grid, patchify
from lrm_jax.rewards import scoring

from . import tiny


def test_own_images_equal_shared_ones():
    model, tables, rows = tiny.model("none"), tiny.tables(), tiny.rows()
    variables = {"params": tiny.base()}
    patches = patchify(rows.frames.reshape(-1, *rows.frames.shape[2:]), tiny.CONFIG)
    inputs = VisionInputs(patches, fixed_grid(tiny.CONFIG, tiny.SIDE, tiny.SIDE))

    def both(variables, inputs):
        features = model.apply(variables, inputs, method="encode")
        shared = np.arange(tiny.ROWS * tiny.IMAGES).reshape(tiny.ROWS, tiny.IMAGES)
        own = np.broadcast_to(np.arange(tiny.IMAGES), shared.shape)
        return [
            scoring.read_log_probabilities(model, variables, tables, given, rows.sentence, slots)
            for given, slots in ((features, shared), (features.by_row(tiny.ROWS), own))
        ]

    quick = {"xla_backend_optimization_level": 0}
    shared, own = jax.jit(both, compiler_options=quick)(variables, inputs)
    np.testing.assert_array_equal(shared, own)
    assert np.std(np.asarray(own)[:, 0], axis=0).max() > 1e-3  # rows differ: images matter
