"""The commands of the README and of the experiments' docstrings run, with small models.

They run in their order in one directory, as a reader would run them. Models of the hub
are stood in for by directories of their names.
"""

import io
import json
import random
import re
import shlex
import shutil
import string
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

import lmjax
from lmjax.cli.main import VERBS, main
from lmjax.cli.parser import parse_args
from lmjax.config.parse import load_module
from lmjax.plan.target import parse_target
from tools.launch.command import main as launch

pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXPERIMENTS = sorted((ROOT / "experiments").glob("*/[!_]*.py"))
SENTENCE = "The capital of {} is the city of {} , in {} {} {} {} {} {} .\n"
NAMES = ("France", "Paris", "Bonn", "Rome", "Oslo", "Wien")


def commands(text):
    """Return the commands in the indented blocks of a text, but those of pip."""
    lines = re.findall(r"^    (?:\$ )?(.*)$", text.replace("\\\n", " "), re.M)
    parts = [part for line in lines for part in line.split(" && ")]
    return [
        " ".join(part.split())
        for part in parts
        if part.startswith(("lmjax ", "python ", "printf "))
    ]


def shrink(config):
    """Return overrides that make the model and the run of a config small."""
    sizes = {
        "model": {"dim": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2},
        "optim": {"warmup_steps": 1},
        "eval": {"batch_size": 8},
        "sample": {"max_tokens": 4},
        "log": {"every_steps": 1},
    }
    sizes["model"] |= {"mlp_dim": 32, "hidden_dim": 16}
    given = config.to_dict()
    if given.get("init_from") or given.get("init_embedding_from"):
        del sizes["model"]
    overrides = ["num_steps=2", "batch_size=8", "num_microbatches=1"]
    if given.get("task", {}).get("kind") != "span_qa":
        most = 96 if given["data"]["source"] == "chat" else 32
        overrides += [f"data.length={min(most, given['data']['length'])}"]
    overrides += ["data.num_buckets=1"]
    if given["data"].get("target_length"):
        overrides += ["data.target_length=8"]
    for section, leaves in sizes.items():
        own = given.get(section, {})
        overrides += [f"{section}.{k}={v}" for k, v in leaves.items() if k in own]
    tokenizer = given.get("tokenizer", {})
    if tokenizer.get("kind", "sentencepiece") == "sentencepiece" and tokenizer:
        sizes = {"word": 9, "unigram": 150 + tokenizer.get("num_sentinels", 0)}
        vocab_size = sizes.get(tokenizer.get("algorithm"), 400)
        overrides += [f"tokenizer.vocab_size={vocab_size}"]
        overrides += ["model.vocab_size=0"] if "vocab_size" in given["model"] else []
    return [f"--config.{override}" for override in overrides]


def run(command, *more):
    """Run a command of `lmjax`, and return its exit code."""
    return main([*shlex.split(command)[1:], *more])


def experiment_of(command):
    """Return the config of the experiment in a command."""
    spec = re.search(r"--config=(\S+?\.py)(?::(\S+))?(?:\s|$)", command)
    argument = [a.strip("'\"") for a in [spec[2]] if a]
    config = load_module(spec[1]).get_config(*argument)
    assert isinstance(config, ConfigDict)
    return config


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a directory with all the data that the commands name."""
    place = tmp_path_factory.mktemp("place")
    patch = pytest.MonkeyPatch()
    patch.chdir(place)
    patch.setenv("HOME", str(place))
    shutil.copytree(ROOT / "experiments", place / "experiments")
    for folder in ("books/old", "corpus/old", "data/web", "docs"):
        (place / folder).mkdir(parents=True)
    rng = random.Random(0)
    word = lambda: "".join(rng.choices(string.ascii_lowercase, k=5))
    words = [word() for _ in range(300)]
    text = "".join(
        SENTENCE.format(a, b, *rng.sample(words, 6)) for a in NAMES for b in NAMES
    )
    for i in range(4):
        (place / "books/old" / f"{i}.txt").write_text(text)
        (place / "corpus/old" / f"{i}.txt").write_text(text)
    rows = [{"text": t, "label": n, "source": t, "target": n, "document": t} for t, n in
            zip(text.splitlines(), 6 * NAMES, strict=True)]  # fmt: skip
    rows = [row | {"summary": row["target"]} for row in rows]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "data/web/a.jsonl").write_text(lines)
    (place / "data/a.jsonl").write_text(lines)
    for name in ("answers", "prompts", "new", "in"):
        rows_in = lines.replace('"source"', '"en"') if name == "in" else lines
        (place / f"{name}.jsonl").write_text(rows_in)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (place / "chats.jsonl").write_text(20 * (json.dumps({"messages": turns}) + "\n"))
    pair = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})
    (place / "pairs.jsonl").write_text(20 * f"{pair}\n")
    cache = place / ".cache/lmjax-data"
    for name in ("reviews", "conll2003", "squad", "xsum", "ende", "enzh", "glove"):
        (cache / name).mkdir(parents=True)
    (place / "DIR").mkdir()
    words = text.splitlines()[0].split()
    context = text.splitlines()[0]
    squad = {"id": "1", "question": "Which city ?"}
    squad["answers"] = [{"text": "France", "answer_start": context.index("France")}]
    squad = {"data": [{"paragraphs": [{"context": context, "qas": 9 * [squad]}]}]}
    conll = "\n".join(f"{w} X X {'B-LOC' if w in NAMES else 'O'}" for w in words)
    props = "\n".join(f"{w} {'be (V*)' if w == 'is' else '- *'}" for w in words)
    for split in ("train", "valid", "test", "dev"):
        for folder in (place / "DIR", *cache.iterdir()):
            (folder / f"{split}.jsonl").write_text(lines)
            (folder / f"{split}.json").write_text(json.dumps(squad))
            (folder / f"{split}.props").write_text((props + "\n\n") * 9)
            columns = folder.name == "conll2003"
            (folder / f"{split}.txt").write_text(
                (conll + "\n\n") * 9 if columns else text
            )
            for language in ("en", "de", "zh"):
                (folder / f"{split}.{language}").write_text(text)
    vectors = "".join(f"{w} {' '.join(50 * ['0.1'])}\n" for w in dict.fromkeys(words))
    (cache / "glove/glove.6B.50d.txt").write_text(vectors)
    write_bert(place / "sentence-transformers/all-MiniLM-L6-v2")
    yield place
    patch.undo()


def write_bert(directory, dim=8):
    """Write a BERT of one layer as Hugging Face does."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    pieces += [f"##{letter}" for letter in string.ascii_lowercase]
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": dim,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": len(pieces),
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tables = {"word": len(pieces), "position": 512, "token_type": 2}
    shapes = {f"embeddings.{k}_embeddings.weight": (n, dim) for k, n in tables.items()}
    layer = "encoder.layer.0"
    matrices = {
        f"{layer}.attention.self.{k}": (dim, dim) for k in ("query", "key", "value")
    }
    matrices |= {
        f"{layer}.attention.output.dense": (dim, dim),
        "pooler.dense": (dim, dim),
    }
    matrices |= {f"{layer}.intermediate.dense": (16, dim)}
    matrices |= {f"{layer}.output.dense": (dim, 16)}
    for name, shape in matrices.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in ("embeddings", f"{layer}.attention.output", f"{layer}.output"):
        shapes |= {f"{name}.LayerNorm.{k}": (dim,) for k in ("weight", "bias")}
    rng = np.random.default_rng(0)
    tensors = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    save_file(tensors, directory / "model.safetensors")


OWN_DATA = ("--config.data.source=text", "--config.data.path=books/**/*.txt")


@pytest.mark.parametrize("command", commands(README))
def test_the_commands_of_the_readme(place, command, capsys, monkeypatch):
    verb = shlex.split(command)[1]
    if command.startswith("printf"):
        template = command.split("'")[1]
        Path("lines.txt").write_text(template.encode().decode("unicode_escape"))
    elif command.startswith("python tools/sweep.py"):
        pytest.skip("tests/tools/test_sweep.py")
    elif verb == "plan":
        args = parse_args(shlex.split(command)[1:], VERBS)
        assert parse_target(args.topology).num_devices > 1
    elif command.startswith("python tools/launch.py"):
        target, *flags = shlex.split(command)[2:]
        assert launch([target, "--dry_run", *flags]) == 0
    elif "s3://" in command:  # tests/storage runs against a server
        experiment_of(command)
    elif "--config.model.dims=512" in command:
        assert run(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(
            "error: config.model.dims: no such field (did you mean 'di"
        )
        assert line[:60] in README
    elif verb == "train":
        config = experiment_of(command)
        data = OWN_DATA if "quickstart.py" in command else ()
        assert (
            run(command, *shrink(config), *data, "--config.log.tensorboard=false") == 0
        )
    else:
        if "SmolLM2" in command and verb == "import":
            hub = "HuggingFaceTB/SmolLM2-135M"
            assert run(f"lmjax export --workdir=runs/quickstart --to={hub}") == 0
        more = ("--max_tokens=4",) if verb in ("generate", "chat") else ()
        monkeypatch.setattr("sys.stdin", io.StringIO("Hi!\n"))
        assert run(command, *more) == 0


def test_the_table_of_losses_is_plotted(place):
    pytest.importorskip("matplotlib")
    from tools import plot_run

    (command,) = re.findall(r"`python tools/plot_run.py ([^`]*)`", README)
    plot_run.main(shlex.split(command))
    assert Path("docs/quickstart.png").stat().st_size > 1000


def test_the_python_of_the_readme(place):
    """After the commands, whose workdirs it uses."""
    block = README.partition("    import lmjax\n")[2].partition("\n`import")[0]
    code = "import lmjax\n" + re.sub(r"^    ", "", block, flags=re.M)
    small = "; ".join(
        f"config.{o.removeprefix('--config.')}" for o in shrink_in_python()
    )
    code = code.replace("config.num_steps = 200", f"config.num_steps = 2; {small}")
    values = {}
    exec(code.replace("num_steps = 200", "num_steps = 2"), values)
    assert values["result"].history[-1]["step"] == 2
    scores = values["lm"].score(["import sys", ("import", " sys")])
    assert scores[1]["log_prob"] > scores[0]["log_prob"]
    assert Path("labels.jsonl").exists()
    assert lmjax.load("runs/minilm").embed(["A sentence."]).shape == (1, 8)


def shrink_in_python():
    from experiments.lm import quickstart

    leaves = shrink(quickstart.get_config())[1:]
    return [*leaves, "data.source='text'", "data.path='books/**/*.txt'"]


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_the_commands_of_an_experiment(place, file, capsys):
    """What `train` needs is prepared; what its model computes is tested elsewhere."""
    docstring = load_module(str(file)).__doc__
    found = commands(docstring)
    assert any(command.startswith("lmjax train") for command in found)
    for command in found:
        command = command.replace("'/data/", "'data/")
        command = command.replace(":runs/llama", ":runs/quickstart")
        verb = shlex.split(command)[1]
        if verb == "import" and Path("runs/minilm").exists():
            continue
        if verb == "import" and "SmolLM2" in command:
            continue  # the README's
        if verb in ("predict", "compare", "compress", "chat"):
            assert parse_args(shlex.split(command)[1:], VERBS).verb == verb
            continue
        if verb == "describe":
            assert run(command) == 0
            continue
        if verb == "plan":  # tests/plan compiles small models
            args = parse_args(shlex.split(command)[1:], VERBS)
            assert parse_target(args.topology).num_devices > 1
            continue
        assert f"experiments/{file.parent.name}/{file.name}" in command
        config = experiment_of(command)
        prepare = re.sub(r"--workdir=\S+", f"--workdir=prepared/{file.stem}", command)
        prepare = prepare.replace("lmjax train", "lmjax prepare")
        data = OWN_DATA if "python_stdlib" in str(config) else ()
        if file.parent.name == "compress" and config.get("init_from"):
            data = (*data, "--config.init_from=runs/minilm")  # not compressed here
        if "beams.jsonl" in command:  # not predicted here
            data = ("--config.data.path=in.jsonl", "--config.data.holdout_every=9")
        assert run(prepare, *shrink(config), *data) == 0, capsys.readouterr().err
