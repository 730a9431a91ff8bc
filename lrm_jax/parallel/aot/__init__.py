"""Compilation for TPUs that are not there: `python -m lrm_jax.parallel.aot`; a door."""
