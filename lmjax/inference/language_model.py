"""A trained model to use from Python: `lm = lmjax.load(workdir)`."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lmjax import models
from lmjax.config import decoding
from lmjax.config.decoding import DecodingConfig
from lmjax.config.experiment import Config, MeshConfig
from lmjax.config.model import RecurrentEncoderDecoderConfig, TransformerConfig
from lmjax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from lmjax.errors import ConfigError
from lmjax.generate.beam import BeamSearch
from lmjax.generate.decode import Generator, encode_prompts
from lmjax.generate.embed import mean_rows, wrapped
from lmjax.generate.score import Scorer, encode_pairs
from lmjax.generate.text_generator import choose_decoding
from lmjax.generate.text_stream import TextStream
from lmjax.inference.inputs import one_by_one, stretch
from lmjax.inference.predictor import Predictor
from lmjax.models import Model
from lmjax.parallel import sharding
from lmjax.run import workdir
from lmjax.run.checkpoint import Checkpoints, Step
from lmjax.types import Array, Batch, Params

MAX_TOKENS = 64  # that are written where nobody says how many


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """Parameters with all that is needed to use them."""

    config: Config
    tokenizer: Tokenizer
    model: Model
    params: Params
    mesh: Mesh
    step: int

    def logits(
        self,
        tokens: Any,
        *,
        source: Any = None,
        token_types: Any = None,
        segments: Any = None,
        source_segments: Any = None,
    ) -> Array:
        """Return float32 logits (B, T, V) of token ids (B, T).

        Args:
          tokens: ids; of a model that generates, token t's logits are for token t + 1.
            A decoder that reads a source begins with the model's `decoder_prefix_ids`.
          source: ids (B, S), for an encoder-decoder.
          token_types: (B, T), for an encoder that knows some; by default 0.
          segments: which text each token belongs to, 0 for padding; by default all of
            a row is one text. Positions restart where the segment changes.
          source_segments: the same of `source`; a token reads the segment of its own
            number.

        Raises:
          ConfigError: arrays that do not belong together, or ids out of range.
        """
        batch = self._batch(tokens, source, token_types, segments, source_segments)
        return self._texts(self._apply, batch)

    def hidden(self, tokens: Any, **arrays: Any) -> Array:
        """Return the last hidden states (B, T, D); arguments as for `logits`."""
        names = ("source", "token_types", "segments", "source_segments")
        assert not arrays.keys() - set(names), [*arrays]
        batch = self._batch(tokens, *(arrays.get(name) for name in names))
        return self._texts(self._hidden, batch)

    def encode_rows(
        self, texts: Sequence[str], *, max_length: int = 0
    ) -> list[list[int]]:
        """Return the ids of texts, with what the tokenizer puts around each.

        Args:
          texts: to encode.
          max_length: tokens to keep of each, the special ones included; 0: as many as
            the model has positions.
        """
        limit = max_length or self.model.config.max_length
        return wrapped(self.tokenizer, texts, max_length=limit)

    def embed(self, texts: Sequence[str], *, max_length: int = 0) -> np.ndarray:
        """Return the mean of each text's last hidden states, float32 (N, D).

        Arguments as for `encode_rows`. (Sentence-BERT, Reimers and Gurevych 2019.)

        Raises:
          ConfigError: a model that reads a source.
        """
        rows = self.encode_rows(texts, max_length=max_length)
        config = self.model.config
        return mean_rows(
            rows, self.hidden, dim=config.width, max_length=config.max_length
        )

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int | None = None,
        seed: int = 0,
        **way: Any,
    ) -> list[str]:
        """Return a continuation of each prompt, without the prompt.

        To an encoder-decoder a prompt is the source, and what it writes is returned.

        Args:
          prompts: texts, or sources.
          max_tokens: to write after each; by default as many as fit, at most 64.
          seed: of chance.
          way: of `choose_decoding`: `temperature`, `top_k`, `top_p`; or `num_beams`
            from 2 on, which draws nothing but searches, and others of `DecodingConfig`.
            With `num_return` the texts of one prompt follow one another.

        Raises:
          ConfigError: an option out of range, or too many tokens for the model.
        """
        how, read = choose_decoding(**way), self._read(prompts)
        if isinstance(how, DecodingConfig):
            found = self._found(read, how, max_tokens)
            return [text["text"] for texts in found for text in texts]
        with jax.set_mesh(self.mesh):
            rows = self._generator.continuations(
                self.params,
                **read,
                max_tokens=self._most(read, max_tokens),
                sampling=how,
                stop_ids=self.tokenizer.stop_ids,
                seed=seed,
            )
        pairs = zip(self._before(read), rows, strict=True)
        return [self._decode_after(before, row) for before, row in pairs]

    def search(
        self, prompts: Sequence[str], *, max_tokens: int | None = None, **write: Any
    ) -> list[list[dict[str, Any]]]:
        """Return the best continuations of each prompt that a beam search finds.

        Args:
          prompts: texts, or sources.
          max_tokens: as for `generate`.
          write: other leaves of `DecodingConfig`, such as `num_beams=4`.

        Returns:
          For each prompt `num_return` texts, the best first: `text`; `log_prob` in
          nats, of its end too where it was written; `score`, what texts compare by.

        Raises:
          ConfigError: an option out of range, or too many tokens for the model.
        """
        how = decoding.build_decoding(**write)
        return self._found(self._read(prompts), how, max_tokens)

    def stream(
        self, prompt: str, *, max_tokens: int | None = None, seed: int = 0, **way: Any
    ) -> Iterator[str]:
        """Yield what `generate` returns for one prompt in pieces, as they come."""
        how, read = choose_decoding(**way), self._read([prompt])
        if isinstance(how, DecodingConfig):
            yield self._found(read, how, max_tokens)[0][0]["text"]
            return
        tokens = self._generator.tokens(
            self.params,
            **read,
            max_tokens=self._most(read, max_tokens),
            sampling=how,
            stop_ids=self.tokenizer.stop_ids,
            seed=seed,
        )
        text = TextStream(self.tokenizer, self._before(read)[0])
        while True:
            # The mesh is set while the model computes, not while our caller does.
            with jax.set_mesh(self.mesh):
                token = next(tokens, None)
            if token is None:
                break
            yield "".join(text.add(int(t)) for t in token if t >= 0)
        yield text.rest()

    def score(
        self, texts: Sequence[str | tuple[str, str]], *, eos: bool = False
    ) -> list[dict[str, float | int | None]]:
        """Return the log-probability of each text, or of (context, text) pairs.

        Args:
          texts: the first token of one is scored given the tokenizer's BOS, and not at
            all if there is neither BOS nor context. An encoder-decoder takes pairs
            alone: the context is its source.
          eos: also score that the text ends.

        Returns:
          `log_prob` in nats, `num_tokens` scored, `perplexity` (None of no tokens).

        Raises:
          ConfigError: a model that predicts no text, or one that has no source to read.
        """
        config = self.model.config
        read = encode_pairs(self.tokenizer, texts, config=config, eos=eos)
        with jax.set_mesh(self.mesh):
            scores = self._scorer.log_probs(self.params, **read)
        return [
            {
                "log_prob": log_prob,
                "num_tokens": num_tokens,
                "perplexity": float(np.exp(-log_prob / num_tokens))
                if num_tokens
                else None,
            }
            for log_prob, num_tokens in scores
        ]

    def predict(
        self, examples: Sequence[Mapping[str, Any] | str]
    ) -> list[dict[str, Any]]:
        """Return a fine-tuned task's answer to each example.

        Args:
          examples: with the fields that the run's own had, labels aside; or just the
            text, where that is all.

        Returns:
          Of `classify` each the `label` and the `probabilities` of all; of `tag` the
          `tags` of the words; of `span_qa` the `answer`, the character of its context
          where it begins, `start`, and its `score`; where it writes, `text`, its
          `score` and `log_prob`, and of several the `others`.

        Raises:
          ConfigError: an example lacks a field, or the model was trained on another
            kind of task.
        """
        parsed = self.predictor.parse_all(examples)
        encoded = self.predictor.encode_examples(parsed)
        return self.predictor.predict(self.params, encoded, mesh=self.mesh)

    @functools.cached_property
    def predictor(self) -> Predictor:
        """Return what applies the run's task."""
        return Predictor(self.config, self.tokenizer, self.model)

    def _batch(
        self,
        tokens: Any,
        source: Any,
        token_types: Any,
        segments: Any,
        source_segments: Any,
    ) -> Batch:
        config = self.model.config
        if (source is None) == config.is_encoder_decoder:
            word = "needs" if source is None else "takes none"
            raise ConfigError(f"source: config.model.kind = {config.kind!r} {word}")
        batch = stretch("tokens", tokens, segments, config=config)
        if source is not None:
            read = stretch("source", source, source_segments, config=config)
            batch["source"] = read.pop("tokens")
            batch |= {f"source_{name}": array for name, array in read.items()}
        if token_types is not None:
            batch["token_types"] = np.asarray(token_types)
        return {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}

    def _texts(self, compute: Any, batch: Batch) -> Array:
        """Return what is computed of every text of a batch."""
        with jax.set_mesh(self.mesh):
            if isinstance(self.config.model, RecurrentEncoderDecoderConfig):
                return one_by_one(functools.partial(compute, self.params), batch)
            return compute(self.params, batch)

    def _read(self, prompts: Sequence[str]) -> dict[str, Any]:
        return encode_prompts(self.tokenizer, prompts, config=self.model.config)

    def _most(self, read: dict[str, Any], asked: int | None) -> int:
        """Return how many tokens to write: without a word what fits, at most 64."""
        if asked is not None:
            return asked
        longest = max(map(len, read["prompts"]), default=0)
        return max(1, min(MAX_TOKENS, self.model.config.longest_text - longest))

    def _found(
        self, read: dict[str, Any], write: DecodingConfig, max_tokens: int | None
    ) -> list[list[dict[str, Any]]]:
        """Return the texts that a search finds, as JSON."""
        write = dataclasses.replace(write, max_tokens=self._most(read, max_tokens))
        with jax.set_mesh(self.mesh):
            rows = self._beam_search.hypotheses(
                self.params, **read, write=write, stop_ids=self.tokenizer.stop_ids
            )
        return [
            [found.told(self._decode_after(before, found.tokens)) for found in row]
            for before, row in zip(self._before(read), rows, strict=True)
        ]

    def _before(self, read: dict[str, Any]) -> list[list[int]]:
        """Return the ids that each text goes on from: none after a source."""
        prompts = read["prompts"]
        return [[]] * len(prompts) if "sources" in read else prompts

    def _decode_after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Decode `ids` as what follows those before: spaces at the seam are kept."""
        return self.tokenizer.decode([*before, *ids])[
            len(self.tokenizer.decode(before)) :
        ]

    @functools.cached_property
    def _apply(self) -> Any:
        return jax.jit(self.model.apply)

    @functools.cached_property
    def _hidden(self) -> Any:
        return jax.jit(self.model.hidden)

    @functools.cached_property
    def _generator(self) -> Generator:
        return Generator(self.model, self.tokenizer.vocab_size)

    @functools.cached_property
    def _beam_search(self) -> BeamSearch:
        return BeamSearch(self._generator)

    @functools.cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.model)


def load(
    directory: str | Path,
    step: Step = None,
    mesh: Mesh | None = None,
    overrides: Sequence[str] = (),
) -> LanguageModel:
    """Return the model of a workdir.

    Args:
      directory: the workdir of a training run.
      step: of a checkpoint, or "best" by the run's `best_metric`; by default the
        newest.
      mesh: where to put the parameters; by default all local devices, as the run's
        config says if they fit it, else each a part, else each a copy.
      overrides: `a.b=value` of the run's config, such as "task.write.num_beams=8".

    Raises:
      ConfigError: there is no run, or no such checkpoint, or a wrong override.
    """
    directory = Path(directory).expanduser()
    config = workdir.read_config(directory, overrides)
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    # Nothing is dropped out here: no backend need be passed over for it.
    used = config.model
    if isinstance(used, TransformerConfig):
        used = dataclasses.replace(used, dropout=0.0, attention_dropout=0.0)
    model = models.build(used, platform=device.platform)
    mesh = _default_mesh(config.mesh, model) if mesh is None else mesh
    shardings = sharding.param_shardings(model.axes, model.shapes, mesh)
    like = sharding.with_shardings(model.shapes, shardings)
    checkpoints = Checkpoints(directory, config.checkpoint, read_only=True)
    step = checkpoints.find(step)
    ema = config.optim.ema_decay > 0
    params = checkpoints.restore_params(like, step=step, ema=ema)
    tokenizer = load_tokenizer(directory / "tokenizer")
    return LanguageModel(config, tokenizer, model, params, mesh, step)


def _default_mesh(config: MeshConfig, model: Model) -> Mesh:
    """Return the first mesh that the devices and the model's sizes fit.

    The run's own; parts on all devices, for a model that was split may not fit one; a
    copy on each.
    """
    for sizes in (config, MeshConfig(data=1, fsdp=-1)):
        with contextlib.suppress(ConfigError):
            mesh = sharding.make_mesh(sizes)
            sharding.param_shardings(model.axes, model.shapes, mesh)
            return mesh
    return sharding.make_mesh(MeshConfig())
