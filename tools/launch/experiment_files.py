"""The Python files of an experiment: its own, and those that it imports."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import lmjax
from lmjax.errors import UserError

# Last on the path, as in `lmjax.config.parse.import_path`: what lies beside lmjax.
BESIDE = Path(lmjax.__file__).parents[1]


def collect(config: str) -> tuple[str, dict[str, str]]:
    """Return an experiment as it looks below another root.

    That is the root of the package that it is in. All else that it imports must be
    installed, as lmjax is.

    Args:
      config: FILE.py, or FILE.py:ARG.

    Returns:
      The config, relative to the root, and the text of each file by its path.

    Raises:
      UserError: a file cannot be read.
    """
    path, separator, argument = config.partition(".py:")
    file = Path(path + ".py" if separator else path).resolve()
    root = file.parent
    while (root / "__init__.py").exists():
        root = root.parent
    texts: dict[str, str] = {}
    todo = [file]
    while todo:
        now = todo.pop()
        base = root if now.is_relative_to(root) else BESIDE
        name = now.relative_to(base).as_posix()
        if name in texts:
            continue
        texts[name] = _read(now)
        todo += (p / "__init__.py" for p in now.parents if p.is_relative_to(base))
        todo.remove(base / "__init__.py")
        todo += _imported(texts[name], now, (root, BESIDE))
    own = file.relative_to(root).as_posix()
    return f"{own}{separator and ':'}{argument}", dict(sorted(texts.items()))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"{path}: {why}") from error


def _imported(text: str, file: Path, roots: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the files below the roots that a file imports."""
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        starts: Sequence[Path] = roots
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
            if node.level:
                starts = file.parents[node.level - 1 : node.level]
        for name in names:
            parts = [part for part in name.split(".") if part]
            if not parts or parts[0] == "lmjax":
                continue
            found = _find(parts, starts)
            yield from (f for f in found if any(f.is_relative_to(r) for r in roots))


def _find(parts: list[str], starts: Sequence[Path]) -> list[Path]:
    """Return the file of a module below the first of the directories that has it."""
    for start in starts:
        path = start.joinpath(*parts)
        for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
            if file.is_file():
                return [file]
    return []
