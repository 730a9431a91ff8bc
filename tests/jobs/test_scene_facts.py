"""Image positions of things against where the renderer draws them."""

import jax
import numpy as np

from lrm_jax import envs
from lrm_jax.envs.put_on_plate import COLOURS
from lrm_jax.jobs.scene_facts import project
from lrm_jax.render import render_all
from lrm_jax.reward_training.scene_heads import COLOURS as ASKED


def test_colour_questions_number_colours_as_the_environment_does():
    assert ASKED == COLOURS


def test_projection_agrees_with_the_renderer():
    env = envs.make("PutOnPlate")
    size = 128

    @jax.jit
    def look(key):
        state = env.reset(key)
        model, data = env.scene(state)
        return render_all(model, data, env.camera, size, size)[2], env.facts(state)["cubes"]

    for seed in range(3):
        segmentation, cubes = map(np.asarray, look(jax.random.key(seed)))
        for i in range(2):
            rows, columns = np.nonzero(segmentation == env.mj_model.geom(f"cube{i}").id)
            assert len(rows) > 20
            x, y = project(env, cubes[i])
            # The silhouette's centroid is not the centre's image, but within a third of the cube.
            assert abs(x * size - columns.mean() - 0.5) < 3
            assert abs(y * size - rows.mean() - 0.5) < 4
