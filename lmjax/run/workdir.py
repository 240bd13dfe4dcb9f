"""The directory of one run: its lock, its config, and the data it was trained on."""

import contextlib
import dataclasses
import logging
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from lmjax.config.experiment import Config, parse, to_dict
from lmjax.config.parse import keep_known, list_changes
from lmjax.config.task import TaskConfig
from lmjax.errors import ConfigError, UserError
from lmjax.fileio import (
    read_json,
    remove_partial_files,
    try_lock,
    write_bytes,
    write_errors,
    write_json,
)
from lmjax.parallel import processes
from lmjax.run.checkpoint_record import COMMITTED
from lmjax.storage.paths import is_remote

log = logging.getLogger(__name__)

COMPRESSED = "compress.json"  # in a workdir that `lmjax compress` has made

_KIND = "task.kind="
_MARKER = ".seen"  # written by the first process, read by the others
_VISIBLE_SECONDS = 30.0  # in which a file of one host must appear on the others


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Hold the lock of a workdir; the first of several processes holds it for all.

    Raises:
      UserError: the workdir cannot be written, or another run holds it.
    """
    with contextlib.ExitStack() as held:
        with processes.sync_errors():
            if processes.is_first():
                held.enter_context(try_lock(workdir, flag="--workdir"))
                remove_partial_files(workdir)
        _check_visible(workdir)
        yield


def _check_visible(workdir: Path) -> None:
    """Check that all processes see what the first one writes into the workdir.

    Raises:
      UserError: they do not; a host on which it is another directory is named.
    """
    if not processes.several_processes():
        return
    token = processes.allgather_strings(uuid.uuid4().hex)[0]
    marker = workdir / _MARKER
    host = socket.gethostname()
    with processes.sync_errors():
        if processes.is_first():
            write_bytes(marker, token.encode())
    with processes.sync_errors():
        deadline = time.monotonic() + _VISIBLE_SECONDS
        while not processes.is_first() and _read(marker) != token:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--workdir={workdir}: host {host} does not see what the first "
                    "process wrote there; it must be on storage that all hosts share"
                )
            time.sleep(0.5)
    with processes.sync_errors():
        if processes.is_first():
            with write_errors(marker):
                marker.unlink(missing_ok=True)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def read_config(workdir: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the config of the run in `workdir`.

    Args:
      workdir: the directory of a run.
      overrides: `a.b=value` of leaves that may change when a run resumes, and of
        `data`, since a trained model may be applied to other data. An imported model
        has no task of its own: there `task` may be overridden too.

    Raises:
      UserError: there is no run.
      ConfigError: an override changes what the model was trained with.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(f"--workdir={workdir}: holds no run (no config.json)")
    values = read_json(path)
    try:
        config = parse(values)
    except UserError as error:
        raise ConfigError(f"{path}: {error}") from error
    sections, is_imported = to_dict(config), config.data.source == "none"
    if is_imported and (kinds := [x for x in overrides if x.startswith(_KIND)]):
        kind = kinds[-1].removeprefix(_KIND).strip("'\"")
        sections["task"] = keep_known(TaskConfig, {**sections["task"], "kind": kind})
    overridden = parse(sections, overrides)
    free = ("data", "task") if is_imported else ("data",)
    trained = {section: getattr(config, section) for section in free}
    compared = dataclasses.replace(overridden, **trained)
    if changed := list_changes(config, compared):
        raise ConfigError(
            f"{changed[0]}: fixed by the trained run; cannot be overridden"
        )
    return overridden


def write_config(workdir: Path, config: Config) -> None:
    """Save the config of a run in place of an earlier one.

    Raises:
      UserError: it cannot be written.
    """
    write_json(workdir / "config.json", to_dict(config))


def has_checkpoints(workdir: Path) -> bool:
    """Return whether the workdir holds checkpoints of a run."""
    return any(
        path.name.isdigit() and (not is_remote(path) or (path / COMMITTED).exists())
        for path in (workdir / "checkpoints").glob("*")
    )


def check_same_run(workdir: Path, config: Config) -> None:
    """Check that a config can resume the run in the workdir, if there is one.

    Raises:
      UserError: the workdir holds another run; each leaf that differs is named.
    """
    if not has_checkpoints(workdir):
        return
    try:
        read_json(workdir / "config.json")
    except UserError as error:
        log.warning("%s; taken to be the config of this command", error)
        return
    before = read_config(workdir)
    made = "a compressed" if (workdir / COMPRESSED).exists() else "an imported"
    if before.data.source == "none" or made == "a compressed":
        raise UserError(
            f"--workdir={workdir}: holds {made} model; train from it in another "
            f"workdir, with --config.init_from={workdir}"
        )
    changed = list_changes(before, config)
    if changed:
        raise UserError(
            f"--workdir={workdir}: holds another run: {'; '.join(changed)} "
            "(undo these changes, or choose another --workdir)"
        )


def check_same_data(workdir: Path, fingerprints: dict[str, str]) -> None:
    """Check that a run resumes with the data it began with; a new run records it.

    Args:
      workdir: the directory of the run.
      fingerprints: of the data and the tokenizer, by the section of the config.

    Raises:
      UserError: the data or the tokenizer differs; the section is named.
    """
    path = workdir / "data.json"
    before = None
    if has_checkpoints(workdir) and path.exists():
        try:
            before = read_json(path)
        except UserError as error:
            log.warning("%s; taken to be the data of this command", error)
    if before == fingerprints:
        return
    if before is not None:
        changed = [
            name for name, value in fingerprints.items() if before.get(name) != value
        ]
        raise UserError(
            f"--workdir={workdir}: the text or vocabulary behind "
            f"{' and '.join(changed)} is not what this run was trained on"
        )
    write_json(path, fingerprints)


def keep_row_multiple(workdir: Path, row_multiple: int) -> int:
    """Return what divides the rows of this run's batches, as noted when it began.

    The buckets of examples follow from it, so it stays when the mesh changes. All
    processes must call it together.

    Args:
      workdir: the directory of the run.
      row_multiple: of the mesh in use, which a new run notes.

    Raises:
      UserError: it cannot be written.
    """
    return _keep_number(workdir, "rows.json", "row_multiple", row_multiple)


def keep_reference_step(workdir: Path, step: int) -> int:
    """Return the step of `init_from` that this run is compared with, as first noted.

    All processes must call it together.

    Args:
      workdir: the directory of the run.
      step: the newest of `init_from`, which a new run notes.

    Raises:
      UserError: it cannot be written.
    """
    return _keep_number(workdir, "reference.json", "step", step)


def _keep_number(workdir: Path, file: str, name: str, number: int) -> int:
    """Return the number that a run has noted in a file; a new run notes this one."""
    path = workdir / file
    with processes.sync_errors():
        if processes.is_first():
            noted = None
            if has_checkpoints(workdir) and path.exists():
                noted = _read_number(path, name)
            if noted is None:
                write_json(path, {name: number})
            number = number if noted is None else noted
    return int(processes.allgather_strings(str(number))[0])


def _read_number(path: Path, name: str) -> int | None:
    try:
        values = read_json(path)
    except UserError as error:
        log.warning("%s; taken to be that of a new run", error)
        return None
    found = values.get(name)
    if isinstance(found, int) and found >= 0:
        return found
    log.warning("%s: damaged; taken to be that of a new run", path)
    return None
