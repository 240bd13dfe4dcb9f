"""Continuations of the config's prompts, written to samples/STEP.txt of a run."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.config.decoding import DecodingConfig, choose_decoding
from lmjax.data.tokenizers.vocabulary import list_words
from lmjax.errors import ConfigError, UserError
from lmjax.fileio import write_bytes, write_errors
from lmjax.generate.prompts import (
    begin_texts,
    decode_continuation,
    drop_forced,
    encode_prompts,
)
from lmjax.generate.sampling import Sampling
from lmjax.metrics.word_vectors import VectorSpace
from lmjax.parallel import processes
from lmjax.parallel.sharding import fill_shards
from lmjax.tasks.word_vectors import vector_space
from lmjax.training.run import Run
from lmjax.types import TrainState

log = logging.getLogger(__name__)


def check_prompts(run: Run) -> None:
    """Check before training that the prompts leave room for their continuations.

    Raises:
      ConfigError: a prompt is too long.
    """
    sample = run.config.sample
    if sample.prompts and run.config.task.kind == "word_vectors":
        words, _ = list_words(run.datasets.tokenizer)
        space = VectorSpace(words, np.zeros((len(words), 1), np.float32))
        for prompt in sample.prompts:
            with _explain_prompt():
                space.index(prompt)
    elif sample.prompts:
        with _explain_prompt():
            run.generator.check(**_encode_prompts(run), max_tokens=sample.max_tokens)


@contextlib.contextmanager
def _explain_prompt() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise ConfigError(f"config.sample.prompts: {error}") from error


def write_samples(run: Run, state: TrainState) -> None:
    """Write a continuation of each prompt after the step of `state`.

    A decoder's continuation follows its prompt; the prompt of an encoder-decoder is a
    source, and its target is written on a new line. Of word vectors a prompt is a word,
    and the words nearest to it are written.
    """
    if not run.config.sample.prompts:
        return
    step = int(state.step)
    words = run.config.task.kind == "word_vectors"
    texts = _nearest_words(run, state) if words else _continue_prompts(run, state)
    if processes.is_first():
        path = _path(run, step)
        for i, text in enumerate(texts):
            run.metric_log.write_text(step, f"samples/{i}", text)
        content = "\n----\n".join(texts) + "\n"
        try:
            with write_errors(path):
                path.parent.mkdir(exist_ok=True)
            write_bytes(path, content.encode())
        except UserError as error:  # not worth the end of a run
            log.warning("%s; training goes on without this sample", error)


def _nearest_words(run: Run, state: TrainState) -> list[str]:
    """Return each prompt, a word, with those whose vectors are nearest."""
    space = vector_space(state.eval_params, run.datasets.tokenizer)
    return [
        f"{word}: {', '.join(near for near, _ in space.nearest([word]))}"
        for word in run.config.sample.prompts
    ]


def _continue_prompts(run: Run, state: TrainState) -> list[str]:
    """Return each prompt with its continuation, or a source with its target."""
    config, tokenizer = run.config.sample, run.datasets.tokenizer
    step, inputs = int(state.step), _encode_prompts(run)
    # Rows of padding, where there are fewer prompts than devices that share them.
    num_rows = fill_shards(len(config.prompts))
    padded: dict[str, Any] = {
        name: [*texts, *[texts[-1]] * (num_rows - len(texts))] if texts else texts
        for name, texts in inputs.items()
    }
    rows = run.generator.generate(
        state.eval_params,
        **padded,
        max_tokens=config.max_tokens,
        sampling=Sampling.from_config(
            _decoding(run),
            decoder_prefix_ids=run.program.model.config.decoder_prefix_ids,
        ),
        stop_ids=_decoding(run).stop_ids or tokenizer.stop_ids,
        seed=step,
    )
    decoding, model = _decoding(run), run.program.model.config
    has_source = model.is_encoder_decoder
    separator = "\n" if has_source else ""
    contexts: Any = [()] * len(rows) if has_source else inputs["prompts"]
    rows = rows[: len(config.prompts)]
    rows = [[*drop_forced(row, decoding=decoding, config=model)] for row in rows]
    return [
        prompt + separator + decode_continuation(tokenizer, context, row)
        for prompt, context, row in zip(config.prompts, contexts, rows, strict=True)
    ]


def has_samples(run: Run, step: int) -> bool:
    """Return whether the samples of a step were written."""
    return processes.any_process(_path(run, step).exists())


def _path(run: Run, step: int) -> Path:
    return run.directory / "samples" / f"{step}.txt"


def _decoding(run: Run) -> DecodingConfig:
    """Return how samples are drawn: with the constraints of the run's task."""
    sample = run.config.sample
    return choose_decoding(
        getattr(run.config.task, "write", None),
        num_beams=1,
        temperature=sample.temperature,
        top_k=sample.top_k,
        top_p=sample.top_p,
    )


def _encode_prompts(run: Run) -> dict[str, Any]:
    model, prompts = run.program.model.config, run.config.sample.prompts
    inputs = encode_prompts(run.datasets.tokenizer, prompts, config=model)
    return begin_texts(inputs, decoding=_decoding(run), config=model)
