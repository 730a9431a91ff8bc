"""What `import lrm_jax` does to the environment, seen from fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrm_jax.run import platform
from lrm_jax.run.errors import UserError

FLAG = " ".join(platform.CPU_FLAGS.values())
CLEAN = ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "LRM_JAX_CACHE")


@pytest.fixture
def environment(monkeypatch, tmp_path):
    for name in CLEAN:
        monkeypatch.delenv(name, raising=False)
    for name in ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # As if JAX were not imported: this process has it, and it must keep its settings.
    monkeypatch.setattr(platform, "sys", types.SimpleNamespace(modules={}))
    return monkeypatch


def test_the_flag_is_appended_and_the_call_repeats(environment):
    environment.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x")
    platform.configure()
    platform.configure()
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=/tmp/x {FLAG}"


def test_the_users_choice_stays(environment):
    environment.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=true")
    platform.configure()
    assert os.environ["XLA_FLAGS"].split()[0] == "--xla_cpu_use_fusion_emitters=true"
    assert "fusion_emitters=false" not in os.environ["XLA_FLAGS"]


@pytest.mark.parametrize(("platforms", "set_"), [("", 1), ("cpu", 1), ("tpu,cpu", 1), ("cuda", 0)])
def test_only_where_the_cpu_may_be_used(environment, platforms, set_):
    environment.setenv("JAX_PLATFORMS", platforms)
    platform.configure()
    assert (FLAG in os.environ.get("XLA_FLAGS", "")) == bool(set_)


def test_the_thread_pool_is_wide_enough_unless_the_user_says_otherwise(environment):
    environment.delenv("NPROC", raising=False)
    environment.setattr(platform.os, "cpu_count", lambda: 2)
    platform.configure()
    assert int(os.environ["NPROC"]) == platform.MIN_POOL_THREADS
    environment.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    platform.configure()  # as in a process that inherits what we have set
    assert int(os.environ["NPROC"]) == 8 * platform.THREADS_PER_DEVICE
    environment.setenv("NPROC", "3")
    platform.configure()
    assert os.environ["NPROC"] == "3"


def test_high_rank_multiply_reduce_is_right():
    """JAX issue 40412: without our flags this program ends with a segmentation fault."""
    program = (
        "import lrm_jax, jax, jax.numpy as jnp, numpy as np\n"
        "s = (3, 1, 2, 2, 8, 8, 8)\n"
        "a, b = np.random.default_rng(0).normal(size=(2, *s)).astype(np.float32)\n"
        "got = jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(a, b)\n"
        "np.testing.assert_allclose(got, (a * b).sum(3), atol=1e-5)\n"
    )
    clean = {k: v for k, v in os.environ.items() if k not in CLEAN}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**clean, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]


def test_cache_folder(environment, tmp_path):
    platform.configure()
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert folder.startswith(str(tmp_path / "cache" / "lrm_jax" / "xla"))
    assert os.path.isdir(folder)
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0.5"


def test_cache_moved_off_or_the_users_own(environment, tmp_path):
    environment.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
    platform.configure()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/somewhere"
    environment.setenv("LRM_JAX_CACHE", str(tmp_path / "mine"))
    platform.configure()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path / "mine"))
    environment.setenv("LRM_JAX_CACHE", "off")
    platform.configure()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_cache_that_cannot_be_written(environment, tmp_path):
    (tmp_path / "file").write_text("")
    environment.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        platform.configure()  # nobody asked for that place: silence
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    environment.setenv("LRM_JAX_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(RuntimeWarning, match="cannot write"):
        platform.configure()


def _python(code, **env):
    keep = {k: v for k, v in os.environ.items() if k not in CLEAN}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**keep, "PYTHONPATH": os.pathsep.join(sys.path), **env},
        check=True,
    )


def test_import_starts_nothing_and_jax_obeys(tmp_path):
    code = (
        "import json, sys, lrm_jax\n"
        "early = [m for m in ('jax', 'numpy', 'flax', 'mujoco') if m in sys.modules]\n"
        "import jax\n"
        "import os\n"
        "print(json.dumps([early, os.environ['XLA_FLAGS'], jax.config.jax_compilation_cache_dir,"
        " jax.config.jax_persistent_cache_min_compile_time_secs]))"
    )
    early, flags, folder, seconds = json.loads(_python(code, LRM_JAX_CACHE=str(tmp_path)).stdout)
    assert early == []
    assert FLAG in flags
    assert folder.startswith(str(tmp_path))
    assert seconds == 0.5


def test_too_late_is_said():
    code = "import jax; jax.devices(); import lrm_jax"
    result = _python(code, LRM_JAX_CACHE="off", JAX_PLATFORMS="cpu")
    assert "JAX started before lrm_jax was imported" in result.stderr


def test_lazy_names():
    import lrm_jax

    assert "load_reward_model" in dir(lrm_jax) and "envs" in dir(lrm_jax)
    assert lrm_jax.UserError is UserError
    with pytest.raises(AttributeError, match="no attribute 'reward_model'"):
        _ = lrm_jax.reward_model


def test_options_of_networks_are_accepted_and_change_no_result():
    options = platform.network_options()
    assert options == {"xla_cpu_use_fusion_emitters": True}  # tests run on the CPU
    x = jnp.linspace(-3, 3, 64).reshape(8, 8)

    def network(x):
        return jax.nn.softmax(jnp.tanh(x @ x.T), axis=-1)

    # One fused exponential or tanh against another: a few units in the last place.
    np.testing.assert_allclose(
        jax.jit(network, compiler_options=options)(x), jax.jit(network)(x), rtol=1e-5
    )
