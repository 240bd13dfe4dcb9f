"""A stand-in for `lmjax train` whose loss is a formula.

Like the real one it locks its workdir, resumes from what it saved, and saves on
SIGTERM. In addition it notes the first step and the parent process of each start.
"""

import fcntl
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

flags = dict(arg[2:].split("=", 1) for arg in sys.argv[1:])
workdir = Path(flags["workdir"])
rate = float(flags["config.optim.learning_rate"])
layers = int(flags.get("config.model.num_layers", 3))
name = flags.get("config.optim.name", "lion")
workdir.mkdir(parents=True, exist_ok=True)
saved = workdir / "saved"
stopped = []

with (workdir / ".lock").open("a") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    start = int(saved.read_text()) if saved.exists() else 0
    with (workdir / "starts").open("a") as file:
        print(start, os.getppid(), file=file)
    while "GATE" in os.environ and not Path(os.environ["GATE"]).exists():
        time.sleep(0.02)
    if layers == 5:
        sys.exit("error: config.model.num_heads = 5: does not divide it")
    offset = abs(math.log10(rate) + 2.0) + abs(layers - 3) + (name != "lion")
    num_steps = int(flags.get("config.num_steps", 8))
    with (workdir / "metrics.jsonl").open("a") as log:
        for step in range(start + 1, num_steps + 1):
            if step % 2 == 0:
                loss = offset + 1.0 / step if rate < 0.9 else None
                line = {"step": step, "split": "valid", "loss": loss, "accuracy": 0.5}
                print(json.dumps(line), file=log, flush=True)
            time.sleep(float(os.environ.get("STEP_SECONDS", 0)))
            if stopped:
                time.sleep(0.3)  # as long as saving may take
                saved.write_text(str(step))
                sys.exit(75)
        saved.write_text(str(num_steps))
