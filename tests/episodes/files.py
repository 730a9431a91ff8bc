"""Videos and data sets for the tests, written by the formats' own libraries."""

import json

import av
import h5py
import numpy as np

SIZE = 32


def picture(episode, place, size=SIZE):
    """uint8 [size, size, 3]; red says which episode, green which frame."""
    frame = np.zeros((size, size, 3), np.uint8)
    frame[..., 0], frame[..., 1] = (40 + 50 * episode) % 256, 8 * place
    frame[: size // 2, :, 2] = 200  # upside down would show
    return frame


def pictures(episode, count, size=SIZE):
    return np.stack([picture(episode, p, size) for p in range(count)])


def write_video(path, frames, fps=10, gop=6, options=None, codec="libx264"):
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.gop_size = "yuv420p", gop
        stream.max_b_frames = 2
        stream.options = {"crf": "4"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_hdf5(path, lengths=(6, 9), style="libero", fps=20, camera="agentview_rgb"):
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": fps}})
        if style == "libero":
            data.attrs["problem_info"] = json.dumps({"language_instruction": "open the drawer"})
        for e, count in enumerate(lengths):
            demo = data.create_group(f"demo_{e}")
            demo.create_dataset(f"obs/{camera}", data=pictures(e, count), chunks=True)
            demo.create_dataset("obs/eye_in_hand_rgb", data=pictures(e, count))
            demo.create_dataset("actions", data=np.full((count, 7), e, np.float64))
            demo.create_dataset("dones", data=np.arange(count) == count - 1)
            if style == "robocasa":
                demo.attrs["ep_meta"] = json.dumps({"lang": f"pick thing {e}"})


def write_rlds(folder, episodes, file_format, image="jpeg", features=None, steps=None, shards=None):
    """A data set written by tensorflow-datasets. episodes: [(length, sentence, success)]."""
    import tensorflow_datasets as tfds

    f = tfds.features
    default = {
        "observation": f.FeaturesDict(
            {
                "image": f.Image(shape=(SIZE, SIZE, 3), encoding_format=image),
                "wrist_image": f.Image(shape=(SIZE, SIZE, 3), encoding_format=image),
                "state": f.Tensor(shape=(3,), dtype=np.float32),
            }
        ),
        "action": f.Tensor(shape=(7,), dtype=np.float32),
        "is_last": np.bool_,
        "language_instruction": f.Text(),
    }
    of_step = features(f) if features else default

    def step(e, t, count, task):
        if steps:
            return steps(e, t, count, task)
        return {
            "observation": {
                "image": picture(e, t), "wrist_image": picture(e, t)[::-1],
                "state": np.full(3, t, np.float32),
            },
            "action": np.full(7, t, np.float32), "is_last": t == count - 1,
            "language_instruction": task,
        }  # fmt: skip

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "toy"

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=f.FeaturesDict(
                    {
                        "steps": f.Dataset(of_step),
                        "episode_metadata": {"success": np.bool_, "file_path": f.Text()},
                    }
                ),
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples(), "val": self._generate_examples(2)}

        def _generate_examples(self, most=None):
            for e, (count, task, success) in enumerate(episodes[:most]):
                yield f"{e}", {
                    "steps": [step(e, t, count, task) for t in range(count)],
                    "episode_metadata": {"success": success, "file_path": f"{e}.h5"},
                }

    builder = Toy(data_dir=str(folder), file_format=file_format)
    settings = tfds.download.DownloadConfig(num_shards=shards)
    builder.download_and_prepare(download_config=settings)
    return builder
