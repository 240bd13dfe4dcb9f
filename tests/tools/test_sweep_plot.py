"""The plot of a search."""

import optuna
import pytest
from matplotlib.figure import Figure
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial

from tools.sweep import plot
from tools.sweep.study import Sweep

SPACE = {
    "optim.learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
    "model.num_layers": IntDistribution(1, 6),
    "model.dropout": FloatDistribution(0.0, 0.5),
    "optim.name": CategoricalDistribution(["adamw", "lion", "muon"]),
    "model.dim": IntDistribution(16, 1024, log=True),
}


def add_trials(study, space, values):
    """Add a trial for each value: None is a failed one, a tuple a pruned one."""
    draw = optuna.samplers.RandomSampler(seed=0)
    for number, value in enumerate(values):
        params = {
            leaf: draw.sample_independent(study, None, leaf, distribution)
            for leaf, distribution in space.items()
        }
        state, pruned = TrialState.COMPLETE, isinstance(value, tuple)
        if value is None or pruned:
            state = TrialState.PRUNED if pruned else TrialState.FAIL
        study.add_trial(
            create_trial(
                state=state,
                value=value[0] if pruned else value,
                intermediate_values={2 * number: value[0]} if pruned else None,
                params=params,
                distributions=space,
            )
        )


def draw_panels(monkeypatch, tmp_path, *, mode, space, values):
    """Return the panels of the plot."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path: (figures.append(self), save(self, path))
    )
    study = optuna.create_study(direction=f"{mode}imize")
    add_trials(study, space, values)
    sweep = Sweep(
        config=None,
        command=[],
        user_command=[],
        workdir=tmp_path,
        space=space,
        ranges={},
        metric="loss",
        mode=mode,
        num_trials=len(values),
        seed=0,
        sampler="tpe",
        pruner="none",
    )
    plot.write_plot(study, sweep, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    return figures[0].axes


def test_every_leaf_has_a_panel_with_its_scale(monkeypatch, tmp_path):
    values = [3.0, 2.0, None, (2.5,), 1000.0, 1.5, (2.2,), 1.8]
    top, *panels = draw_panels(
        monkeypatch, tmp_path, mode="min", space=SPACE, values=values
    )
    assert [panel.get_xlabel() for panel in panels] == list(SPACE)
    scales = [panel.get_xscale() for panel in panels]
    assert scales == ["log", "linear", "linear", "linear", "log"]
    low, high = top.get_ylim()
    assert low < 1.5 and 3.0 < high < 10.0  # 1000 does not hide the rest
    labels = {text.get_text() for text in top.get_legend().get_texts()}
    assert labels == {"complete", "pruned", "failed", "off the scale", "best so far"}
    (line,) = top.get_lines()
    assert list(line.get_ydata()) == [3.0, 2.0, 2.0, 1.5, 1.5, 1.5]


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0], [0.0, None]])
def test_few_trials_and_mode_max(monkeypatch, tmp_path, values):
    space = {"model.dropout": SPACE["model.dropout"]}
    top, _ = draw_panels(monkeypatch, tmp_path, mode="max", space=space, values=values)
    low, high = top.get_ylim()
    assert low < values[0] < high
