"""Random configs and wrong command lines end in one line; a few of them here."""

from tools import fuzz_configs


def test_random_configs_and_command_lines(capsys):
    sizes = ["--num_configs=120", "--num_commands=60", "--describe_every=1000000"]
    assert fuzz_configs.main([*sizes, "--seed=1"]) == 0, capsys.readouterr().out
    summary = capsys.readouterr().out
    assert "configs accepted" in summary and "configs refused" in summary


def test_a_fault_is_found(capsys, monkeypatch):
    def crash(*_, **__):
        raise ZeroDivisionError("no")

    monkeypatch.setattr(fuzz_configs.cli, "load", crash)
    assert fuzz_configs.main(["--num_configs=2", "--num_commands=0"]) == 1
    assert "FAULT ZeroDivisionError" in capsys.readouterr().out
