"""The one table of chips."""

import pytest

from lmjax.parallel.chips import CHIPS, find_chip


def test_names_are_exact():
    for names in ([c.name for c in CHIPS], [c.kind for c in CHIPS]):
        assert len(names) == len(set(names))
    for unknown in ("NVIDIA L4", "NVIDIA L40"):
        assert find_chip(unknown).kind == unknown
    assert find_chip("NVIDIA L400") is None


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_figures_are_plausible(chip):
    assert 1e14 < chip.flops["bfloat16"] < 1e16
    assert chip.flops.get("float8", 0.0) <= 2.1 * chip.flops["bfloat16"]
    assert 2**33 < chip.memory < 2**38
    assert 2e11 < chip.bandwidth < 1e13
    assert chip.link_bandwidth < chip.bandwidth
