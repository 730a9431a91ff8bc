"""24 sources after the paper's collection: Open X-Embodiment, HOI4D, EgoDex, LIBERO, RoboCasa.

    python -m lrm_jax.train --config=configs/reward_qwen3vl_8b.py --config.model=FOLDER \
        --config.data.mixture=configs/data/lrm24.py --config.data.root=FOLDER \
        --config.data.episodes=100000 [--config.data.absent=skip]

The paper (arXiv 2603.16065) says that there are 24 sources and names these five. Ours are: which 20
parts of Open X-Embodiment (those with a third-person camera and sentences about a task that ends),
the weights (about the square root of a source's episodes, so that large ones do not drown the
others), the splits (whole "train"; the validation splits that some have are left alone) and
`trim_end`, our estimate of how much follows success: it has not been tuned. Camera keys and
sentences are those of the published features; rates are the published control rates, which labels
by t / T do not use. The notes say what is known of each source from its publication; none of these
sources was at hand when this was written.

Where they lie under the root: Open X-Embodiment as tensorflow-datasets keeps it (NAME/VERSION);
LIBERO's and RoboCasa's HDF5 files; HOI4D and EgoDex as videos with an index.jsonl that says
{"video", "task", "success"} (see lrm_jax/episodes/video_index.py), which their annotations give.
"""

from ml_collections import ConfigDict

OXE = "natural_language_instruction"  # in the observation; the first parts of the collection
RLDS = "language_instruction"  # in the step; parts that were converted elsewhere
_X = "_converted_externally_to_rlds"

# name, camera, sentence, frames/s, weight, share cut off the end, note
OPEN_X = (
    ("fractal20220817_data", "image", OXE, 3, 3.0, 0.0,
     "RT-1. The operator ends an episode at success."),
    ("bridge_dataset", "image_0", RLDS, 5, 2.5, 0.05,
     "BridgeData V2 in its authors' own release; the arm retracts after success."),
    ("taco_play", "rgb_static", OXE, 15, 0.6, 0.0,
     "Cut from play: a segment ends at its event, and the next task begins."),
    ("jaco_play", "image", OXE, 10, 0.3, 0.05, "Short pick and place; stops soon after."),
    ("berkeley_cable_routing", "image", OXE, 10, 0.4, 0.0, "One sentence for all."),
    ("roboturk", "front_rgb", OXE, 10, 0.4, 0.1,
     "Remote operators; long pauses, and idle ends."),
    ("viola", "agentview_rgb", OXE, 20, 0.1, 0.05, "150 demonstrations."),
    ("berkeley_autolab_ur5", "image", OXE, 5, 0.3, 0.1, "The arm goes home after success."),
    ("toto", "image", OXE, 30, 0.3, 0.0, "Scoop and pour; the end is the success."),
    ("language_table", "rgb", "instruction", 10, 3.0, 0.0,
     "Sentences are characters' codes. Relabelled in hindsight: the end is the success."),
    ("bc_z", "image", OXE, 10, 2.0, 0.0, "Teleoperated; ends at success."),
    (f"stanford_hydra_dataset{_X}", "image", RLDS, 10, 0.25, 0.05, "Long tasks of several parts."),
    (f"austin_buds_dataset{_X}", "image", RLDS, 20, 0.1, 0.05, "50 long demonstrations."),
    (f"austin_sailor_dataset{_X}", "image", RLDS, 20, 0.15, 0.05, "Sparse reward at the end."),
    (f"austin_sirius_dataset{_X}", "image", RLDS, 20, 0.25, 0.05,
     "Partly a policy's own episodes, corrected by a person on the way."),
    (f"furniture_bench_dataset{_X}", "image", RLDS, 10, 0.7, 0.0,
     "Assembly in phases; rewards mark each phase, so a reward is not success."),
    (f"ucsd_kitchen_dataset{_X}", "image", RLDS, 2, 0.12, 0.05, "150 demonstrations."),
    (f"iamlab_cmu_pickup_insert{_X}", "image", RLDS, 20, 0.25, 0.05, "Blocks, insertions."),
    ("utaustin_mutex", "image", RLDS, 20, 0.4, 0.05, "Long sentences, several wordings a task."),
    ("cmu_stretch", "image", RLDS, 10, 0.12, 0.1, "The robot drives away after success."),
)  # fmt: skip

OTHERS = (
    {"name": "hoi4d", "path": "hoi4d", "format": "videos", "fps": 15.0, "weight": 0.6,
     "note": "Head-mounted camera. One video holds several actions: index a line for each, begin "
             "and end from its action annotations; the end of an action is its success."},
    {"name": "egodex", "path": "egodex", "format": "videos", "fps": 30.0, "weight": 3.0,
     "trim_end": 0.1,
     "note": "Head-mounted camera, hands at rest in the beginning and at the end; the sentence is "
             "the annotations' llm_description."},
    {"name": "libero", "path": "libero", "format": "hdf5", "camera": "agentview_rgb", "flip": True,
     "success": "rewards", "weight": 0.8,
     "note": "libero_90 and libero_10. Stored upside down. Ends at the simulator's success, which "
             "the sparse reward marks."},
    {"name": "robocasa", "path": "robocasa", "format": "hdf5",
     "camera": "robot0_agentview_left_image", "weight": 1.5, "trim_end": 0.05,
     "note": "Files with pictures, not the raw states. The sentence is ep_meta's lang; recording "
             "goes on for a moment after success."},
)  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """The sources of the mixture."""
    del arg
    open_x = [
        {"name": name, "path": name, "format": "rlds", "camera": camera, "sentence": sentence,
         "fps": float(fps), "weight": weight, "trim_end": trim_end, "note": note}
        for name, camera, sentence, fps, weight, trim_end, note in OPEN_X
    ]  # fmt: skip
    return ConfigDict({"sources": [*open_x, *OTHERS]})
