"""Doors: exit statuses and the one line on stderr, through real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from lrm_jax.run.errors import UserError, did_you_mean

# A door with a config and a required flag; each process below runs it.
DOOR = """
import sys, time
from absl import flags
from lrm_jax.run import cli
from lrm_jax.run.errors import UserError
CONFIG = cli.define_config()
TASK = flags.DEFINE_string("task", None, "What to do.")
flags.mark_flag_as_required("task")

def main(argv):
    cli.reject_arguments(argv)
    if TASK.value == "user":
        raise UserError("the plate is\\n missing: bring one")
    if TASK.value == "bug":
        raise ValueError("two plus two")
    if TASK.value == "sleep":
        print("ready", flush=True)
        time.sleep(60)
    print(cli.config_name(), CONFIG.value.lr, CONFIG.value.inner.deep)

cli.run_app(main)
"""
CONFIG = """
from ml_collections import ConfigDict
def get_config(arg=""):
    return ConfigDict({"lr": 0.1, "steps": 3, "inner": {"deep": 1}})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("door")
    files = {
        "door.py": DOOR,
        "good.py": CONFIG,
        "raises.py": "def get_config():\n    x = 1\n    raise RuntimeError('no\\nplates')\n",
        "value.py": "def get_config():\n    return int('abc')\n",
        "syntax.py": "def get_config(:\n",
        "empty.py": "x = 1\n",
        "imports.py": "import nosuchmodule\n",
        "argument.py": "def get_config(arg):\n    return {}\n",
        "number.py": "def get_config():\n    return 3\n",
    }
    for name, text in files.items():
        (path / name).write_text(textwrap.dedent(text))
    return path


@pytest.fixture(scope="module")
def call(folder):
    """Runs the door's `main` for many command lines in one process each, forked from a warm one."""
    server = textwrap.dedent(
        """
        import io, os, sys, json, runpy
        import lrm_jax.run.cli  # warm: the children inherit the imports
        for line in sys.stdin:
            args = json.loads(line)
            out, err = "out.txt", "err.txt"
            pid = os.fork()
            if pid == 0:
                for n, name in ((1, out), (2, err)):
                    os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), n)
                sys.argv = ["door.py", *args]
                try:
                    runpy.run_path("door.py", run_name="__main__")
                except SystemExit as e:
                    sys.stdout.flush()
                    os._exit(e.code if isinstance(e.code, int) else 99)
                os._exit(98)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            print(json.dumps([status, open(out).read(), open(err).read()]), flush=True)
        """
    )
    import json

    process = subprocess.Popen(
        [sys.executable, "-c", server],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )

    def run(*args):
        process.stdin.write(json.dumps(args) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait()


def test_done(call):
    status, out, err = call("--config=good.py:a b", "--task=x", "--config.inner.deep=7")
    assert (status, out, err) == (0, "good_a_b 0.1 7\n", "")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--task=user", "--config=good.py"], ["the plate is missing: bring one"]),
        (["--config=good.py"], ["--task is needed"]),
        (["--task=x"], ["--config is needed"]),
        (["--task=x", "--config=goood.py"], ["goood.py", "does not exist", "'good.py'"]),
        (["--task=x", "--config=no/such.py"], ["no/such.py", "does not exist"]),
        (["--task=x", "--config=good.py", "--config.lrr=1"], ["--config.lrr", "'lr'"]),
        (["--task=x", "--config=good.py", "--config.inner.dep=1"], ["inner.dep", "'deep'"]),
        (["--task=x", "--config=good.py", "--config.lr.x=1"], ["lr is a value"]),
        (["--task=x", "--config=good.py", "--config.lr=abc"], ["--config.lr=abc", "float"]),
        (["--task=x", "--config=good.py", "--config.steps=1.5"], ["--config.steps=1.5", "int"]),
        (["--task=x", "--config=good.py", "--config.inner=3"], ["--config.inner=3"]),
        (["--tusk=x", "--config=good.py"], ["--tusk", "'task'"]),
        (["--task=x", "--config=good.py", "stray"], ["'stray'", "--flag=value"]),
        (["--task=x", "--config=raises.py"], ["raises.py, line 3", "RuntimeError: no plates"]),
        (["--task=x", "--config=value.py"], ["value.py, line 2", "ValueError", "'abc'"]),
        (["--task=x", "--config=syntax.py"], ["syntax.py, line 1"]),
        (["--task=x", "--config=empty.py"], ["empty.py", "get_config"]),
        (["--task=x", "--config=imports.py"], ["imports.py, line 1", "nosuchmodule"]),
        (["--task=x", "--config=argument.py"], ["argument.py", "FILE.py:ARG"]),
        (["--task=x", "--config=number.py", "--config.a=1"], ["number.py", "ConfigDict"]),
    ],
)
def test_user_errors_are_one_line_and_status_2(call, args, words):
    status, out, err = call(*args)
    assert status == 2, err
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("error: "), err
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_a_bug_shows_its_traceback_and_status_1(call):
    status, _, err = call("--config=good.py", "--task=bug")
    assert status == 1
    assert "Traceback" in err and "ValueError: two plus two" in err


@pytest.mark.parametrize("flag", ["--help", "--helpfull", "--helpshort"])
def test_help(call, flag):
    status, out, err = call(flag)
    assert status == 0
    assert "--config" in out and "What to do." in out
    assert err == ""


@pytest.mark.parametrize(
    "sent, status, words",
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_ctrl_c_and_preemption(folder, sent, status, words):
    process = subprocess.Popen(
        [sys.executable, "door.py", "--config=good.py", "--task=sleep"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        # A shell starts background jobs with SIGINT ignored, and a child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(sent)
    _, err = process.communicate(timeout=20)
    assert process.returncode == status
    assert err == f"{words}: the same command resumes\n"


def test_did_you_mean():
    assert did_you_mean("lrr", ["lr", "steps"]) == "did you mean 'lr'?"
    assert did_you_mean("zzz", ["b", "a"]) == "valid: a, b"
    assert did_you_mean("zzz", []) == "there is nothing to choose from here"
    assert str(UserError("a\n  b")) == "a b"
