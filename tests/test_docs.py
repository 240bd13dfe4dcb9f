"""The pages of docs/: links lead somewhere, and the names in them are real."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lmjax.cli.main import VERBS
from lmjax.cli.parser import parse_args
from lmjax.config.experiment import Config
from lmjax.config.parse import apply_override, load_module, to_builtins
from lmjax.data.clean.settings import choose
from tools.docs_site import PAGES, list_leaves, list_sections, write_config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FILES = sorted(DOCS.rglob("*.md"))
TEXTS = {file.relative_to(DOCS).as_posix(): file.read_text() for file in FILES}
WRITTEN = {name: write() for name, write in PAGES.items()}
EVERY = {**TEXTS, **WRITTEN}
LEAVES = {
    f"{path}.{leaf.name}".lstrip(".")
    for _, path, section in list_sections()
    for leaf in list_leaves(section)
}
SECTIONS = {path for _, path, _ in list_sections()} - {""}


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands(text):
    text = text.replace("\\\n", " ")
    fenced = "\n".join(blocks(text, "bash"))
    indented = "\n".join(re.findall(r"^    (.*)$", text, re.M))
    lines = f"{fenced}\n{indented}".splitlines()
    begins = ("lmjax ", "python tools/")
    return [line for line in lines if line.startswith(begins) and " ... " not in line]


COMMANDS = [(name, line) for name, text in TEXTS.items() for line in commands(text)]


def slug(heading):
    text = re.sub(r"[`*]|[^\w\s-]", "", heading.lower())
    return re.sub(r"[\s]+", "-", text.strip())


@pytest.mark.parametrize("name", EVERY)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", EVERY[name]):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        place = (Path("/") / name).parent / path if path else Path("/") / name
        found = place.resolve().as_posix().lstrip("/")
        assert found in EVERY or (DOCS / found).is_file(), f"{name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", EVERY[found], re.M)
            assert anchor in map(slug, headings), f"{name}: {target}"


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_commands_are_real(name, command):
    """Verbs, flags, and where an experiment is named, the leaves of its config."""
    program, *words = shlex.split(command)
    if program == "python":
        assert (ROOT / words[0]).is_file()
        return
    args = parse_args(words, VERBS)
    if args.verb == "clean":
        names = lambda text: [n for n in text.split(",") if n not in ("none", "")]
        choose(
            rules=names(args.rules),
            limits=args.limit,
            personal=names(args.personal),
            patterns=args.pattern,
        )
    file, _, argument = getattr(args, "config", "").partition(":")
    if not file:
        assert all(o.partition("=")[0] in LEAVES for o in args.overrides), command
        return
    config = load_module(str(ROOT / file)).get_config(*([argument] if argument else []))
    problems = []
    for override in args.overrides:
        apply_override(Config, to_builtins(config), override, problems)
    assert not problems


@pytest.mark.parametrize("name", TEXTS)
def test_python_compiles(name):
    for block in blocks(TEXTS[name], "python"):
        compile(block, name, "exec")


@pytest.mark.parametrize("name", TEXTS)
def test_leaves_in_the_text_exist(name):
    roots = "|".join(sorted({path.partition(".")[0] for path in SECTIONS}))
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", TEXTS[name]):
        found = re.match(rf"(?:--config\.)?((?:{roots})\.[a-z_0-9.]+)", code)
        if found and not found[1].endswith((".json", ".html", ".py")):
            leaf = found[1].rstrip(".")
            assert leaf in LEAVES | SECTIONS, f"{name}: {code}"


def test_the_reference_tells_every_leaf_and_verb():
    page = write_config()
    for leaf in ("model.num_heads", "data.encoding", "optim.prune.method", "seed"):
        assert f"| `{leaf}` |" in page
    assert "| `data.length` | `int >= 1` | `1024` | tokens in a row" in page
    untold = [leaf for leaf in LEAVES if f"| `{leaf}` |" not in page]
    assert not untold
    for verb in VERBS:
        assert f"## lmjax {verb}\n" in WRITTEN["reference/commands.md"]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install 'lmjax[docs]'")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q"]
    done = subprocess.run(
        [*command, f"--site-dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "reference/api/index.html").read_text()
    assert "LanguageModel" in page and "lm.generate" not in page
    assert "num_heads" in (tmp_path / "reference/config/index.html").read_text()
