"""A model judged by lm-evaluation-harness: `lmjax lm_eval`.

The harness (Gao et al. 2021, the package `lm_eval`) has the tasks, the few-shot
examples and the metrics; this module gives it log-probabilities and texts.
"""

import contextlib
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.errors import UserError, nearest
from lmjax.fileio import write_bytes
from lmjax.inference.language_model import LanguageModel
from lmjax.progress import ProgressBar

_BLOCK_SIZE = 512  # requests between two marks of the progress bar
_PROGRESS_DELAY = 5.0  # seconds before one is shown
_MAX_TOKENS = 256  # to generate, where a task says nothing

log = logging.getLogger(__name__)


def evaluate(
    lm: LanguageModel,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return what the harness finds on some tasks.

    Args:
      lm: a model that generates text.
      tasks: names of the harness, or of the tasks in `include_path`.
      include_path: a directory of task files (YAML).
      num_fewshot: examples before each question; by default as the task says.
      limit: the first so many questions of each task; by default all.
      seed: of the few-shot examples.

    Returns:
      `results` by task, each metric with its `_stderr`, as the harness names them;
      `versions` of the tasks; `table`, the harness's own in Markdown.

    Raises:
      UserError: the package is not installed, a task is not known or cannot be used, or
        the model scores no text.
    """
    harness = _import_harness()
    if not lm.model.config.can_generate:
        raise UserError(
            f"lm_eval: config.model.{lm.model.config.generation_obstacle}: it scores "
            "no texts"
        )
    manager = _open_tasks(harness, tasks, include_path)
    with _one_line(f"--tasks={','.join(tasks)}"):
        found = harness.simple_evaluate(
            model=_make_adaptor(harness, lm),
            tasks=[*tasks],
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            bootstrap_iters=1000,
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=None,
            fewshot_random_seed=seed,
        )
    assert found is not None
    return {
        "results": {
            name: _numbers(values) for name, values in found["results"].items()
        },
        "versions": dict(found.get("versions", {})),
        "table": harness.make_table(found),
    }


def write_results(path: Path, found: Mapping[str, Any]) -> None:
    """Write what was found as JSON.

    Raises:
      UserError: it cannot be written.
    """
    values = {name: found[name] for name in ("results", "versions")}
    write_bytes(path, (json.dumps(values, indent=2) + "\n").encode())


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if isinstance(v, int | float | str)}


class _Harness:
    """The parts of the package that are used."""

    def __init__(self) -> None:
        from lm_eval import simple_evaluate, utils
        from lm_eval.api.model import TemplateLM
        from lm_eval.tasks import TaskManager

        self.simple_evaluate = simple_evaluate
        self.TaskManager = TaskManager
        self.TemplateLM = TemplateLM
        self.utils = utils
        self.make_table = utils.make_table


def _import_harness() -> _Harness:
    try:
        return _Harness()
    except ImportError as error:
        raise UserError(
            f"lm_eval: needs a package that is not installed: pip install "
            f"'lmjax[lm_eval]' ({error})"
        ) from error


def _open_tasks(
    harness: _Harness, tasks: Sequence[str], include_path: Path | None
) -> Any:
    """Return the harness's manager of tasks, once all tasks are known.

    Raises:
      UserError: one is not.
    """
    if include_path is not None and not include_path.is_dir():
        raise UserError(f"--include_path={include_path}: no such directory")
    if include_path is not None:
        with _one_line(f"--include_path={include_path}"):
            manager = harness.TaskManager(
                include_path=str(include_path), include_defaults=False
            )
        if all(task in manager.all_tasks for task in tasks):
            return manager  # to list the harness's own takes seconds
    with _one_line(f"--include_path={include_path}"):
        manager = harness.TaskManager(
            include_path=None if include_path is None else str(include_path)
        )
    for task in tasks:
        if task not in manager.all_tasks:
            hint = nearest(task, manager.all_tasks)
            raise UserError(
                f"--tasks={task}: the harness has no such task{hint}; "
                "--include_path=DIR adds those of a directory"
            )
    return manager


@contextlib.contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Turn what the harness raises into an error of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a task may run any code
        first = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{where}: {type(error).__name__}: {first}") from error


class _Answers:
    """Scores and writes texts for the harness."""

    def __init__(self, lm: LanguageModel, harness: _Harness) -> None:
        super().__init__()
        self.lm, self.utils = lm, harness.utils
        config = lm.model.config
        self.backend = "seq2seq" if config.is_encoder_decoder else "causal"
        self.max_length = config.longest_text

    @property
    def eot_token_id(self) -> int:
        """Return the id that ends a text; 0 where the tokenizer has none."""
        return self.lm.tokenizer.eos_id or 0

    @property
    def prefix_token_id(self) -> int:
        """Return the id that a text without a context begins with."""
        bos = self.lm.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the ids of a text, after BOS if the tokenizer puts one."""
        del kwargs
        ids = [int(token) for token in self.lm.tokenizer.encode(string)]
        bos = self.lm.tokenizer.bos_id
        if add_special_tokens is False or bos is None or ids[:1] == [bos]:
            return ids
        return [bos, *ids]

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and if it is greedy."""
        del disable_tqdm, kwargs
        pairs = [(context, text) for _, context, text in requests]
        found = []
        for scores in self._score(pairs, label="scoring"):
            found.append((scores.log_prob, bool(scores.is_greedy.all())))
        return found

    def _score(self, pairs: Sequence[Any], *, label: str) -> Iterator[Any]:
        # Similar lengths together: batches are padded to the longest of a few.
        sizes = [len(context) + len(text) for context, text in pairs]
        order = sorted(range(len(pairs)), key=lambda i: -sizes[i])
        scores: list[Any] = [None] * len(pairs)
        total = len(pairs)
        with ProgressBar(label, total=total, done=0, delay=_PROGRESS_DELAY) as bar:
            for first in range(0, total, _BLOCK_SIZE):
                block = order[first : first + _BLOCK_SIZE]
                _, found = self.lm.score_tokens([self._cut(*pairs[i]) for i in block])
                for i, score in zip(block, found, strict=True):
                    scores[i] = score
                bar.update(first + len(block))
        yield from scores

    def _cut(self, context: list[int], text: list[int]) -> tuple[Any, Any]:
        """Drop the first tokens of a context that leaves no room for its text."""
        if self.backend == "seq2seq":
            return context, text
        room = self.max_length + 1 - len(text)
        return context[max(len(context) - max(room, 1), 0) :], text

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probability of whole texts, window by window."""
        del disable_tqdm
        if self.backend == "seq2seq":
            raise UserError("an encoder-decoder scores no text without a source")
        utils = self.utils
        windows = [
            [
                utils.make_disjoint_window(window)
                for window in utils.get_rolling_token_windows(
                    token_list=self.tok_encode(text, add_special_tokens=False),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for (text,) in (request.args for request in requests)
        ]
        scores = self._score([*itertools.chain(*windows)], label="scoring")
        return [
            sum(s.log_prob for s in itertools.islice(scores, len(parts)))
            for parts in windows
        ]

    def generate_until(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[str]:
        """Return a continuation of each context, up to what a task stops at."""
        del disable_tqdm
        texts: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            key = json.dumps(request.args[1], sort_keys=True)
            groups.setdefault(key, []).append(i)
        total = len(requests)
        with ProgressBar(
            "generating", total=total, done=0, delay=_PROGRESS_DELAY
        ) as bar:
            done = 0
            for key, group in groups.items():
                options = _decoding_options(json.loads(key))
                contexts = [
                    self._shorten(requests[i].args[0], options["max_tokens"])
                    for i in group
                ]
                written = self.lm.generate(contexts, **options)
                for i, text in zip(group, written, strict=True):
                    texts[i] = text
                done += len(group)
                bar.update(done)
        return texts

    def _shorten(self, context: str, max_tokens: int) -> str:
        """Drop the beginning of a context that leaves no room to write."""
        if self.backend == "seq2seq":
            return context
        ids, room = self.tok_encode(context), self.max_length - max_tokens
        if len(ids) <= room:
            return context
        return self.lm.tokenizer.decode(ids[len(ids) - max(room, 1) :])


def _make_adaptor(harness: _Harness, lm: LanguageModel) -> Any:
    """Return a language model as one of the harness's own class."""
    return type("Adaptor", (_Answers, harness.TemplateLM), {})(lm, harness)


def _decoding_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `LanguageModel.generate` for those of a task.

    Raises:
      UserError: one is not supported.
    """
    given = dict(given)
    until = given.pop("until", [])
    stop = tuple([until] if isinstance(until, str) else until)
    options: dict[str, Any] = {
        "stop": tuple(filter(None, stop)),
        "max_tokens": int(given.pop("max_gen_toks", _MAX_TOKENS)),
    }
    samples = given.pop("do_sample", False)
    temperature = given.pop("temperature", 1.0 if samples else 0.0)
    options["temperature"] = float(temperature) if samples else 0.0
    for name in ("top_k", "top_p", "num_beams"):
        if name in given:
            options[name] = given.pop(name)
    if given:
        raise UserError(f"lm_eval: a task asks for {', '.join(given)}: not supported")
    return options
