"""launch/tpu.sh: what it would say to gcloud (dry run), and what it does with a gcloud that answers
from a script."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
DOOR = ["python", "-m", "lrm_jax.train", "--config=c.py", "--config.task=a 'b' $c"]
WHERE = ["--name=run-1", "--zone=us-west4-a"]
SLICE = [*WHERE, "--topology=v5e:4x4"]
pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")

# Answers each kind of call with the next of its answers, the last one again and again; records all.
GCLOUD = f"""#!{sys.executable}
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
words = sys.argv[1:]
with open(folder / "calls", "a") as f:
    f.write(json.dumps(words) + "\\n")
kind = " ".join(words[2:4])
if "run.status" in words[-1] and "--worker=0" in words:
    kind = "command"
answers = json.loads((folder / "answers").read_text())
own = answers.get(kind, [""])
said = own.pop(0) if len(own) > 1 else own[0]
(folder / "answers").write_text(json.dumps(answers))
if said == "!":
    sys.exit(1)
print(said)
"""


def tpu(*words, **more):
    return subprocess.run(
        [str(LAUNCH / "tpu.sh"), *words], capture_output=True, text=True, check=False, timeout=60,
        **more,
    )  # fmt: skip


def dry(*words) -> list[list[str]]:
    done = tpu(*words, "--dry_run", *(["--", *DOOR] if words[0] in ("start", "watch") else []))
    assert (done.returncode, done.stderr) == (0, "")
    # Every line is a command that a shell takes as it stands.
    return [shlex.split(x) for x in done.stdout.splitlines() if not x.startswith("#")]


def test_queued_and_direct_requests():
    queued, look = dry("create", *SLICE, "--project=p", "--spot")
    assert queued == [
        "gcloud", "compute", "tpus", "queued-resources", "create", "run-1", "--node-id=run-1",
        "--zone=us-west4-a", "--project=p", "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite", "--spot",
    ]  # fmt: skip
    assert look[3:6] == ["queued-resources", "describe", "run-1"]
    direct, look = dry("create", *WHERE, "--topology=v5p:2x2x4", "--mode=direct", "--runtime=x")
    assert direct[3:] == [
        "tpu-vm", "create", "run-1", "--zone=us-west4-a", "--accelerator-type=v5p-32",
        "--version=x",
    ]  # fmt: skip
    assert look[3:6] == ["tpu-vm", "describe", "run-1"]
    (deleted,) = dry("delete", *WHERE)
    assert deleted[3:] == [
        "queued-resources", "delete", "run-1", "--zone=us-west4-a", "--force", "--quiet"
    ]  # fmt: skip
    (deleted,) = dry("delete", *WHERE, "--mode=direct")
    assert deleted[3:] == ["tpu-vm", "delete", "run-1", "--zone=us-west4-a", "--quiet"]


@pytest.mark.parametrize("topology", ["v5e:4x4", "v5p:2x2x4", "v6e:2x4"])
def test_slices_are_called_as_the_package_calls_them(topology):
    from lrm_jax.parallel.roofline import Slice

    asked = dry("create", *WHERE, f"--topology={topology}")[0]
    assert f"--accelerator-type={Slice.parse(topology).accelerator_type}" in asked


def test_a_dry_watch_goes_the_whole_way():
    calls = [words[3:5] if words[0] == "gcloud" else words[:1] for words in dry("watch", *SLICE)]
    assert calls == [
        ["queued-resources", "describe"], ["queued-resources", "create"],
        ["queued-resources", "describe"], ["tar"], ["tpu-vm", "scp"], ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"], ["tpu-vm", "ssh"],
    ]  # fmt: skip


def test_the_command_reaches_the_host_as_it_was_given(tmp_path):
    """What `start` sends is run here by a shell, with a python that shows its arguments."""
    (sent,) = dry("start", *WHERE, f"--folder={tmp_path}/lrm")
    assert "--worker=all" in sent
    folder = tmp_path / "lrm"
    (folder / ".venv" / "bin").mkdir(parents=True)
    fake = folder / ".venv" / "bin" / "python"
    show = (
        "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['LRM_JAX_PROCESSES']]))"
    )
    fake.write_text(
        f'#!/bin/sh\n{shlex.quote(sys.executable)} -c {shlex.quote(show)} "$@"\nexit 7\n'
    )
    fake.chmod(0o755)
    (words,) = [w.removeprefix("--command=") for w in sent if w.startswith("--command=")]
    script = base64.b64decode(re.search(r"echo (\S+) \| base64", words)[1]).decode()
    subprocess.run(["bash", "-c", words], check=True, timeout=30)
    subprocess.run(
        ["bash", "-c", f"while ! [ -s {folder}/run.status ]; do sleep 0.05; done"],
        check=True, timeout=30,
    )  # fmt: skip
    assert json.loads((folder / "run.log").read_text()) == [DOOR[1:], "auto"]
    assert (folder / "run.status").read_text() == "7\n"
    assert (folder / "run.sh").read_text() == script


def test_stop_lets_the_command_end_itself(tmp_path):
    (sent,) = dry("start", *WHERE, f"--folder={tmp_path}/lrm")
    folder = tmp_path / "lrm"
    (folder / ".venv" / "bin").mkdir(parents=True)
    fake = folder / ".venv" / "bin" / "python"
    fake.write_text(
        "#!/bin/bash\ntrap 'sleep 0.3; echo saved; exit 143' TERM\necho ready\n"
        "for _ in {1..200}; do sleep 0.05; done\n"
    )
    fake.chmod(0o755)
    (stopped,) = dry("stop", *WHERE, f"--folder={tmp_path}/lrm")
    for words in (sent, stopped):
        (command,) = [w.removeprefix("--command=") for w in words if w.startswith("--command=")]
        subprocess.run(["bash", "-c", command], check=True, timeout=30)
        subprocess.run(
            ["bash", "-c", f"until grep -q ready {folder}/run.log; do sleep 0.05; done"],
            check=True, timeout=30,
        )  # fmt: skip
    subprocess.run(
        ["bash", "-c", f"until [ -s {folder}/run.status ]; do sleep 0.05; done"],
        check=True, timeout=30,
    )  # fmt: skip
    assert (folder / "run.log").read_text() == "ready\nsaved\n"
    assert (folder / "run.status").read_text() == "143\n"


@pytest.fixture
def watch(tmp_path):
    """Runs `watch` with the answers of a scripted gcloud: the outcome, and the calls in short."""
    fake = tmp_path / "bin" / "gcloud"
    fake.parent.mkdir()
    fake.write_text(GCLOUD)
    fake.chmod(0o755)

    def call(answers, *words):
        (fake.parent / "answers").write_text(json.dumps(answers))
        environment = os.environ | {
            "PATH": f"{fake.parent}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)
        }  # fmt: skip
        done = tpu("watch", *SLICE, "--every=0", *words, "--", *DOOR, env=environment)
        made = [json.loads(x) for x in (fake.parent / "calls").read_text().splitlines()]
        return done, [words[3] for words in made if words[3] != "describe"], made

    return call


SETUP = ["create", "scp", "ssh", "ssh"]  # request, copy, install, start


def test_watch_makes_a_lost_slice_again(watch):
    """Waited for, run, preempted; made again, and the command started anew until it is done."""
    states = ["", "WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE"]
    answers = {"queued-resources describe": states, "command": ["running", "", "running", "0"]}
    done, calls, made = watch(answers)
    assert done.returncode == 0, done.stderr
    assert calls == [*SETUP, "ssh", "ssh", "delete", *SETUP, "ssh", "ssh"]
    starts = [c[-1] for c in made if "base64" in c[-1]]
    assert len(starts) == 2 and starts[0] == starts[1]
    assert "start 1 was lost" in done.stderr


def test_watch_after_sigterm(watch):
    """143 with a slice that is going away is a preemption; with one that stays it is a stop."""
    states = ["ACTIVE", "SUSPENDING", "SUSPENDED", "ACTIVE", "ACTIVE"]
    answers = {"queued-resources describe": states, "command": ["143", "143"]}
    done, calls, _ = watch(answers)
    assert done.returncode == 1 and "stopped: the same command resumes" in done.stderr
    assert calls == [*SETUP[1:], "ssh", "delete", *SETUP, "ssh"]


@pytest.mark.parametrize("status, code", [("2", 2), ("1", 1)])
def test_watch_does_not_repeat_a_mistake(watch, status, code):
    answers = {"queued-resources describe": ["ACTIVE"], "command": [status]}
    done, calls, _ = watch(answers)
    assert done.returncode == code and calls == [*SETUP[1:], "ssh"]


def test_watch_gives_up(watch):
    answers = {"queued-resources describe": ["ACTIVE"], "command": ["lost"]}
    done, calls, _ = watch(answers, "--starts=2")
    assert done.returncode == 1 and "gave up after 2 starts" in done.stderr
    assert calls.count("delete") == 1
    refused = {"queued-resources describe": [""], "queued-resources create": ["!"]}
    assert "was refused" in watch(refused)[0].stderr


@pytest.mark.parametrize(
    "words, message",
    [
        (["creat", *SLICE], "unknown action creat"),
        (["create", "--zone=z", "--topology=v5e:4x4"], "--name is needed"),
        (["create", "--name=A_b", "--zone=z"], "small letters"),
        (["create", *WHERE, "--topology=v9:4"], "CHIP:SHAPE"),
        (["create", *WHERE, "--topologie=v5e:4x4"], "unknown option --topologie=v5e:4x4"),
        (["start", *WHERE], "give the command after --"),
        (["delete", *WHERE, "--mode=soon"], "queued or direct"),
    ],
)
def test_wrong_words(words, message):
    done = tpu(*words)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_help():
    assert "watch" in tpu("--help").stdout


def test_sweep_over_slices(tmp_path):
    command = [
        sys.executable, str(LAUNCH / "sweep.py"), f"--out={tmp_path}", "--dry_run",
        "--tpu=--zone=z --topology=v6e:2x4 --spot", "--", "python", "-m", "lrm_jax.train",
        "--config=c.py", "--config.seed={3,4}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    lines = [shlex.split(x) for x in done.stdout.splitlines() if x.startswith("gcloud")]
    made = [words for words in lines if words[4] == "create"]
    assert [words[5] for words in made] == ["sweep-0", "sweep-1"]
    assert all("--accelerator-type=v6e-8" in words and "--spot" in words for words in made)
    assert sum(words[4] == "delete" for words in lines) == 2
    scripts = [x for x in done.stdout.splitlines() if "lrm_jax.train" in x and x.startswith("#")]
    assert [f"--config.seed={s} --workdir={tmp_path}/seed={s}" in x
            for s, x in zip((3, 4), scripts, strict=True)] == [True, True]  # fmt: skip
