"""Image positions of things against where the renderer draws them."""

import jax
import numpy as np
import pytest

from lrm_jax import envs
from lrm_jax.envs.put_on_plate import COLOURS
from lrm_jax.jobs.scene_facts import project
from lrm_jax.render import render_all
from lrm_jax.reward_training.scene_heads import COLOURS as ASKED


def test_colour_questions_number_colours_as_the_environment_does():
    assert ASKED == COLOURS


@pytest.mark.parametrize("jitter", [0.0, 0.05])
def test_projection_agrees_with_the_renderer(jitter):
    """Through the model's camera, and through one that each episode puts elsewhere."""
    env = envs.make("PutOnPlate", camera_jitter=jitter)
    size, eye = 128, env.mj_model.camera(env.camera).id

    @jax.jit
    def look(key):
        state = env.reset(key)
        model, data = env.scene(state)
        segmentation = render_all(model, data, env.camera, size, size)[2]
        things = env.record(state)["things"]
        return segmentation, things, data.cam_xpos[eye], data.cam_xmat[eye]

    for seed in range(3):
        segmentation, things, *camera = map(np.asarray, look(jax.random.key(seed)))
        for i in range(2):
            rows, columns = np.nonzero(segmentation == env.mj_model.geom(f"cube{i}").id)
            assert len(rows) > 20
            x, y = project(env, things[i], *(camera if jitter else ()))
            if not jitter:
                np.testing.assert_allclose(project(env, things[i], *camera), [x, y], atol=1e-5)
            # The silhouette's centroid is not the centre's image, but within a third of the cube.
            assert abs(x * size - columns.mean() - 0.5) < 3
            assert abs(y * size - rows.mean() - 0.5) < 4
