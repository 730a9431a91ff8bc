"""The oracle's recorded result belongs to settings, a seed and a clone."""

from lrm_jax.jobs import oracle

NOTHING = {"oracle_success": None, "oracle_base": None}


def test_what_is_recorded_is_found_for_the_same_settings_alone(tmp_path):
    path = tmp_path / "record.json"
    assert oracle.recorded([{"lr": 1}], 0, path) == NOTHING
    rows = [
        {"arm": arm, "seed": seed, "base_success": 0.5 + seed / 10, "refined_success": success}
        for arm, seed, success in (("oracle", 0, 0.75), ("vlm", 0, 0.7), ("oracle", 2, 0.9))
    ]
    oracle.record(path, [{"lr": 1}], rows[1:2])
    assert not path.exists()
    oracle.record(path, [{"lr": 1}], rows)
    found = [oracle.recorded([{"lr": 1}], seed, path) for seed in (0, 1, 2)]
    assert found[0] == {"oracle_success": 0.75, "oracle_base": 0.5}
    assert found[1] == NOTHING and found[2] == {"oracle_success": 0.9, "oracle_base": 0.7}
    assert oracle.recorded([{"lr": 2}], 0, path) == NOTHING
