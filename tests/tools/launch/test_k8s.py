"""What is submitted to Kubernetes is valid, and says what the command line says."""

import argparse
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from lmjax.errors import UserError
from tools.launch import k8s, manifest
from tools.launch.experiment_files import collect
from tools.launch.job import Job

ROOT = Path(__file__).parents[3]
FIELDS = Path(__file__).with_name("jobset_fields.yaml")
QUICKSTART = str(ROOT / "experiments/lm/quickstart.py")
HOSTILE = (
    "data.path=/data/two words",
    """data.prefix='single' "double" `id` $HOME $(HOME) $$(X) \\ # * ;""",
    "data.suffix=first\nsecond:\n\n  - third  \n",
    "data.other=Zürich\t\x7f{{ }} !!python/object: &a *a",
)


def parse(*argv):
    parser = argparse.ArgumentParser()
    for flag in k8s.FLAGS:
        parser.add_argument(flag.name, **flag.options)
    return parser.parse_args(["--image=gcr.io/x/lmjax:1", *argv])


def make_job(**changes):
    fields = {"config": QUICKSTART, "workdir": "gs://bucket/runs/first", **changes}
    return Job(**fields)


def render(*argv, **changes):
    """Return the ConfigMap and the JobSet, as Kubernetes reads them."""
    objects = k8s.render(make_job(**changes), parse(*argv))
    return [yaml.safe_load(k8s.to_yaml(each)) for each in objects]


def job_of(job_set):
    (replicated,) = job_set["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container_of(job_set):
    (container,) = job_of(job_set)["template"]["spec"]["containers"]
    return container


TOPOLOGIES = ("tpu-v5p:4x4x4", "tpu-v6e:2x2", "gpu:h200:8x2", "gpu:l4:1x1")
STORAGE = ("--storage=claim:/data", "--storage=gs://a_bucket:/mnt/bucket")
OTHERS = (
    (),
    (*STORAGE, "--namespace=team", "--service_account=trainer", "--env=A_b=c $(D)"),
    ("--node_selector=nvidia.com/gpu.product=NVIDIA-H200", "--max_restarts=0"),
)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_manifests_fit_the_published_schemas(topology):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    import jsonschema

    version = kubernetes_validate.latest_version()
    fields = yaml.safe_load(FIELDS.read_text())
    for others in OTHERS:
        argv = (f"--topology={topology}", *others)
        config, job_set = render(*argv, "--slices=3", overrides=HOSTILE)
        jsonschema.validate(job_set, fields)
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": job_set["metadata"],
            "spec": job_of(job_set),
        }
        for core in (config, job):
            kubernetes_validate.validate(core, version, strict=True)


def test_the_field_list_refuses_what_a_job_set_has_not():
    jsonschema = pytest.importorskip("jsonschema")
    fields = yaml.safe_load(FIELDS.read_text())
    _, job_set = render("--topology=tpu-v5p:4x4x4")
    policy = job_set["spec"]["failurePolicy"]
    for where, name, value in (
        (job_set["spec"], "failurPolicy", {}),
        (policy, "maxRestarts", "3"),
        (policy["rules"][0], "action", "Restart"),
        (job_set["spec"]["replicatedJobs"][0], "parallelism", 2),
    ):
        before = dict(where)
        where[name] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(job_set, fields)
        where.clear()
        where.update(before)
    jsonschema.validate(job_set, fields)


def test_one_pod_for_each_host_and_all_its_chips():
    _, job_set = render("--topology=tpu-v5p:4x4x4", "--slices=2")
    (replicated,) = job_set["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 2
    job = job_of(job_set)
    assert (job["parallelism"], job["completions"]) == (16, 16)
    assert container_of(job_set)["resources"] == {"limits": {"google.com/tpu": 4}}
    assert "exclusive-topology" in str(job_set["metadata"]["annotations"])
    _, job_set = render("--topology=gpu:h200:8x2")
    assert job_of(job_set)["parallelism"] == 2
    assert container_of(job_set)["resources"] == {"limits": {"nvidia.com/gpu": 8}}


def run_container(job_set, config, tmp_path, *, slice_index=0, host_index=0):
    """Run what the container would, with a program that shows what it gets."""
    pod = job_of(job_set)["template"]["spec"]
    container = container_of(job_set)
    given = {e["name"]: e["value"] for e in container["env"] if "value" in e}
    given |= {"LMJAX_SLICE_INDEX": slice_index, "LMJAX_HOST_INDEX": host_index}
    expand = lambda text: expand_variables(text, given)
    environ = {name: expand(str(value)) for name, value in given.items()}
    (volume,) = [v for v in pod["volumes"] if v["name"] == "config"]
    for item in volume["configMap"]["items"]:
        path = tmp_path / "config" / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(config["data"][item["key"]])
    show = tmp_path / "python"
    show.write_text('#!/bin/sh\nenv -0 > env\nprintf "%s\\0" "$@" > args\n')
    show.chmod(0o755)
    environ["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    command = [*map(expand, container["command"]), *map(expand, container["args"])]
    subprocess.run(command, env=environ, cwd=tmp_path, check=True)
    split = lambda name: (tmp_path / name).read_text().split("\0")[:-1]
    return split("args"), dict(e.split("=", 1) for e in split("env"))


def expand_variables(text, values):
    """Replace $(NAME) as the kubelet does."""
    find = lambda m: "$" if m[0] == "$$" else str(values.get(m[1], m[0]))
    return re.sub(r"\$\$|\$\(([^)]*)\)", find, text)


def test_processes_get_the_command_and_know_each_other(tmp_path):
    config, job_set = render(
        "--topology=tpu-v6e:4x4",
        "--slices=3",
        "--name=x",
        "--env=SECRET=$(LMJAX_COORDINATOR) $$",
        overrides=HOSTILE,
    )
    args, environ = run_container(
        job_set, config, tmp_path, slice_index=2, host_index=1
    )
    assert args == [
        *("-m", "lmjax.cli", "train"),
        "--config=/config/experiments/lm/quickstart.py",
        "--workdir=gs://bucket/runs/first",
        *(f"--config.{override}" for override in HOSTILE),
    ]
    assert environ["JAX_COORDINATOR_ADDRESS"] == "x-slice-0-0.x:8476"
    assert environ["JAX_NUM_PROCESSES"] == "12"
    assert environ["JAX_PROCESS_ID"] == "9"
    assert environ["SECRET"] == "$(LMJAX_COORDINATOR) $$"


def test_a_single_process_joins_no_others(tmp_path):
    config, job_set = render("--topology=gpu:l4:1x1")
    _, environ = run_container(job_set, config, tmp_path)
    assert not [name for name in environ if name.startswith("JAX_")]


def test_the_config_map_has_the_experiment_and_what_it_imports(tmp_path):
    config, job_set = render("--topology=gpu:l4:1x1")
    run_container(job_set, config, tmp_path)
    found = {
        path.relative_to(tmp_path / "config").as_posix()
        for path in (tmp_path / "config").rglob("*.py")
    }
    assert found >= {
        "experiments/__init__.py",
        "experiments/base.py",
        "experiments/lm/quickstart.py",
    }
    assert not [name for name in found if name.startswith("lmjax")]


def test_imports_are_followed(tmp_path):
    package = tmp_path / "mine" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "mine/__init__.py").touch()
    (package / "__init__.py").write_text("import mine.third\n")
    (tmp_path / "mine/third.py").write_text("import json, mine\n")
    (tmp_path / "mine/other.py").write_text("from . import third\n")
    (tmp_path / "mine/unused.py").touch()
    (package / "x.py").write_text(
        "from ..other import a\nfrom experiments import base\nimport lmjax.errors\n"
        "def get_config(size):\n    import mine.inner.late\n"
    )
    (package / "late.py").write_text(
        "from .. import nothing\nfrom ... import outside\nfrom ......... import x\n"
    )
    (tmp_path / "outside.py").touch()
    config, files = collect(f"{package / 'x.py'}:small")
    assert config == "mine/inner/x.py:small"
    own = {name for name in files if name.startswith("mine")}
    assert own == {
        "mine/__init__.py",
        "mine/inner/__init__.py",
        "mine/inner/late.py",
        "mine/inner/x.py",
        "mine/other.py",
        "mine/third.py",
    }
    assert "experiments/base.py" in files


def test_restarts_ignore_preemption_and_mistakes_are_final():
    _, job_set = render("--topology=tpu-v5p:4x4x4", "--max_restarts=7")
    job, policy = job_of(job_set), job_set["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert job["backoffLimit"] == 0

    def decide(message, reason="PodFailurePolicy"):
        for rule in policy["rules"]:
            patterns = rule.get("onJobFailureMessagePatterns", [""])
            matches = any(re.search(pattern, message) for pattern in patterns)
            if reason in rule["onJobFailureReasons"] and matches:
                return rule["action"]
        return "RestartJobSet"

    def fail(code):
        for i, rule in enumerate(job["podFailurePolicy"]["rules"]):
            if code in rule.get("onExitCodes", {}).get("values", []):
                pod = "Container train for pod team/run-slice-0-0-abcde"
                why = f"failed with exit code {code} matching {rule['action']} rule"
                return decide(f"{pod} {why} at index {i}")
        return decide("Job has reached the limit", "BackoffLimitExceeded")

    assert fail(75) == "RestartJobSetAndIgnoreMaxRestarts"
    assert fail(2) == "FailJobSet"
    assert fail(1) == fail(134) == fail(137) == "RestartJobSet"
    evicted = job["podFailurePolicy"]["rules"][2]
    assert evicted["onPodConditions"][0]["type"] == "DisruptionTarget"
    why = "Pod a/b has condition DisruptionTarget matching FailJob rule at index 2"
    assert decide(why) == "RestartJobSetAndIgnoreMaxRestarts"


def test_names_are_valid_and_different():
    names = [
        "run",
        "Run",
        "run_1",
        "run-1",
        "1",
        "-",
        "ä" * 80,
        "ä" * 81,
        "a" * 80,
        "two words",
        "x.y",
        "x/",
    ]
    found = [
        render("--topology=gpu:l4:1x1", workdir=f"gs://b/{name}")[1]["metadata"]["name"]
        for name in names
    ]
    assert len({*found}) == len(names)
    for name in found:
        # The names of pods: NAME-slice-INDEX-INDEX-RANDOM.
        assert len(f"{name}-slice-999-9999-abcde") <= 63
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)


@pytest.mark.parametrize(
    ("argv", "changes", "pattern"),
    [
        ((), {"workdir": "runs/x"}, r"--workdir=runs/x: .*--storage=CLAIM:/PATH"),
        (STORAGE, {"workdir": "/datas/x"}, r"--workdir=/datas/x: .*/data or /mnt/buc"),
        (STORAGE, {"workdir": "/data/../x"}, "--workdir=/data/../x: "),
        (["--storage=claim"], {}, "--storage=claim: must be CLAIM:/PATH"),
        (["--storage=Claim:/x"], {}, "--storage=Claim: must be a name"),
        (["--storage=gs://B:/x"], {}, "--storage=gs://B:/x: 'B' is not"),
        (["--storage=claim:x"], {}, "--storage=claim:x: must be"),
        (["--storage=claim:/config/x"], {}, "/config/x is taken"),
        (["--storage=a:/x", "--storage=b:/x"], {}, "--storage=b:/x: /x has another"),
        (["--slices=0"], {}, "--slices=0: must be >= 1"),
        (["--max_restarts=-1"], {}, "--max_restarts=-1: must be >= 0"),
        (["--image=a b"], {}, "--image=a b: "),
        (["--namespace=A"], {}, "--namespace=A: "),
        (["--service_account=a;b"], {}, "--service_account=a;b: "),
        (["--name=-a"], {}, "--name=-a: "),
        ([f"--name={'a' * 41}"], {}, "--name=a+: .*40"),
        (["--env=1A=b"], {}, "--env=1A=b: "),
        (["--env=A"], {}, "--env=A: "),
        (["--env=A=1", "--env=A=2"], {}, "--env=A=2: A is given more than once"),
        (["--node_selector=a=b c"], {}, "--node_selector=a=b c: "),
        (["--topology=tpu-v5p:4x4x5"], {}, "--topology=tpu-v5p:4x4x5: "),
    ],
)
def test_mistakes_are_one_line(argv, changes, pattern):
    with pytest.raises(UserError, match=pattern) as error:
        render("--topology=gpu:l4:1x1", *argv, **changes)
    assert "\n" not in str(error.value)


def test_an_experiment_that_fits_in_no_config_map_is_named(tmp_path):
    file = tmp_path / "big.py"
    file.write_text("#" * manifest.MAX_CONFIG_BYTES)
    with pytest.raises(UserError, match=r"--config: .*big.py"):
        render("--topology=gpu:l4:1x1", config=str(file))


KUBECTL = """\
#!/bin/sh
echo "$@" >> calls
cat >> input
if [ "$1" = create ]; then echo "$ERROR" >&2; exit $CODE; fi
"""


@pytest.mark.parametrize(
    ("code", "error", "pattern"),
    [
        (0, "", None),
        (1, "Error from server (AlreadyExists): jobsets x", "kubectl delete jobset"),
        (1, "E1 noise\nthe connection was refused", "kubectl: the connection was"),
        (1, "", "kubectl: failed"),
    ],
)
def test_submission(code, error, pattern, tmp_path, monkeypatch, capfd):
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL)
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CODE", str(code))
    monkeypatch.setenv("ERROR", error)
    flags = parse("--topology=gpu:l4:1x1", "--namespace=team", "--name=x")
    if pattern:
        with pytest.raises(UserError, match=pattern):
            k8s.launch(make_job(), flags, dry_run=False)
    else:
        assert k8s.launch(make_job(), flags, dry_run=False) == 0
        assert "kubectl logs --namespace=team" in capfd.readouterr().out
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == [
        "apply --server-side --namespace=team --filename=-",
        "create --namespace=team --filename=-",
    ]
    sent = "---\n" + (tmp_path / "input").read_text().replace("apiV", "---\napiV", 2)
    capfd.readouterr()
    k8s.launch(make_job(), flags, dry_run=True)
    shown = capfd.readouterr().out
    assert [*filter(None, yaml.safe_load_all(sent))] == [*yaml.safe_load_all(shown)]


def test_a_missing_program_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    flags = parse("--topology=gpu:l4:1x1")
    with pytest.raises(UserError, match="kubectl: no such program"):
        k8s.launch(make_job(), flags, dry_run=False)
