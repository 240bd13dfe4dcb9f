"""Machines are found by their names; what does not exist gets the nearest that does."""

import re

import pytest

from lmjax.errors import UserError
from tools.launch.topology import GPUS, TPUS, parse_topology


@pytest.mark.parametrize(
    ("text", "num_hosts", "chips_per_host", "machine"),
    [
        ("tpu-v5p:4x4x4", 16, 4, "ct5p-hightpu-4t"),
        ("tpu:v5p:4x4x4", 16, 4, "ct5p-hightpu-4t"),
        ("TPU-v5p:2x2x1", 1, 4, "ct5p-hightpu-4t"),
        ("tpu-v5p:16x16x24", 1536, 4, "ct5p-hightpu-4t"),
        ("tpu-v5p:4x4x244", 976, 4, "ct5p-hightpu-4t"),
        ("tpu-v4:8x8x8", 128, 4, "ct4p-hightpu-4t"),
        ("tpu-v5e:1x1", 1, 1, "ct5lp-hightpu-1t"),
        ("tpu-v5e:16x16", 64, 4, "ct5lp-hightpu-4t"),
        ("tpu-v6e:2x4", 2, 4, "ct6e-standard-4t"),
        ("tpu-v7x:4x4x8", 32, 4, "tpu7x-standard-4t"),
        ("tpu7x:4x4x8", 32, 4, "tpu7x-standard-4t"),
        ("gpu:h200:8x2", 2, 8, "a3-ultragpu-8g"),
        ("gpu:gb200:4x18", 18, 4, "a4x-highgpu-4g"),
        ("gpu:h100:1x1", 1, 1, "a3-highgpu-1g"),
    ],
)
def test_hosts_and_machines(text, num_hosts, chips_per_host, machine):
    topology = parse_topology(text)
    assert topology.num_hosts == num_hosts
    assert topology.chips_per_host == chips_per_host
    assert topology.machine_type == machine


def test_nodes_are_selected_by_the_labels_of_google():
    assert parse_topology("tpu-v5p:4x4x4").node_selector == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }
    assert parse_topology("gpu:h200:8x2").node_selector == {
        "cloud.google.com/gke-accelerator": "nvidia-h200-141gb"
    }


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("tpu-v5p:4x4x5", "'4x4x4'"),
        ("tpu-v5p:4x8x4", "'4x4x8'"),
        ("tpu-v5p:64", "'4x4x4'"),
        ("tpu-v5p:0x4x4", "'2x2x1'"),
        ("tpu-v5p:9999x9999x9999", "'16x20x28'"),
        ("tpu-v6e:4x4x4", "'8x8'"),
        ("tpu-v6e:32x32", "'16x16'"),
        ("tpu-v5:4x4", "'tpu-v5"),
        ("v5p:4x4x4", "'tpu-v5p'"),
        ("gpu:h201:8x2", "'gpu:h20"),
        ("h200:8x2", "'gpu:h200'"),
        ("gpu:h200:4x2", "'gpu:h200:8x2'"),
        ("gpu:h200:8", "'gpu:h200:8x1'"),
        ("gpu:h200:8x0", "'gpu:h200:8x1'"),
        ("gpu:h200", "'gpu:h200'"),
        ("gpu:l4:3x٣", "'gpu:l4:"),
    ],
)
def test_the_nearest_machine_is_named(text, hint):
    with pytest.raises(UserError, match=re.escape(hint)) as error:
        parse_topology(text)
    assert str(error.value).startswith(f"--topology={text}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", ":", "x", "tpu", "gpu:", "a:b:c", "4x4x4", "::"])
def test_all_kinds_are_listed(text):
    with pytest.raises(UserError, match=r"kinds: tpu-v4, .*gpu:gb200$"):
        parse_topology(text)


def test_every_machine_of_the_table_is_found():
    names = [f"{kind}:{s}" for kind, tpu in TPUS.items() for s in tpu.all_shapes()]
    names += [f"gpu:{k}:{n}x3" for k, gpu in GPUS.items() for n in gpu.machines]
    assert len(names) > 300
    for name in names[::9]:
        topology = parse_topology(name)
        assert topology.name == name
        assert topology.num_hosts * topology.chips_per_host == topology.num_chips
