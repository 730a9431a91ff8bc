"""RLDS data sets: tensorflow-datasets writes them and is the oracle of what is in them."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from lrm_jax.episodes import BrokenEpisode, SourceSettings, open_source
from lrm_jax.run.errors import UserError

from .files import picture, write_rlds

EPISODES = [(5, "put the cup away", True), (3, "öffne die Tür", False), (8, "stack", True)]


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, write_rlds(folder, EPISODES, request.param, shards=2)


def settings(folder, **changes):
    return SourceSettings(**({"name": "toy", "path": str(folder), "fps": 5.0} | changes))


def test_episodes_are_what_tensorflow_datasets_reads(written):
    kind, folder, builder = written
    source = open_source(settings(folder))
    assert len(source) == 3 and source.id(2) == "train/2"
    if kind == "array_record":  # its own order; a TFRecord has none but that of its files
        expected = [dict(e) for e in builder.as_data_source("train")]
    else:
        import tensorflow_datasets as tfds

        # One file after the other, as the numbers go.
        one_by_one = tfds.ReadConfig(interleave_cycle_length=1)
        expected = list(
            tfds.as_numpy(
                builder.as_dataset("train", shuffle_files=False, read_config=one_by_one)
            )
        )
    assert len(expected) == 3
    for i, theirs in enumerate(expected):
        ours = source[i]
        steps = list(theirs["steps"])
        frames = np.stack([s["observation"]["image"] for s in steps])
        # Decoders of JPEG may differ in a last bit.
        assert np.abs(np.asarray(ours.frames).astype(int) - frames).max() <= 3
        assert ours.task == steps[0]["language_instruction"].decode()
        assert ours.success == bool(theirs["episode_metadata"]["success"])
        np.testing.assert_array_equal(
            ours.actions, np.stack([s["action"] for s in steps])[:-1]
        )
        assert ours.fps == 5.0 and ours.camera == "image" and ours.source == "toy"


def test_splits_have_parts(written):
    _, folder, _ = written
    assert len(open_source(settings(folder, split="val"))) == 2
    part = open_source(settings(folder, split="train[1:]"))
    assert [part.id(i) for i in range(len(part))] == ["train/1", "train/2"]
    assert len(open_source(settings(folder, split="train[:34%]"))) == 1
    for split, says in (("test", "train"), ("train[3:]", "no episode"), ("train[", "not written")):
        with pytest.raises(UserError, match=says):
            open_source(settings(folder, split=split))


def test_keys_are_chosen_or_the_error_says_what_is_there(written):
    _, folder, _ = written
    wrist = open_source(settings(folder, camera="wrist_image"))[0]
    assert wrist.camera == "wrist_image"
    upright = open_source(settings(folder, camera="wrist_image", flip=True))[0]
    np.testing.assert_array_equal(upright.frames[1], wrist.frames[1][::-1])
    with pytest.raises(UserError, match="wrist_image"):
        open_source(settings(folder, camera="observation/wrist"))
    with pytest.raises(UserError, match="language_instruction"):
        open_source(settings(folder, sentence="langage_instruction"))
    with pytest.raises(UserError, match="fps"):
        open_source(settings(folder, fps=0.0))
    assert open_source(settings(folder, task="given"))[0].task == "given"


def test_a_missing_file_and_a_cut_one_lose_their_own_episodes_only(written, tmp_path):
    import shutil

    kind, folder, _ = written
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    files = sorted(copy.rglob(f"*train.{kind}*"))
    assert len(files) == 2
    lengths = json.loads(next(copy.rglob("dataset_info.json")).read_text())["splits"]
    counts = [int(n) for s in lengths if s["name"] == "train" for n in s["shardLengths"]]
    data = files[1].read_bytes()
    files[1].write_bytes(data[: len(data) // 3])
    source = open_source(settings(copy))
    assert len(list(source.good())) < 3 and source.broken > 0
    assert source.summary()["by_kind"] == {"record": source.broken}
    assert source.broken <= counts[1]
    files[0].unlink()
    again = open_source(settings(copy))
    assert counts[0] + source.broken == 3 - len(list(again.good()))


def test_a_flipped_bit_in_a_record_is_noticed(written, tmp_path):
    import shutil

    kind, folder, _ = written
    if kind != "tfrecord":
        pytest.skip("ArrayRecord compresses; its reader checks itself")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    file = sorted(copy.rglob("*train.tfrecord*"))[0]
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)
    source = open_source(settings(copy))
    list(source.good())
    assert source.broken == 1 and "checksum" in source.summary()["quarantined"][0]["reason"]


STYLES = {
    # Open X-Embodiment's several ways, after the data sets' published features.
    "bc_z": ("image", "observation/natural_language_instruction", "text"),
    "bridge": ("image_0", "language_instruction", "text"),
    "calvin": ("rgb_static", "language_instruction", "text"),
    "rlbench": ("front_rgb", "language_instruction", "text"),
    "language_table": ("rgb", "observation/instruction", "codes"),
    "raw": ("image", "language_instruction", "plain"),
}


@pytest.mark.parametrize("style", STYLES)
def test_the_several_names_of_image_and_sentence(style, tmp_path):
    image, sentence, how = STYLES[style]
    folder, _, key = sentence.rpartition("/")

    def features(f):
        words = f.Tensor(shape=(24,), dtype=np.int32) if how == "codes" else f.Text()
        plain = how == "plain"
        picture = f.Tensor(shape=(32, 32, 3), dtype=np.uint8) if plain else f.Image(
            shape=(32, 32, 3)
        )  # fmt: skip
        observation = {image: picture, "depth": f.Tensor(shape=(32, 32, 1), dtype=np.float32)}
        if folder:
            return {"observation": observation | {key: words}}
        return {"observation": observation, key: words}

    def step(e, t, count, task):
        said = task
        if how == "codes":
            said = np.zeros(24, np.int32)
            said[: len(task.encode())] = list(task.encode())
        seen = {image: picture(e, t), "depth": np.zeros((32, 32, 1), np.float32)}
        return {"observation": seen | {key: said}} if folder else {"observation": seen, key: said}

    write_rlds(tmp_path, EPISODES, "tfrecord", features=features, steps=step)
    read = {e.task: e for e in open_source(settings(tmp_path)).good()}
    assert set(read) == {task for _, task, _ in EPISODES}
    for e, (count, task, _) in enumerate(EPISODES):
        expected = np.stack([picture(e, t) for t in range(count)])
        assert np.abs(np.asarray(read[task].frames).astype(int) - expected).max() <= 3


def test_broken_episodes_are_named(tmp_path):
    episodes = [(5, "fine", True), (1, "short", True), (4, b"\xff\xfe no", True), (0, "", True)]
    write_rlds(tmp_path, episodes, "tfrecord")
    source = open_source(settings(tmp_path))
    assert [e.task for e in source.good()] == ["fine"]
    assert sorted(b["kind"] for b in source.summary()["quarantined"]) == [
        "empty", "empty", "sentence",
    ]  # fmt: skip


def test_tensorflow_is_not_needed(written):
    """Read where tensorflow cannot be found."""
    _, folder, _ = written
    code = f"""
        import sys
        class Without:
            def __init__(self, finder):
                self.finder = finder
            def find_spec(self, name, *rest):
                absent = name.split(".")[0] in ("tensorflow", "keras")
                return None if absent else self.finder.find_spec(name, *rest)
            def __getattr__(self, name):
                return getattr(self.finder, name)
        sys.meta_path[:] = [Without(f) for f in sys.meta_path]
        import numpy as np
        from lrm_jax.episodes import SourceSettings, open_source
        source = open_source(SourceSettings(name="toy", path={str(folder)!r}, fps=5.0))
        print(sum(len(np.asarray(e.frames)) for e in source.good()), source.broken)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.stdout.split() == ["16", "0"], done.stderr[-2000:]


def test_what_is_no_data_set_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="dataset_info"):
        open_source(settings(tmp_path))
    with pytest.raises(UserError, match="no such"):
        open_source(settings(tmp_path / "absent"))
    assert issubclass(BrokenEpisode, UserError)
