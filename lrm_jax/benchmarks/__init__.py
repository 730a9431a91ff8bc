"""Side-by-side measurements: `python -m lrm_jax.benchmarks.NAME --json=FILE`, one file each."""
