"""A model that is sent to the hub, whose interface is a fake."""

import jax
import pytest

from lmjax import models
from lmjax.cli.main import main
from lmjax.config.experiment import parse
from lmjax.data.tokenizers.plain import Ids
from lmjax.interop import publish
from lmjax.run import checkpoint, workdir


class FakeHub:
    def __init__(self):
        self.sent, self.why = {}, ""

    def create_repo(self, name, *, exist_ok, private):
        assert exist_ok
        self.private = private
        if self.why:
            raise PermissionError(self.why)
        return f"https://hub.example/{name}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        assert commit_message.startswith("Export by lmjax")
        self.sent[repo_id] = folder_path


@pytest.fixture
def run(tmp_path):
    config = parse(
        {
            "model": {"dim": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 32},
            "tokenizer": {"kind": "ids", "vocab_size": 32},
            "data": {"source": "python_stdlib", "length": 16},
            "mesh": {"data": 1},
        }
    )
    directory = tmp_path / "run"
    directory.mkdir()
    model = models.build(config.model, platform="cpu")
    checkpoint.save_params(directory, jax.jit(model.init)(jax.random.key(0)))
    workdir.write_config(directory, config)
    Ids(32).save(directory / "tokenizer")
    lines = ('{"step": 5, "split": "train", "loss": 3.0}\n',)
    lines += ('{"step": 5, "split": "valid", "loss": 1.25, "eval_seconds": 7}\n',)
    (directory / "metrics.jsonl").write_text("".join(lines))
    return directory


def test_an_export_is_sent_with_a_card(run, tmp_path, monkeypatch, capsys):
    hub, target = FakeHub(), tmp_path / "hf"
    monkeypatch.setattr(publish, "check_push", lambda name: hub)
    command = ["export", f"--workdir={run}", f"--to={target}", "--push=me/small"]
    assert main(command) == 0
    assert hub.sent == {"me/small": str(target)}
    assert "https://hub.example/me/small" in capsys.readouterr().out
    card = (target / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: "transformers"\n')
    assert 'pipeline_tag: "text-generation"' in card and "# small" in card
    assert "| valid | loss | 1.25 |" in card and "seconds" not in card
    assert "Trained with lmjax" in card and "| optimizer | " in card
    assert not hub.private
    (run / "metrics.jsonl").unlink()  # as of a model that was imported
    again = [*command[:2], f"--to={tmp_path / 'again'}", command[3], "--private"]
    assert main(again) == 0
    card = (tmp_path / "again/README.md").read_text()
    assert "Exported with lmjax" in card and "optimizer" not in card
    assert hub.private
    assert (target / "model.safetensors").exists()
    hub.why = "403 Forbidden: no token\nmore"
    assert main([*command[:2], f"--to={tmp_path / 'other'}", command[3]]) == 2
    error = capsys.readouterr().err
    assert "--push=me/small: 403 Forbidden: no token (" in error
    assert len(error.strip().splitlines()) == 1


def test_a_wrong_name_is_refused_before_anything_is_written(run, tmp_path, capsys):
    target = tmp_path / "hf"
    command = ["export", f"--workdir={run}", f"--to={target}"]
    for name in ("small", "me/small/x", "me/"):
        assert main([*command, f"--push={name}"]) == 2
        assert f"--push={name}: must be the name" in capsys.readouterr().err
    assert main([*command, "--push=me/x", "--adapters"]) == 2
    assert "--push=me/x: is for" in capsys.readouterr().err
    assert main([*command, "--private"]) == 2
    assert "--private: needs --push=ORG/NAME" in capsys.readouterr().err
    assert not target.exists()
