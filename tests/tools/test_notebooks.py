"""The notebooks of docs/notebooks: built from their sources, small, public, running."""

import ast
import json
import re
import sys

import pytest

import lmjax
from lmjax.inference.language_model import LanguageModel
from tools import notebooks

SOURCES = notebooks.sources()
# What makes each small enough to run in seconds.
SMALL = {
    "1_words_and_vectors": """
PACKAGES, MIN_COUNT = ("matplotlib", "email", "numpy"), 5
NUM_STEPS, DIM = 8, 8
""",
    "2_a_recurrent_model": """
PACKAGES, NUM_CHARACTERS = ("email", "logging"), 60_000
NUM_STEPS, HIDDEN = 6, 8
""",
    "3_a_transformer": """
NUM_STEPS, DIM, NUM_LAYERS, VOCABULARY = 6, 16, 1, 400
OWN_TEXT = importlib.util.find_spec("json").origin.replace("__init__", "*")
""",
    "4_pretrain_and_fine_tune": """
PACKAGES, NUM_LABELLED, NUM_HELD_OUT = ("email", "tkinter"), 40, 20
PRETRAIN_STEPS, FINE_TUNE_STEPS = 6, 6
DIM, NUM_LAYERS, VOCABULARY = 16, 1, 400
""",
    "5_translate_with_attention": """
NUM_PAIRS, NUM_HELD_OUT, NUM_STEPS, DIM = 200, 8, 6, 8
""",
}
PACKAGES = {"IPython", "matplotlib", "numpy", "lmjax"}  # besides Python's own


def test_every_notebook_is_tested():
    assert [source.stem for source in SOURCES] == [*SMALL]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_notebook_is_built_from_its_source_and_is_small(source):
    target = source.with_suffix(".ipynb")
    built, saved = notebooks.build(source), json.loads(target.read_text())
    cells = [[cell["source"] for cell in one["cells"]] for one in (built, saved)]
    assert cells[0] == cells[1], "python tools/notebooks.py builds it"
    assert target.stat().st_size < 1_000_000


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_notebook_uses_the_public_interface_alone(source):
    code = notebooks.code(notebooks.build(source))
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            assert not any(name.startswith("lmjax.") for name in names)
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            assert not names[0].startswith("lmjax")
        elif isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_")
            continue
        else:
            continue
        roots = {name.split(".")[0] for name in names}
        assert roots <= PACKAGES | sys.stdlib_module_names
    for owner, attributes in ((lmjax, "lmjax"), (LanguageModel, "(?:lm|bert)")):
        for name in set(re.findall(rf"\b{attributes}\.(\w+)", code)):
            fields = getattr(owner, "__dataclass_fields__", {})
            assert hasattr(owner, name) or name in fields, f"{attributes}.{name}"


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_notebook_runs(source, tmp_path):
    pytest.importorskip("nbclient", reason="runs notebooks: pip install 'lmjax[dev]'")
    pytest.importorskip("ipykernel", reason="runs notebooks: pip install 'lmjax[dev]'")
    done = notebooks.run(
        notebooks.build(source), SMALL[source.stem], directory=tmp_path
    )
    cells = notebooks.code_cells(notebooks.clean(done))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert not any(output["output_type"] == "error" for output in outputs)


def test_outputs_are_kept_while_the_cells_are_the_same():
    old = {"cells": [{"source": ["a"], "outputs": [1]}]}
    same, other = ({"cells": [{"source": [text]}]} for text in "ab")
    assert notebooks.keep_outputs(same, old) is old
    assert notebooks.keep_outputs(other, old) is other
    bar = {"output_type": "display_data", "data": {"application/widget": 1}}
    assert notebooks.clean_output(bar) == []
    assert notebooks.clean_output({"output_type": "stream", "name": "stderr"}) == []
