"""How a run is configured, kept, resumed, timed and described. Knows nothing of robots or
models."""
