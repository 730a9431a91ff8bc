"""Many devices as one: the mesh, sharding rules as data, compilation for TPUs that are not there.

Nothing is imported here: `lrm_jax.parallel.aot` must set the environment before JAX starts.
"""
