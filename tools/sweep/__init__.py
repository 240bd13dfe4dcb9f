"""Hyperparameter search with Optuna over runs of `lmjax train`.

command.py parses the command line, space.py the search space. study.py shares the study
between processes, trial.py trains one trial, search.py runs one after another, and
report.py and plot.py show the results.
"""
