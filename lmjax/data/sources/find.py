"""Which files a source reads: those of a glob, or of a directory and its splits."""

import glob
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lmjax.config.data import SourceConfig
from lmjax.data.sources.documents import expand_path
from lmjax.data.sources.plain import SUFFIXES as COMPRESSED
from lmjax.data.sources.plain import strip_suffix
from lmjax.data.sources.text import read_errors
from lmjax.errors import ConfigError
from lmjax.storage.paths import find_remote, glob_remote, is_remote, open_path

Split = Literal["train", "valid", "test"]
_LEAVES = {"train": "path", "valid": "valid_path", "test": "test_path"}
# The suffixes of the files that a source reads of a directory; (): all.
_SUFFIXES: dict[str, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather", ".ipc"),
    "squad": (".json",),
}
_SUFFIXES["chat"] = (
    *_SUFFIXES["jsonl"],
    *_SUFFIXES["parquet"],
    *_SUFFIXES["arrow"],
)
# Files that say what others hold, as the library `datasets` writes them.
_NOTES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_NUMBERED = re.compile(r"(.+)-\d+-of-\d+\b")
_CACHED = re.compile(r"cache-\w+\.arrow")
# The words in names of files and directories that say of which split they are: those
# that `datasets` knows.
_SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_MAX_NAMED = 5
_HUB = "hf://"

_log = logging.getLogger(__name__)


class SplitFiles(NamedTuple):
    """The files of a split, or those that it is held out from."""

    files: list[Path]
    leaf: str  # dotted path of the leaf that names them
    held_out: bool  # they are those of train and valid together


def find_split(config: SourceConfig, split: Split, *, path: str) -> SplitFiles | None:
    """Return the files of a split; None where the source has no such split.

    A directory whose files are all named by splits has several.

    Raises:
      ConfigError: there are no such files.
    """
    own = _LEAVES[split]
    if pattern := getattr(config, own):
        leaf = f"{path}.{own}"
        files = find_files(pattern, path=leaf, source=config.source, split=split)
        shared = split == "train" and not config.valid_path
        held_out = shared and "valid" not in splits_of(config, path)
        return SplitFiles(files, leaf, held_out)
    leaf = f"{path}.path"
    if split in splits_of(config, path):
        files = find_files(config.path, path=leaf, source=config.source, split=split)
        return SplitFiles(files, leaf, held_out=False)
    if split == "test":
        return None
    files = find_files(config.path, path=leaf, source=config.source, split="train")
    return SplitFiles(files, leaf, held_out=True)


def find_files(
    pattern: str,
    *,
    path: str,
    source: str = "text",
    split: Split | Literal["all"] = "train",
) -> list[Path]:
    """Return the files that match a glob, or lie in a directory; sorted.

    Args:
      pattern: a glob or a directory, in which `~` is expanded.
      path: dotted path of the pattern in the config.
      source: that reads them; of a directory only files with its suffixes count.
      split: of a directory whose files are named by splits, those of this one, or all.

    Raises:
      ConfigError: there is none.
    """
    whole = _locate(pattern, path=path, source=source)
    if _is_directory(whole, path=path):
        if split == "all":
            return _list_directory(whole, source=source, path=path, tell=False)
        named = _named_by_splits(whole, source=source, path=path, tell=True)
        files = named.get(split) or named.get("", [])
        if not files:
            there = ", ".join(named)
            raise ConfigError(
                f"{path} = {pattern!r}: its files are those of {there}, none of {split}"
            )
        return files
    if is_remote(whole):
        return _find_remote_files(whole, path=path)
    names = glob.glob(str(whole), recursive=True)  # noqa: PTH207
    matches = [Path(name) for name in names]
    files = sorted(file for file in matches if not file.is_dir())
    if not files:
        why = "matches only directories" if matches else "matches no file"
        raise ConfigError(f"{path} = {pattern!r}: {why}")
    return files


def _locate(pattern: str, *, path: str, source: str) -> Any:
    """Return a path: that of a pattern, or of a dataset of the hub, fetched."""
    if pattern.startswith(_HUB) and not pattern.startswith(f"{_HUB}datasets/"):
        suffixes = _SUFFIXES.get(source, ())
        return fetch_dataset(pattern, path=path, suffixes=suffixes)
    return expand_path(pattern, leaf=path)


def fetch_dataset(address: str, *, path: str, suffixes: Sequence[str]) -> Path:
    """Return a local copy of hf://ORG/NAME[/FOLDER], by huggingface_hub's cache.

    Args:
      address: of a dataset of the hub, and a folder in it.
      path: dotted path of the address in the config.
      suffixes: of the files to fetch; (): all.

    Raises:
      ConfigError: it cannot be fetched.
    """
    place = f"{path} = {address!r}"
    org, slash, rest = address.removeprefix(_HUB).partition("/")
    name, _, folder = rest.partition("/")
    if not (org and slash and name):
        raise ConfigError(f"{place}: must be hf://ORG/NAME, or with /FOLDER or /FILES*")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"{place}: needs a package that is not installed: pip install 'lmjax[hf]'"
        ) from error
    below = f"{folder.rstrip('/')}/" if folder else ""
    endings = [f"{s}{c}" for s in suffixes for c in ("", *COMPRESSED)] or [""]
    patterns = [f"{below}*{ending}" for ending in endings]
    if glob.has_magic(folder) or folder.endswith(tuple(filter(None, endings))):
        patterns = [folder]
    try:
        found = snapshot_download(
            f"{org}/{name}", repo_type="dataset", allow_patterns=patterns
        )
    except Exception as error:  # of many classes: network, name, licence
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{place}: cannot be fetched: {first}") from error
    return Path(found) / folder


def _is_directory(whole: Path, *, path: str) -> bool:
    if is_remote(whole) and glob.has_magic(str(whole)):
        return False
    with read_errors(whole, path=path):
        return whole.is_dir()


def splits_of(config: SourceConfig, path: str) -> Sequence[str]:
    """Return the splits that the files of `config.path` are named by."""
    whole = _locate(config.path, path=f"{path}.path", source=config.source)
    if not _is_directory(whole, path=f"{path}.path"):
        return ()
    return [*_named_by_splits(whole, source=config.source, path=f"{path}.path")]


def _named_by_splits(
    directory: Path, *, source: str, path: str, tell: bool = False
) -> dict[str, list[Path]]:
    """Return the files of a directory by their splits, or all under ""."""
    files = _list_directory(directory, source=source, path=path, tell=tell)
    splits = [_find_split_word(file, directory) for file in files]
    if not all(splits):
        return {"": files}
    _check_one_set(files, splits, directory, path=path)
    return {
        split: [file for file, own in zip(files, splits, strict=True) if own == split]
        for split in ("train", "valid", "test")
        if split in splits
    }


def _check_one_set(
    files: Sequence[Path], splits: Sequence[str], directory: Path, *, path: str
) -> None:
    """Check that the numbered files of a split are those of one data set.

    Raises:
      ConfigError: there are several, such as train_sft and train_gen.
    """
    start = len(str(directory)) + 1
    names: dict[str, dict[str, None]] = {}
    for file, split in zip(files, splits, strict=True):
        if match := _NUMBERED.match(str(file)[start:]):
            names.setdefault(split, {})[match[1]] = None
    for split, found in names.items():
        if len(found) > 1:
            listed = [*found]
            more = " and more" * (len(listed) > _MAX_NAMED)
            raise ConfigError(
                f"{path} = {str(directory)!r}: has several sets for {split}: "
                f"{', '.join(listed[:_MAX_NAMED])}{more}; name the files of one, as in "
                f"{listed[0]}-*"
            )


def _find_split_word(file: Path, directory: Path) -> str:
    """Return the split that the name of a file, or of its directory, says; "": none."""
    relative = str(file)[len(str(directory)) :].lower()
    words = re.split(r"[^a-z]+", relative)
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), "")


def _list_directory(
    directory: Path, *, source: str, path: str, tell: bool
) -> list[Path]:
    """Return the files below a directory that a source reads; tell the others."""
    with read_errors(directory, path=path):
        remote = is_remote(directory)
        below = find_remote(directory) if remote else directory.rglob("*")
        found = sorted(file for file in below if remote or file.is_file())
    start = len(str(directory))
    visible = [file for file in found if "/." not in str(file)[start:]]
    suffixes = _SUFFIXES.get(source, ())
    files = [file for file in visible if _is_read(file, suffixes)]
    if not files:
        kinds = Counter(strip_suffix(file) or file.name for file in visible)
        there = ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common(_MAX_NAMED))
        wanted = " or ".join(suffixes) or "readable"
        raise ConfigError(
            f"{path} = {str(directory)!r}: this directory has no {wanted} file; it has "
            f"{there or 'no file'}"
        )
    kept = {*files}
    left_out = [file for file in found if file not in kept]
    if left_out and tell:
        names = [str(file)[start + 1 :] for file in left_out]
        more = len(names) - _MAX_NAMED
        named = ", ".join(names[:_MAX_NAMED]) + (f" and {more:,} more" * (more > 0))
        counts = len(left_out), len(found)
        _log.warning("%s: left out %d of %d files: %s", path, *counts, named)
    return files


def _is_read(file: Path, suffixes: Sequence[str]) -> bool:
    if file.name in _NOTES or _CACHED.fullmatch(file.name):
        return False
    return not suffixes or strip_suffix(file).lower() in suffixes


def _find_remote_files(pattern: Any, *, path: str) -> list[Path]:
    with read_errors(pattern, path=path):
        matches = glob_remote(pattern)
        bucket = open_path("/".join(str(pattern).split("/")[:3]))
        if not matches and not bucket.exists():
            raise ConfigError(f"{path} = {str(pattern)!r}: there is no {bucket}")
    if not matches:
        raise ConfigError(f"{path} = {str(pattern)!r}: matches no file")
    return matches
