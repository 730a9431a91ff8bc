"""Settings that must be in the environment before JAX starts.

`configure()` is called on `import lrm_jax` and imports nothing of JAX itself.
"""

from __future__ import annotations

import hashlib
import os
import platform as host_platform
import re
import sys
import warnings
from pathlib import Path
from typing import Any

CPU_FLAGS = {
    # XLA:CPU's fusion emitters (the default since jaxlib 0.7) turn MJX's step into code that runs
    # about 300 times slower than without them.
    "xla_cpu_use_fusion_emitters": "--xla_cpu_use_fusion_emitters=false",
    # YNNPACK fusions of jaxlib 0.10.2 and 0.11.0 corrupt memory on high-rank multiply-reduce (JAX
    # issues 39257 and 40412): a vision tower's backward pass hung in them. Empty means none.
    "xla_cpu_experimental_ynn_fusion_type": "--xla_cpu_experimental_ynn_fusion_type=",
    # Devices that are threads of a few busy cores wait for each other: after 40 seconds, XLA's
    # default, it would kill the process.
    "xla_cpu_collective_call_terminate": "--xla_cpu_collective_call_terminate_timeout_seconds=300",
    "xla_cpu_collective_call_warn_stuck": (
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=60"
    ),
}

MIN_POOL_THREADS, THREADS_PER_DEVICE = 8, 4
_OWN_NPROC = "LRM_JAX_NPROC"  # what we have set NPROC to, for processes that inherit it

CACHE_VARIABLE = "LRM_JAX_CACHE"
_OFF = ("0", "off", "false", "no", "none")


def configure() -> None:
    """Prepares XLA's flags, JAX's persistent compilation cache and quiet logs. Idempotent.

    * `CPU_FLAGS` are appended to `XLA_FLAGS` where the CPU backend may be used (`JAX_PLATFORMS`
      empty or naming cpu), unless the user's own `XLA_FLAGS` names them. A warning says so if
      JAX's backends started earlier, because the flags have no effect then.
    * XLA:CPU's thread pool gets `MIN_POOL_THREADS` at least, unless NPROC is set.
    * Compiled programs that took half a second or more are kept in `cache_folder()`.
      `LRM_JAX_CACHE=DIR` moves the cache, `LRM_JAX_CACHE=off` turns it off; JAX's own
      `JAX_COMPILATION_CACHE_DIR` takes precedence over the default place.
    """
    _append_cpu_flags()
    widen_thread_pool(_devices_asked_for())
    os.environ.setdefault(
        "TF_CPP_MIN_LOG_LEVEL", "2"
    )  # TensorFlow's and XLA's C++ information lines
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    _enable_compilation_cache()


def network_options() -> dict[str, Any]:
    """`compiler_options` for `jax.jit` of programs that train a network and hold no physics.

    On the CPU they take back the switch that MJX needs: a LoRA step takes a tenth less time with
    XLA's fusion emitters (`lrm_jax.benchmarks.lora_step`); a forward pass alone takes longer. Only
    an outermost `jax.jit` accepts options. Starts JAX's backends.
    """
    import jax

    return {"xla_cpu_use_fusion_emitters": True} if jax.default_backend() == "cpu" else {}


def cpu_may_be_used() -> bool:
    """Whether JAX may pick the CPU backend, judged from `JAX_PLATFORMS` alone."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return not platforms.strip() or "cpu" in [p.strip() for p in platforms.split(",")]


def backend_started() -> bool:
    """Whether JAX has already created its backends in this process (never starts them)."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    started = getattr(bridge, "backends_are_initialized", None)
    return bool(started()) if started is not None else False


def cache_folder() -> Path | None:
    """The folder for compiled programs, or None where `LRM_JAX_CACHE` turns the cache off.

    Programs compiled for the CPU use the instructions of the machine that compiled them, so the
    default folder carries a digest of the processor: a home directory shared by different machines
    then never hands one machine's programs to another.
    """
    chosen = os.environ.get(CACHE_VARIABLE, "").strip()
    if chosen.lower() in _OFF:
        return None
    if chosen:
        return Path(chosen).expanduser() / _processor()
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    root = Path(base) if base else Path("~/.cache").expanduser()
    return root / "lrm_jax" / "xla" / _processor()


def _append_cpu_flags() -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    missing = [flag for name, flag in CPU_FLAGS.items() if name not in flags]
    if not cpu_may_be_used() or not missing:
        return
    if backend_started():
        warnings.warn(
            "JAX started before lrm_jax was imported: physics on the CPU will be about 300 times "
            f"slower. Import lrm_jax first, or set XLA_FLAGS='{' '.join(missing)}'.",
            RuntimeWarning,
            stacklevel=4,
        )
        return
    os.environ["XLA_FLAGS"] = " ".join([flags, *missing]).strip()


def widen_thread_pool(devices: int = 1) -> None:
    """Give XLA:CPU's thread pool eight threads at least and four a device, whatever the number of
    cores, unless the user has set NPROC; too late once JAX's backends have started.

    jaxlib's batched LAPACK calls (MJX factorises a matrix per environment) wait inside a pool
    thread for work queued on the same pool. On two cores two such calls at once occupy both
    threads, and the program hangs for ever. So do devices that wait for each other in a collective:
    eight hung with eight threads. XLA sizes the pool by NPROC; idle threads cost nothing.
    """
    wanted = max(MIN_POOL_THREADS, THREADS_PER_DEVICE * devices)
    if not cpu_may_be_used() or (os.cpu_count() or 1) >= wanted or backend_started():
        return
    if os.environ.get("NPROC") in (None, os.environ.get(_OWN_NPROC)):
        os.environ["NPROC"] = os.environ[_OWN_NPROC] = str(wanted)


def _devices_asked_for() -> int:
    """How many devices XLA_FLAGS make of the CPU."""
    found = re.search(
        r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    return int(found[1]) if found else 1


def _processor() -> str:
    parts = [host_platform.machine(), host_platform.system()]
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            for line in f:
                if line.startswith(("model name", "flags", "Features")):
                    parts.append(line.strip())
                if not line.strip():
                    break  # the first core is enough
    except OSError:
        parts.append(host_platform.processor())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _enable_compilation_cache() -> None:
    # The user's own JAX setting wins over our default, but not over an explicit LRM_JAX_CACHE.
    if (
        os.environ.get("JAX_COMPILATION_CACHE_DIR")
        and not os.environ.get(CACHE_VARIABLE, "").strip()
    ):
        return
    folder = cache_folder()
    if folder is None:
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        if "jax" in sys.modules:
            sys.modules["jax"].config.update("jax_compilation_cache_dir", None)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        if os.environ.get(CACHE_VARIABLE, "").strip():
            warnings.warn(
                f"{CACHE_VARIABLE}: cannot write {folder}; each run compiles its programs anew.",
                RuntimeWarning,
                stacklevel=4,
            )
        return
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        variable = name.upper()
        if name != "jax_compilation_cache_dir" and variable in os.environ:
            continue
        os.environ[variable] = str(value)  # read when JAX is imported, and by child processes
        if "jax" in sys.modules:
            sys.modules["jax"].config.update(name, value)
