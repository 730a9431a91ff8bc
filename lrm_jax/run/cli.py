"""The frame around every door: flags, exit statuses and error lines."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections.config_flags import config_flags

from lrm_jax.run import config as typed_config
from lrm_jax.run import preemption, processes
from lrm_jax.run.errors import UserError, did_you_mean, one_line

OK, FAILED, USER_ERROR, INTERRUPTED, TERMINATED = 0, 1, 2, 130, preemption.STATUS
_config_names: list[str] = []  # the flags that define_config made
flags.disclaim_key_flags()  # `--help` of a door lists flags defined through here as the door's own


def run_app(main: Callable[[list[str]], Any], argv: Sequence[str] | None = None) -> NoReturn:
    """Parses the absl flags, calls `main(argv)` and exits.

    Exit status: 0 done (also `--help`, `--helpfull`); 2 the user's input is wrong (`UserError`,
      flags,
    a config file that is missing, raises or lacks an overridden key), with one line on stderr;
    130 interrupted, with one line; 143 SIGTERM, as a preemption sends, with one line;
    1 anything else, with the traceback.

    Args:
      main: gets the program's name and the arguments that are not flags.
      argv: the whole command line, `sys.argv` if None.
    """
    status = _status(main, list(sys.argv if argv is None else argv))
    sys.stdout.flush()
    sys.stderr.flush()
    if status != OK:
        with contextlib.suppress(Exception):  # what failed may be the line to the others
            processes.leave(status)
    sys.exit(status)


def define_config(name: str = "config", required: bool = True) -> flags.FlagHolder:
    """Defines `--config=FILE.py[:ARG]` with `--config.key=value` overrides.

    Call it at the top level of a door. The value is a locked `ConfigDict`.
    """
    holder = config_flags.DEFINE_config_file(
        name,
        None,
        "A Python file with get_config(), as FILE.py or FILE.py:ARG; "
        f"--{name}.KEY=VALUE overrides what it returns.",
    )
    _config_names.append(name)
    if required:
        flags.mark_flag_as_required(name)
    return holder


def config_name(name: str = "config") -> str:
    """The parsed config's name for folders: "quickstart", with an argument "quickstart_ARG"."""
    path, _, argument = flags.FLAGS[name].config_filename.partition(":")
    stem = os.path.splitext(os.path.basename(path))[0]
    return re.sub(r"[^\w.=-]+", "_", f"{stem}_{argument}" if argument else stem)


def reject_arguments(argv: Sequence[str]) -> None:
    """UserError if `main` was given arguments that are not flags."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: settings are given as --flag=value")


def _status(main: Callable[[list[str]], Any], argv: list[str]) -> int:
    preemption.install()
    try:
        try:
            rest = _parse(argv)
        except SystemExit:  # --help and its kin print and exit; errors of parsing raise
            return OK
        _quiet_logs()
        main(rest)
        return OK
    except UserError as error:
        _say(f"error: {error}")
        return USER_ERROR
    except app.UsageError as error:
        _say(f"error: {error}")
        return USER_ERROR
    except KeyboardInterrupt:
        # A second Ctrl-C during the way out must not show a traceback either.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _say("interrupted: the same command resumes")
        return INTERRUPTED
    except preemption.Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _say("terminated: the same command resumes")
        return TERMINATED
    except SystemExit as error:
        code = error.code
        return code if isinstance(code, int) else OK if code is None else FAILED
    except BaseException:
        traceback.print_exc()
        return FAILED


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)


def _parse(argv: list[str]) -> list[str]:
    app.define_help_flags()
    _check_config_files(argv)
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        known = [n for n in flags.FLAGS if "." not in n]
        raise UserError(
            f"unknown flag --{error.flagname}: {did_you_mean(error.flagname, known)}"
        ) from error
    except flags.Error as error:
        if "Error whilst parsing config file" in str(error):  # holds a whole traceback
            raise _explain(error, argv) from error
        if isinstance(error, config_flags.UnsupportedOperationError):
            raise UserError(
                f"--config: {str(error).split('Currently')[0]}; set it in the file"
            ) from error
        message = str(error).removeprefix("flag ")
        if missing := re.search(r"Flag (--\w+) must have a value other than None", message):
            message = f"{missing.group(1)} is needed: give {missing.group(1)}=VALUE; see --help"
        raise UserError(message) from error
    except UserError as error:  # raised by get_config itself
        raise UserError(f"--config: {error}") from error
    except Exception as error:  # config files are programs: they raise what they like
        raise _explain(error, argv) from error


def _config_values(argv: Sequence[str]) -> Iterable[tuple[str, str]]:
    """(flag name, FILE.py[:ARG]) for each config flag on the command line."""
    for name in _config_names:
        for i, arg in enumerate(argv[1:], 1):
            if arg == "--":
                break
            if re.fullmatch(rf"--?{re.escape(name)}", arg) and i + 1 < len(argv):
                yield name, argv[i + 1]
            elif match := re.match(rf"--?{re.escape(name)}=(.*)", arg, re.DOTALL):
                yield name, match.group(1)


def _check_config_files(argv: Sequence[str]) -> None:
    for name, value in _config_values(argv):
        path = value.partition(":")[0]
        if os.path.isfile(path):
            continue
        folder = os.path.dirname(path) or "."
        near = []
        if os.path.isdir(folder):
            near = [
                os.path.join(os.path.dirname(path), n)
                for n in os.listdir(folder)
                if n.endswith(".py")
            ]
        hint = (
            did_you_mean(path, near) if near else "give the path of a Python file with get_config()"
        )
        raise UserError(f"--{name}: {path!r} does not exist: {hint}")


def _explain(error: Exception, argv: Sequence[str]) -> UserError:
    """What went wrong while a config file was loaded or a key of it overridden."""
    for name, value in _config_values(argv):
        try:
            loaded = config_flags.ConfigFileFlagParser(name=name).parse(value)
        except Exception as inner:
            return UserError(f"--{name}: {_where(inner, value)}")
        if not hasattr(loaded, "items"):
            return UserError(
                f"--{name}: get_config() in {value} returned {type(loaded).__name__}: "
                "it must return a ConfigDict"
            )
        for arg in argv[1:]:
            match = re.match(rf"--?(?:no)?{re.escape(name)}\.([^=]+)", arg)
            unknown = _unknown_key(loaded, match.group(1)) if match else None
            if unknown:
                return UserError(f"--{name}.{match.group(1)}: {unknown}")
    return UserError(f"the command line was not understood: {type(error).__name__}: {error}")


def _unknown_key(loaded: Any, key: str) -> str | None:
    here, walked = loaded, []
    for part in key.split("."):
        if not hasattr(here, "keys"):
            return f"{'.'.join(walked)} is a value, not a group of settings"
        if part not in here:
            return f"unknown key {part!r}: {did_you_mean(part, here.keys())}"
        here = here[part]
        walked.append(part)
    return None


def _where(error: Exception, value: str) -> str:
    """One line for an exception out of a config file: file, line, type, message."""
    path, _, argument = value.partition(":")
    cause: BaseException = error
    # ml_collections wraps TypeError and ValueError in a new one whose message is a whole traceback.
    while cause.__context__ is not None and "Error whilst parsing config file" in str(cause):
        cause = cause.__context__
    if isinstance(cause, UserError):
        return f"{path}: {cause}"
    if isinstance(cause, SyntaxError):
        return f"{cause.filename}, line {cause.lineno}: {cause.msg}"
    if isinstance(cause, AttributeError) and "get_config" in str(cause):
        return f"{path} has no function get_config()"
    frames = traceback.extract_tb(cause.__traceback__)
    lines = [f.lineno for f in frames if os.path.abspath(f.filename) == os.path.abspath(path)]
    at = f"{path}, line {lines[-1]}" if lines else path
    if isinstance(cause, TypeError) and "get_config()" in str(cause) and not lines:
        took = f"the argument {argument!r}" if argument else "no argument (give one as FILE.py:ARG)"
        return f"{path}: get_config cannot be called with {took}"
    return f"{at}: {type(cause).__name__}: {cause}"


def _quiet_logs() -> None:
    if flags.FLAGS["verbosity"].using_default_value:
        # Orbax reports each step of a save at INFO.
        absl_logging.set_verbosity(absl_logging.WARNING)


def build(cls: type[typed_config.T], holder: flags.FlagHolder) -> typed_config.T:
    """`config.build(cls, ...)` of a flag that `define_config` made; messages name its keys."""
    return typed_config.build(cls, holder.value, key=holder.name)
