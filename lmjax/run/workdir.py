"""The directory of one run: who works in it, and which experiment it holds."""

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.config.experiment import Config, parse, to_dict
from lmjax.config.parse import list_changes
from lmjax.errors import ConfigError, UserError


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


def read_config(workdir: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the config of the run in `workdir`.

    Args:
      workdir: of a run.
      overrides: `a.b=value` of leaves that may differ when a run resumes, and of
        `data`: what a trained model is used on may be something else. An imported one
        has no run that says what it is for: there also of `task`.

    Raises:
      ConfigError: there is none, or it cannot be read, or an override is of what the
        run was trained with.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise ConfigError(f"--workdir={workdir}: holds no run (no config.json)")
    values = read_json(path)
    try:
        config = parse(values)
    except UserError as error:
        raise ConfigError(f"{path}: {error}") from error
    used = parse(to_dict(config), overrides)
    free = ("data", "task") if config.data.source == "none" else ("data",)
    own = {section: getattr(config, section) for section in free}
    if others := list_changes(config, dataclasses.replace(used, **own)):
        raise ConfigError(f"{others[0]}: a trained model is used as the run has it")
    return used


def write_config(workdir: Path, config: Config) -> None:
    """Save the config, replacing the earlier one whole.

    Raises:
      ConfigError: it cannot be written.
    """
    write_json(workdir / "config.json", to_dict(config))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file of JSON.

    Raises:
      ConfigError: there is none.
    """
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or nested too deep
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as JSON if it is not there already: whole, or not at all."""
    text = json.dumps(values, indent=2) + "\n"
    part = path.with_name(path.name + ".part")
    try:
        if path.exists() and path.read_bytes() == text.encode():
            return
        part.write_text(text)
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


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
    changed = list_changes(before, config)
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
    before = read_json(path) if has_checkpoints(workdir) and path.exists() else None
    if before == identity:
        return
    if before is not None:
        changed = [
            name for name, value in identity.items() if before.get(name) != value
        ]
        raise ConfigError(
            f"--workdir={workdir}: the text or vocabulary behind "
            f"{' and '.join(changed)} is not what this run was trained on"
        )
    write_json(path, identity)
