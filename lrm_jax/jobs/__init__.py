"""Jobs: the stages behind `python -m lrm_jax.train`, one module for each value of `config.job`."""
