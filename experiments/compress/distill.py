"""A classifier of half the layers, taught by the whole one.

    lmjax compress --workdir=runs/reviews --to=runs/reviews-3 --prune=layers:3
    lmjax train --config=experiments/compress/distill.py:runs/reviews \
      --workdir=runs/distilled
    lmjax compare runs/reviews runs/distilled \
      --input=~/.cache/lmjax-data/reviews/test.jsonl

The argument is the workdir of the teacher, a run of experiments/finetune/reviews.py.
The student begins with the layers that `compress` kept, in the workdir TEACHER-3, and
learns the teacher's probabilities (Hinton et al. 2015) and how alike its hidden states
are (MiniLM, Wang et al. 2020) beside the labels. Without a teacher it is trained by
--config.task.distill.teacher="" --config.task.distill.relations=0.

Score: not trained.
"""

from ml_collections import ConfigDict

from experiments.finetune import reviews


def get_config(teacher: str = "runs/reviews") -> ConfigDict:
    config = reviews.get_config()
    config.init_from = f"{teacher}-3"
    config.num_steps = 300
    config.optim.warmup_steps = 30
    config.task.distill = {
        "teacher": teacher,
        "temperature": 2.0,
        "weight": 0.7,
        "relations": 1.0,
    }
    config.checkpoint.every_steps = config.eval.every_steps = 100
    return config
