"""Compiled programs on disk: a second start of the same program does not compile it."""

import hashlib
import logging
import os
import platform
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from lmjax.config.compile import CompileConfig
from lmjax.errors import ConfigError

log = logging.getLogger(__name__)


def use_cache(config: CompileConfig) -> None:
    """Keep compiled programs in the directory of a config, and read them from there.

    Raises:
      ConfigError: the directory cannot be made.
    """
    directory = cache_directory(config)
    if directory and "://" not in directory:
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if config.cache != "auto":
                raise ConfigError(
                    f"config.compile.cache = {config.cache!r}: {error.strerror}"
                ) from error
            log.info("no cache of compiled programs: %s", error)
            return
    if directory != _current_directory():
        jax.config.update("jax_compilation_cache_dir", directory)
        compilation_cache.reset_cache()  # what was compiled before decided it for good


def cache_directory(config: CompileConfig) -> str | None:
    """Return the directory of compiled programs, None if there is none."""
    if config.cache != "auto":
        if not config.cache or "://" in config.cache:
            return config.cache or None
        return str(Path(config.cache).expanduser())
    if current := _current_directory():  # as the environment says
        return current
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return str(Path(root).expanduser() / "lmjax" / "compiled" / _host_kind())


def _current_directory() -> str | None:
    config: Any = jax.config
    return config.jax_compilation_cache_dir


def _host_kind() -> str:
    """Return a name of this kind of host.

    A program compiled for a CPU uses instructions that another one may lack, and a home
    directory may be shared by both.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    flags = next((x for x in lines if x.startswith(("flags", "Features"))), lines[0])
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
