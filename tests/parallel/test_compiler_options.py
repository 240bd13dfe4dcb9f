"""Compiler options by device, and compiled programs on disk."""

import subprocess
import sys

import jax
import pytest

from lmjax.config.compile import CompileConfig
from lmjax.errors import ConfigError
from lmjax.parallel import compilation_cache
from lmjax.parallel.compiler_options import OPTIONS, choose_options, table_options
from lmjax.parallel.sharding import MeshConfig, make_mesh

SPARSE_CORE = "xla_tpu_enable_sparse_core_collective_offload_all_gather"
SCHEDULER = "xla_gpu_enable_latency_hiding_scheduler"
DETERMINISTIC = "xla_gpu_deterministic_ops"


@pytest.mark.parametrize(
    ("platform", "kind", "arguments", "has", "lacks"),
    [
        ("tpu", "TPU v5", {}, SPARSE_CORE, SCHEDULER),
        ("tpu", "TPU v5p", {}, SPARSE_CORE, SCHEDULER),
        ("tpu", "TPU v6 lite", {}, SPARSE_CORE, SCHEDULER),
        ("tpu", "TPU v5 lite", {}, "", SPARSE_CORE),
        ("tpu", "TPU v4", {}, "", SPARSE_CORE),
        ("tpu", "TPU v5p", {"num_devices": 1}, "", SPARSE_CORE),
        ("tpu", "TPU v5p", {"jaxlib_version": "0.9.1"}, "", SPARSE_CORE),
        ("tpu", "TPU v5p", {"deterministic": True}, SPARSE_CORE, DETERMINISTIC),
        ("gpu", "NVIDIA H100 80GB HBM3", {}, SCHEDULER, DETERMINISTIC),
        ("cuda", "NVIDIA H100 80GB HBM3", {"deterministic": True}, DETERMINISTIC, ""),
        ("gpu", "NVIDIA L4", {"deterministic": True, "num_devices": 1}, "", SCHEDULER),
        ("cpu", "cpu", {"deterministic": True}, "", DETERMINISTIC),
    ],
)
def test_options_follow_the_device(platform, kind, arguments, has, lacks):
    found = table_options(platform, kind, **{"num_devices": 8} | arguments)
    assert not has or has in found
    assert not lacks or lacks not in found


def test_options_of_a_user_are_heeded_dropped_or_refused(caplog):
    mesh = make_mesh(MeshConfig())
    choose = lambda *options: choose_options(CompileConfig(options=options), mesh)
    assert choose() == {}
    known = "xla_llvm_disable_expensive_passes"
    assert choose(f"{known}=true") == {known: True}
    with caplog.at_level("WARNING"):
        assert choose("xla_nonsense=1", f"{known}=false") == {known: False}
    (record,) = caplog.records
    assert "xla_nonsense=1" in record.message and "jaxlib" in record.message
    with pytest.raises(ConfigError, match="xla_llvm_disable_expensive_passes=perhaps"):
        choose(f"{known}=perhaps")
    for bad in ("fast", "a b=1", "=true", "a=", "--xla_x=1"):
        assert len([*CompileConfig(options=(bad,)).validate("compile")]) == 1, bad


def test_libtpu_knows_the_options_of_tpus(monkeypatch):
    pytest.importorskip("libtpu", reason="compiles for a TPU")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.delenv("XLA_FLAGS")  # libtpu ends at a flag of CPUs
    code = """
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from lmjax.config.compile import CompileConfig
from lmjax.parallel.compiler_options import choose_options
devices = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x2").devices
mesh = Mesh(np.array(devices), ("data",))
own = CompileConfig(options=("xla_tpu_nonsense=true",))
print(len(choose_options(own, mesh)), devices[0].device_kind)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    (row,) = (row for row in OPTIONS if row.platform == "tpu")
    assert run.stdout.split(maxsplit=1)[0] == str(len(row.options)), run.stderr


def test_the_cache_is_where_the_user_says(tmp_path, monkeypatch):
    def directory(cache, **environment):
        for name in ("XDG_CACHE_HOME", "HOME"):
            monkeypatch.setenv(name, environment.get(name, ""))
        return compilation_cache.cache_directory(CompileConfig(cache=cache))

    assert directory("auto") == jax.config.jax_compilation_cache_dir  # of the tests
    assert directory("") is None
    assert directory("/x/y") == "/x/y"
    assert directory("~/y", HOME="/h") == "/h/y"
    assert directory("gs://bucket/x") == "gs://bucket/x"
    monkeypatch.setattr(compilation_cache, "_current_directory", lambda: None)
    assert directory("auto", HOME="/h").startswith("/h/.cache/lmjax/compiled/")
    assert directory("auto", XDG_CACHE_HOME="/c").startswith("/c/lmjax/compiled/")


def test_a_cache_that_cannot_be_made_is_an_error_where_it_was_asked_for(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"config\.compile\.cache = .*file/x"):
        compilation_cache.use_cache(CompileConfig(cache=str(tmp_path / "file" / "x")))


def test_a_program_is_kept_and_read_from_the_cache(tmp_path):
    old = jax.config.jax_compilation_cache_dir
    try:
        compilation_cache.use_cache(CompileConfig(cache=str(tmp_path / "compiled")))
        jax.jit(lambda x: x * 3.25 + 17).lower(1.0).compile()
        assert [*(tmp_path / "compiled").iterdir()]
    finally:
        compilation_cache.use_cache(CompileConfig(cache=old or ""))
