"""The directory of one run: who works in it, and which experiment it holds."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from lmjax.config import Config, ConfigError, changed_identity, parse, to_dict


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold the workdir for this process alone.

    Raises:
      ConfigError: it cannot be made, or another process holds it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("a+")
    except OSError as error:
        raise ConfigError(
            f"--workdir={workdir}: cannot be written: {error.strerror}"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ConfigError(
                f"--workdir={workdir}: in use by process {holder}"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def read_config(workdir: Path) -> Config:
    """Return the config of the run in `workdir`.

    Raises:
      ConfigError: there is none, or it cannot be read.
    """
    path = workdir / "config.json"
    try:
        return parse(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise ConfigError(
            f"--workdir={workdir}: holds no run (no config.json)"
        ) from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not to be parsed
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def write_config(workdir: Path, config: Config) -> None:
    """Save the config, replacing the earlier one whole."""
    part = workdir / "config.json.part"
    part.write_text(json.dumps(to_dict(config), indent=2) + "\n")
    part.replace(workdir / "config.json")


def has_checkpoints(workdir: Path) -> bool:
    """Return whether there is a run here whose work could be lost."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def refuse_other_run(workdir: Path, config: Config) -> None:
    """Raise if the workdir holds a run of another model or other data.

    Raises:
      ConfigError: naming each leaf that changed and must not.
    """
    if not has_checkpoints(workdir):
        return
    before = read_config(workdir)
    if before.data.source == "none":
        raise ConfigError(
            f"--workdir={workdir}: holds an imported model; train from it in another "
            f"workdir, with --config.init_from={workdir}"
        )
    changed = changed_identity(before, config)
    if changed:
        raise ConfigError(
            f"--workdir={workdir}: holds another run: {'; '.join(changed)} "
            "(take these back, or choose another --workdir)"
        )


def refuse_other_text(workdir: Path, identity: dict[str, str]) -> None:
    """Raise if a run goes on with other text or another tokenizer; else note them.

    Args:
      workdir: of the run.
      identity: what each is now, as hashes: {"config.data": ..., ...}.

    Raises:
      ConfigError: naming what changed.
    """
    path = workdir / "data.json"
    if has_checkpoints(workdir) and path.exists():
        before = json.loads(path.read_text())
        changed = [name for name, value in identity.items() if before[name] != value]
        if changed:
            raise ConfigError(
                f"--workdir={workdir}: the text or vocabulary behind "
                f"{' and '.join(changed)} is not what this run was trained on"
            )
    path.write_text(json.dumps(identity, indent=2) + "\n")
