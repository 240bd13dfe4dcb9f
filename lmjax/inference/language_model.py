"""A trained model in Python: `lm = lmjax.load(workdir)`."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lmjax import models
from lmjax.config.decoding import DecodingConfig, SamplingConfig, choose_decoding
from lmjax.config.experiment import Config, MeshConfig
from lmjax.config.model import LabelHeadConfig
from lmjax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from lmjax.errors import UserError
from lmjax.generate.beam import BeamSearch
from lmjax.generate.decode import Generator, IsOver
from lmjax.generate.embed import embed_rows, encode_truncated
from lmjax.generate.prompts import (
    Prompt,
    begin_texts,
    decode_continuation,
    drop_forced,
    encode_prompts,
)
from lmjax.generate.sampling import Sampling
from lmjax.generate.score import (
    Scorer,
    TokenScores,
    choose_windows,
    describe_score,
    padded_length,
)
from lmjax.generate.scored_texts import ScoredText, encode_scored
from lmjax.generate.speculative import NUM_DRAFT, SpeculativeGenerator
from lmjax.generate.text_stream import (
    StoppedStream,
    StoppedText,
    TextStream,
    cut_text,
)
from lmjax.inference.attribution import Baseline
from lmjax.inference.chat import ask, check_messages, choose_template, tell_dropped
from lmjax.inference.explain import Explainer, check_method, make_observable
from lmjax.inference.explained import (
    EXAMPLE_TASKS,
    Explained,
    explain_example,
    explain_text,
)
from lmjax.inference.explanation import Explanation
from lmjax.inference.inputs import make_batch, map_segments, pad_lengths
from lmjax.inference.internals import AttentionWeights, Internals
from lmjax.inference.predictor import Predictor
from lmjax.metrics.word_vectors import VectorSpace
from lmjax.models import Model
from lmjax.parallel import compilation_cache, sharding
from lmjax.run import workdir
from lmjax.run.checkpoint import Checkpoints, Step, open_checkpoints
from lmjax.storage.paths import open_path
from lmjax.tasks.word_vectors import vector_space
from lmjax.types import Array, Batch, Params

T = TypeVar("T")

DEFAULT_MAX_TOKENS = 64
STREAM_BLOCK = 8  # tokens that come at once, where somebody may read along


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LanguageModel:
    """The parameters of a checkpoint, their model and its tokenizer."""

    config: Config
    tokenizer: Tokenizer
    model: Model
    params: Params
    mesh: Mesh
    step: int

    def __repr__(self) -> str:
        config = self.model.config
        num_params = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"LanguageModel({config.kind} of {num_params:,} parameters, vocabulary of "
            f"{config.vocab_size:,}, task {self.config.task.kind}, step {self.step})"
        )

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

        Lengths are padded to a few sizes, each compiled once.

        Args:
          tokens: ids. A causal model's logits at token t predict token t + 1. The
            tokens of an encoder-decoder begin with `decoder_prefix_ids` of its config.
          source: ids (B, S), for an encoder-decoder.
          token_types: (B, T), for an encoder that has them; by default 0.
          segments: the number of the text that each token belongs to, 0 for padding; by
            default each row is one text. Positions restart where the segment changes.
          source_segments: the same for `source`; a token attends to the source of its
            own segment.

        Raises:
          UserError: the shapes disagree, or ids are out of range.
        """
        batch = self._batch(tokens, source, token_types, segments, source_segments)
        return self._map_texts(self._apply, batch)

    def hidden(self, tokens: Any, **arrays: Any) -> Array:
        """Return the last hidden states (B, T, D); arguments as for `logits`."""
        return self._map_texts(self._hidden, self._named_batch(tokens, arrays))

    def hidden_states(self, tokens: Any, **arrays: Any) -> Array:
        """Return the hidden states before the first block and after each (L + 1, ...).

        The last are those of `hidden`; of an encoder-decoder they are the decoder's.
        Computed in float32. Arguments as for `logits`.

        Raises:
          UserError: the model is recurrent.
        """
        batch, length = self._padded(tokens, arrays)
        with jax.set_mesh(self.mesh):
            return self._internals.hidden_states(self.params, batch, length)

    def attention(self, tokens: Any, **arrays: Any) -> AttentionWeights:
        """Return the attention weights of every layer and head, float32.

        Arguments as for `logits`. A row of a recurrent decoder is one text.

        Raises:
          UserError: the model has no attention.
        """
        batch, length = self._padded(tokens, arrays)
        with jax.set_mesh(self.mesh):
            found = self._internals.attention(self.params, batch, length)
        num = 0 if arrays.get("source") is None else np.shape(arrays["source"])[1]
        cross, source = found.cross, found.source
        return AttentionWeights(
            own=found.own,
            cross=None if cross is None else cross[..., :num],
            source=None if source is None else source[..., :num, :num],
        )

    def _padded(self, tokens: Any, arrays: dict[str, Any]) -> tuple[Batch, int]:
        """Return a padded batch, and the length that it was given with."""
        batch = self._named_batch(tokens, arrays)
        limit = self.model.config.max_positions
        length = batch["tokens"].shape[1]
        return pad_lengths(batch, lambda n: padded_length(n, limit=limit)), length

    def _named_batch(self, tokens: Any, arrays: dict[str, Any]) -> Batch:
        names = ("source", "token_types", "segments", "source_segments")
        assert not arrays.keys() - set(names), [*arrays]
        return self._batch(tokens, *(arrays.get(name) for name in names))

    def encode_rows(
        self, texts: Sequence[str], *, max_length: int = 0
    ) -> list[list[int]]:
        """Return the ids of texts, with the special tokens that the tokenizer adds.

        Args:
          texts: to encode.
          max_length: at which each is truncated, special tokens included; 0: the
            number of positions of the model.
        """
        limit = max_length or self.model.config.max_length
        return encode_truncated(self.tokenizer, texts, max_length=limit)

    def embed(self, texts: Sequence[str], *, max_length: int = 0) -> np.ndarray:
        """Return the vector of each text, float32 (N, E).

        The leaves of `config.model.text_embedding` say which one: the mean of the last
        hidden states, or what the imported directory of sentence-transformers says.

        Args:
          texts: to encode.
          max_length: as for `encode_rows`; 0: that of the leaf.

        Raises:
          UserError: the model is an encoder-decoder.
        """
        config = self.model.config
        if not isinstance(config, LabelHeadConfig):
            raise UserError(
                f"embed: config.model.kind = {config.kind!r} has no vector of a text"
            )
        leaves = config.text_embedding
        texts = [leaves.prompt + text for text in texts]
        if leaves.lowercase:
            texts = [text.lower() for text in texts]
        rows = self.encode_rows(texts, max_length=max_length or leaves.max_length)
        return embed_rows(rows, self._embed_batch, max_length=config.max_length)

    def nearest(
        self, word: str | Sequence[str], *, minus: Sequence[str] = (), count: int = 10
    ) -> list[tuple[str, float]]:
        """Return the words whose vectors are nearest, and the cosines of their angles.

        The vectors are those of the embedding table, of any model; special tokens are
        no words.

        Args:
          word: one, or several whose vectors are added, as in king + woman.
          minus: words whose vectors are subtracted, as - man.
          count: of the answer.

        Raises:
          UserError: a word is not in the vocabulary.
        """
        plus = [word] if isinstance(word, str) else list(word)
        return self._vector_space.nearest(plus, minus=minus, count=count)

    def vectors(self, words: Sequence[str]) -> np.ndarray:
        """Return the vectors of words by the embedding table, float32 (N, D).

        Raises:
          UserError: a word is not in the vocabulary.
        """
        space = self._vector_space
        return space.vectors_ND[[space.index(word) for word in words]]

    @functools.cached_property
    def _vector_space(self) -> VectorSpace:
        return vector_space(self.params, self.tokenizer)

    def _embed_batch(self, tokens: Any, *, segments: Any) -> Array:
        batch = self._batch(tokens, None, None, segments, None)
        with jax.set_mesh(self.mesh):
            return self._embedding(self.params, batch)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int | None = None,
        seed: int = 0,
        draft: "LanguageModel | None" = None,
        num_draft: int = NUM_DRAFT,
        **options: Any,
    ) -> list[str]:
        """Return a continuation of each prompt, without the prompt.

        The prompt of an encoder-decoder is its source, and the target is returned.

        Args:
          prompts: texts, or token ids, which are read as they are, without BOS.
          max_tokens: of each continuation; by default as many as fit, at most 64.
          seed: of the sampling.
          draft: a smaller model of the same tokenizer, with whose help each text is
            written in turn: the greedy texts are the same, and samples have the same
            distribution, but are others for a seed.
          num_draft: tokens that it drafts at a time.
          options: leaves of `DecodingConfig`; the others are those of the model's own
            config, `task.write`. Sampling takes `temperature`, `top_k`, `top_p` and
            `min_p`, beam search `num_beams` from 2 on; with `num_return` the texts of
            one prompt follow one another. `stop` is a text, or several: a continuation
            ends before the first.

        Raises:
          UserError: an option is out of range, or there are too many tokens.
        """
        decoding = self._choose_decoding(options)
        inputs = self._encode_prompts(prompts, decoding)
        if decoding.num_beams > 1:
            hypotheses = self._beam_search(inputs, decoding, max_tokens)
            return [text["text"] for row in hypotheses for text in row]
        if draft is not None:
            more: Any = {"draft": draft, "num_draft": num_draft, "seed": seed}
            more |= {"max_tokens": max_tokens, **options}
            return ["".join(self.stream(prompt, **more)) for prompt in prompts]
        contexts = self._contexts(inputs)
        with jax.set_mesh(self.mesh):
            tokens = self._generator.generate(
                **self._sampling(inputs, decoding, max_tokens, seed=seed),
                is_over=self._stop_check(contexts, decoding) if decoding.stop else None,
            )
        return [
            self._decode_continuation(context, row, decoding)
            for context, row in zip(contexts, tokens, strict=True)
        ]

    def search(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int | None = None,
        **options: Any,
    ) -> list[list[dict[str, Any]]]:
        """Return the best continuations of each prompt that beam search finds.

        Args:
          prompts: texts, or the sources of an encoder-decoder.
          max_tokens: as for `generate`.
          options: leaves of `DecodingConfig`, such as `num_beams=4`.

        Returns:
          For each prompt `num_return` hypotheses, the best first: `text`; `log_prob` in
          nats, that of the end of text included; `score`, by which they are ranked.

        Raises:
          UserError: an option is out of range, or there are too many tokens.
        """
        if options.get("num_beams") is None and self._write.num_beams == 1:
            options["num_beams"] = DecodingConfig.num_beams
        decoding = self._choose_decoding(options)
        inputs = self._encode_prompts(prompts, decoding)
        return self._beam_search(inputs, decoding, max_tokens)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        seed: int = 0,
        draft: "LanguageModel | None" = None,
        num_draft: int = NUM_DRAFT,
        **options: Any,
    ) -> Iterator[str]:
        """Yield the continuation of one prompt in pieces, as they are generated.

        Together they are what `generate` returns; arguments as for `generate`. What
        may begin a text to stop at is held back.
        """
        decoding = self._choose_decoding(options)
        inputs = self._encode_prompts([prompt], decoding)
        if decoding.num_beams > 1:
            yield self._beam_search(inputs, decoding, max_tokens)[0][0]["text"]
            return
        arguments = self._sampling(inputs, decoding, max_tokens, seed=seed)
        if draft is None:
            columns = self._generator.stream(**arguments, block=STREAM_BLOCK)
        else:
            columns = self._speculate(draft, num_draft, **arguments)
        columns = self._within_mesh(columns)
        text = self._stopped_stream(self._contexts(inputs)[0], decoding)
        for column in columns:
            yield "".join(text.add(int(token)) for token in column if token >= 0)
            if text.is_over:
                return
        yield text.rest()

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """Return the assistant's answer to the last turn of a chat.

        Arguments as for `stream_chat`.
        """
        return "".join(self.stream_chat(messages, **options)).strip()

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        seed: int = 0,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        on_dropped: Callable[[int], None] = tell_dropped,
        **options: Any,
    ) -> Iterator[str]:
        """Yield the assistant's answer to the last turn of a chat, as it is written.

        The chat is written by its template. Where it is longer than the model reads,
        the oldest turns are left out, but not what the system says.

        Args:
          messages: each with `role` (system, user, assistant, tool) and `content`.
          max_tokens: of the answer; by default up to 512, as far as they fit.
          seed: of the sampling.
          tools: JSON schemas of functions, for a template that knows tools.
          chat_template: its name, such as chatml; "own": that of the tokenizer; by
            default `config.tokenizer.chat_template`.
          on_dropped: is told how many messages are left out; by default it is logged.
          options: leaves of `DecodingConfig`, as for `generate`.

        Raises:
          UserError: there is no template, it refuses the messages, or the last turn
            does not fit; or as `generate`.
        """
        checked = check_messages(messages)
        template = choose_template(self, chat_template)
        question = ask(
            self,
            checked,
            template,
            decoding=self._choose_decoding(options),
            max_tokens=max_tokens,
            tools=tools,
        )
        if question.num_dropped:
            on_dropped(question.num_dropped)
        ends = {name: getattr(question.decoding, name) for name in ("stop", "stop_ids")}
        more: Any = {**options, **ends, "max_tokens": question.max_tokens, "seed": seed}
        has_begun = False
        for piece in self.stream(question.ids, **more):
            text = piece if has_begun else piece.lstrip()
            if text:
                has_begun = True
                yield text

    def score(
        self,
        texts: Sequence[ScoredText],
        *,
        eos: bool = False,
        prefix_token: int | None = None,
        per_token: bool = False,
        window: int | None = None,
        stride: int | None = None,
    ) -> list[dict[str, Any]]:
        """Return the log-probability of each text, or of each (context, text) pair.

        That of a text given a context is over the tokens of the whole that are not
        those of the context alone, as in lm-evaluation-harness: a tokenizer may put a
        space before a text, or merge the characters at the seam. The first token of a
        text is conditioned on the tokenizer's BOS, and is not scored if there is
        neither BOS nor context.

        Args:
          texts: to score; each part may also be token ids, which are read as they are,
            without BOS. An encoder-decoder takes pairs only: the context is its source.
          eos: also score the end of text.
          prefix_token: the id that all of them begin with, in place of the BOS.
          per_token: also return what is known of each scored token.
          window: how many tokens of a longer text the model reads at once; by default
            as many as it has positions.
          stride: how many of them are scored, by default half: each token is given at
            least `window - stride` tokens before it.

        Returns:
          `log_prob` in nats, `num_tokens` scored, `perplexity` (None without tokens).
          With `per_token` also `tokens` (their ids), `token_log_probs`,
          `token_is_greedy` (no other token is more likely), and `is_greedy`, of all.

        Raises:
          UserError: the model generates no text, an encoder-decoder has no source,
            there is no such token, or no end of text.
        """
        rows, scores = self.score_tokens(
            texts, eos=eos, prefix_token=prefix_token, window=window, stride=stride
        )
        pairs = zip(rows, scores, strict=True)
        return [describe_score(ids, s, per_token=per_token) for ids, s in pairs]

    def score_tokens(
        self,
        texts: Sequence[ScoredText],
        *,
        eos: bool = False,
        prefix_token: int | None = None,
        window: int | None = None,
        stride: int | None = None,
    ) -> tuple[list[Sequence[int]], list[TokenScores]]:
        """Return the ids of each text, and what is known of those that are scored.

        Arguments and errors as for `score`.
        """
        inputs = encode_scored(
            self.tokenizer,
            texts,
            config=self.model.config,
            eos=eos,
            prefix_token=prefix_token,
        )
        windows = choose_windows(window, stride, longest=self.model.config.longest_text)
        with jax.set_mesh(self.mesh):
            scores = self._scorer.score_tokens(self.params, **inputs, windows=windows)
        return [ids for _, ids in inputs["texts"]], scores

    def predict(
        self, examples: Sequence[Mapping[str, Any] | str]
    ) -> list[dict[str, Any]]:
        """Return the prediction of a fine-tuned model for each example.

        Args:
          examples: with the fields of the run's own data, except labels and targets; or
            a text, if that is the only field.

        Returns:
          One dict per example. `classify`: `label`, and `probabilities` by label.
          `tag`: `tags`, one per word. `span_qa`: `answer`, its `start` in characters of
          the context, and its `score`. `seq2seq` and `prompted_lm`: `text`, its `score`
          and `log_prob`, and the `others` if several are returned.

        Raises:
          UserError: an example lacks a field, or the task has no predictions.
        """
        parsed = self.predictor.parse_all(examples)
        encoded = self.predictor.encode_examples(parsed)
        return self.predictor.predict(self.params, encoded, mesh=self.mesh)

    def explain(
        self,
        example: Mapping[str, Any] | str,
        method: str = "integrated_gradients",
        *,
        target: Any = None,
        baseline: Baseline = "zero",
        layer: int | None = None,
        head: int | None = None,
    ) -> Explanation:
        """Return what tokens a prediction rests on.

        Each method explains the log-probability of the prediction, in nats:
          integrated_gradients: the share of each token in what the text adds to it over
            a baseline (Sundararajan et al. 2017); the shares add up to that.
          leave_one_out: what it loses without the token (Li et al. 2016).
          attention_rollout: how much of each token arrives at the places that the
            prediction is made from (Abnar and Zuidema 2020).
          attention: the weights of attention, to the source where there is one.
          logit_lens: what each layer would predict if it were the last one
            (nostalgebraist 2020).

        Args:
          example: as for `predict`; or the text that a language model continues, or the
            source that it translates.
          method: one of the above.
          target: what to explain, by default the model's own prediction: a label, the
            index of a word that is tagged (by default all of them), an answer in the
            context, or a text; of a language model by default the likeliest token.
          baseline: the vector of a token that is not there: of zeros, or that of the
            mask token.
          layer: of `attention`; by default the mean of all.
          head: the same.

        Raises:
          UserError: the method means nothing for the model or its task; the example or
            the target is wrong, or too long.
        """
        check_method(self.config, method)
        if self.config.task.kind in EXAMPLE_TASKS:
            parsed = self.predictor.parse(example)
            found: dict[str, Any] = {}
            if target is None or isinstance(target, int):
                encoded = self.predictor.encode_examples([parsed])
                [found] = self.predictor.predict(self.params, encoded, mesh=self.mesh)
            return self.explain_prediction(
                parsed,
                found,
                method,
                target=target,
                baseline=baseline,
                layer=layer,
                head=head,
            )
        if not isinstance(example, str):
            raise UserError(f"example: must be a text, not {type(example).__name__}")
        explained = self._explain_text(example, target)
        return self._explainer.explain(
            self.params,
            explained,
            method=method,
            baseline=baseline,
            layer=layer,
            head=head,
        )

    def explain_prediction(
        self,
        parsed: Any,
        prediction: dict[str, Any],
        method: str,
        *,
        target: Any = None,
        **options: Any,
    ) -> Explanation:
        """Explain a prediction that is made already; arguments as for `explain`.

        Args:
          parsed: the example, of `predictor.parse`.
          prediction: for it.
          method: as for `explain`.
          target: as for `explain`.
          options: as for `explain`.
        """
        explained = explain_example(
            self.config,
            self.predictor.features,
            self.tokenizer,
            parsed,
            prediction,
            target,
        )
        return self._explainer.explain(self.params, explained, method=method, **options)

    def _explain_text(self, text: str, target: Any) -> Explained:
        config = self.model.config
        if target is None and config.is_encoder_decoder:
            [target] = self.generate([text])
        if target is None:
            [ids] = encode_prompts(self.tokenizer, [text], config=config)["prompts"]
            if not ids:
                raise UserError("text: has no tokens to explain")
            known = self.tokenizer.vocab_size  # the table may have more rows
            target = [int(self.logits([ids])[0, -1, :known].argmax())]
        elif not isinstance(target, str):
            raise UserError(f"target = {target!r}: must be a text")
        return explain_text(self.tokenizer, text, target, config=config)

    @functools.cached_property
    def _explainer(self) -> Explainer:
        return Explainer(self.config, self.tokenizer, self._observable, self.mesh)

    @functools.cached_property
    def _internals(self) -> Internals:
        return Internals(self._observable)

    @functools.cached_property
    def _observable(self) -> Model:
        platform = self.mesh.devices.flat[0].platform
        return make_observable(self.model.config, platform=platform)

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The run's task, applied to examples."""
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
            problem = "needs one" if source is None else "takes none"
            raise UserError(f"source: config.model.kind = {config.kind!r} {problem}")
        batch = make_batch("tokens", tokens, segments, config=config)
        if source is not None:
            arrays = make_batch("source", source, source_segments, config=config)
            batch["source"] = arrays.pop("tokens")
            batch |= {f"source_{name}": array for name, array in arrays.items()}
        if token_types is not None:
            batch["token_types"] = np.asarray(token_types)
        return {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}

    def _map_texts(self, compute: Any, batch: Batch) -> Array:
        """Apply a function of parameters and batch to all texts of a batch."""
        length = batch["tokens"].shape[1]
        limit = self.model.config.max_positions
        padded = pad_lengths(batch, lambda n: padded_length(n, limit=limit))
        with jax.set_mesh(self.mesh):
            if self.config.model.one_text_per_row:
                apply = functools.partial(compute, self.params)
                return map_segments(apply, padded)[:, :length]
            return compute(self.params, padded)[:, :length]

    @property
    def _write(self) -> DecodingConfig:
        """How the model writes texts where a caller does not say."""
        write = getattr(self.config.task, "write", None)
        return write if isinstance(write, DecodingConfig) else SamplingConfig()

    def _choose_decoding(self, options: dict[str, Any]) -> DecodingConfig:
        if isinstance(stop := options.get("stop"), str):
            options = {**options, "stop": (stop,)}
        elif isinstance(stop, list):
            options = {**options, "stop": tuple(stop)}
        return choose_decoding(self._write, **options)

    def _encode_prompts(
        self, prompts: Sequence[Prompt], decoding: DecodingConfig
    ) -> dict[str, Any]:
        config = self.model.config
        inputs = encode_prompts(self.tokenizer, prompts, config=config)
        return begin_texts(inputs, decoding=decoding, config=config)

    def _max_new_tokens(
        self, inputs: dict[str, Any], decoding: DecodingConfig, requested: int | None
    ) -> int:
        """Return the tokens to generate: by default as many as fit, at most 64."""
        if requested is not None:
            return requested
        lengths = [len(prompt) for prompt in inputs["prompts"]]
        limit = self.model.config.longest_continuation
        room = min((limit(length) - length for length in lengths), default=0)
        longest = max(lengths, default=0)
        most = decoding.max_tokens or max(decoding.max_length - longest, 0)
        return max(1, min(most or DEFAULT_MAX_TOKENS, room))

    def _sampling(
        self,
        inputs: dict[str, Any],
        decoding: DecodingConfig,
        max_tokens: int | None,
        *,
        seed: int,
    ) -> dict[str, Any]:
        """Return the arguments of `Generator`."""
        sampling = Sampling.from_config(
            decoding, decoder_prefix_ids=self.model.config.decoder_prefix_ids
        )
        return {
            **inputs,
            "params": self._prepared,
            "max_tokens": self._max_new_tokens(inputs, decoding, max_tokens),
            "sampling": sampling,
            "stop_ids": decoding.stop_ids or self.tokenizer.stop_ids,
            "seed": seed,
        }

    def _speculate(
        self,
        draft: "LanguageModel",
        num_draft: int,
        *,
        params: Params,
        prompts: Sequence[Sequence[int]],
        sources: Any = None,
        **arguments: Any,
    ) -> Iterator[Any]:
        """Yield the next tokens of one text, some at a time.

        Raises:
          UserError: the draft has another tokenizer.
        """
        if draft.tokenizer.fingerprint() != self.tokenizer.fingerprint():
            raise UserError("draft: its tokenizer is not that of the model")
        key = (draft, num_draft)
        if key not in self._speculative:
            self._speculative[key] = SpeculativeGenerator(
                self._generator, draft._generator, num_draft
            )
        yield from self._speculative[key].stream(
            params,
            jax.device_put(draft._prepared, sharding.replicated(self.mesh)),
            prompts[0],
            source=sources[0] if sources else None,
            **arguments,
            block=STREAM_BLOCK,
        )

    @functools.cached_property
    def _speculative(self) -> dict[Any, SpeculativeGenerator]:
        return {}  # compiled for a draft and its number of tokens

    def _within_mesh(self, columns: Iterator[T]) -> Iterator[T]:
        """Yield the items of an iterator that computes on the mesh."""
        while True:
            # The mesh is set while the model computes, but not while the caller does.
            with jax.set_mesh(self.mesh):
                column = next(columns, None)
            if column is None:
                return
            yield column

    def _stop_check(
        self, contexts: Sequence[Sequence[int]], decoding: DecodingConfig
    ) -> IsOver:
        """Return what tells, of the tokens of a text so far, whether it is over."""
        texts = [self._stopped_stream(context, decoding) for context in contexts]
        seen = [0] * len(texts)

        def is_over(index: int, tokens: list[int]) -> bool:
            new, seen[index] = tokens[seen[index] :], len(tokens)
            for token in new:
                texts[index].add(token)
            return texts[index].is_over

        return is_over

    def _stopped_stream(
        self, context: Sequence[int], decoding: DecodingConfig
    ) -> StoppedStream:
        config = self.model.config
        first = decoding.constraints(config.decoder_prefix_ids).force_first
        return StoppedStream(
            TextStream(self.tokenizer, context),
            StoppedText(decoding.stop),
            forced=first if config.is_encoder_decoder else -1,
        )

    def _beam_search(
        self, inputs: dict[str, Any], decoding: DecodingConfig, max_tokens: int | None
    ) -> list[list[dict[str, Any]]]:
        """Return the hypotheses of a beam search, as JSON."""
        max_tokens = self._max_new_tokens(inputs, decoding, max_tokens)
        config = dataclasses.replace(decoding, max_tokens=max_tokens)
        with jax.set_mesh(self.mesh):
            rows = self._searcher.search(
                self._prepared,
                **inputs,
                config=config,
                stop_ids=decoding.stop_ids or self.tokenizer.stop_ids,
            )
        return [
            [
                h.to_dict(self._decode_continuation(context, h.tokens, decoding))
                for h in row
            ]
            for context, row in zip(self._contexts(inputs), rows, strict=True)
        ]

    def _contexts(self, inputs: dict[str, Any]) -> list[list[int]]:
        """Return the ids that each continuation follows: none after a source."""
        prompts = inputs["prompts"]
        return [[]] * len(prompts) if "sources" in inputs else prompts

    def _decode_continuation(
        self, context: Sequence[int], ids: Sequence[int], decoding: DecodingConfig
    ) -> str:
        """Return the text of `ids` as a continuation, spaces at its start included."""
        ids = drop_forced(ids, decoding=decoding, config=self.model.config)
        text = decode_continuation(self.tokenizer, context, ids)
        return cut_text(text, decoding.stop)

    @functools.cached_property
    def _prepared(self) -> Params:
        return self.model.prepare(self.params)

    @functools.cached_property
    def _apply(self) -> Any:
        return jax.jit(self.model.apply)

    @functools.cached_property
    def _hidden(self) -> Any:
        return jax.jit(self.model.hidden)

    @functools.cached_property
    def _embedding(self) -> Any:
        return jax.jit(self.model.embedding)

    @functools.cached_property
    def _generator(self) -> Generator:
        return Generator(self.model, self.tokenizer.vocab_size)

    @functools.cached_property
    def _searcher(self) -> BeamSearch:
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
      directory: the workdir of a training run or of an imported model.
      step: of a checkpoint, or "best" by the run's `best_metric`; by default the
        newest.
      mesh: the devices to put the parameters on. By default all, with the run's own
        mesh if it fits them, else with the parameters split over them, else with all
        parameters on each.
      overrides: `a.b=value` of the run's config, such as "task.write.num_beams=8".

    Raises:
      UserError: there is no run, no such checkpoint, or an override is wrong.
    """
    directory = open_path(directory).expanduser()
    config = workdir.read_config(directory, overrides)
    compilation_cache.use_cache(config.compile)
    with open_checkpoints(directory, config) as checkpoints:
        return checkpoints.read(
            step,
            lambda found: restore_language_model(
                directory, config, checkpoints, step=found, mesh=mesh
            ),
        )


def restore_language_model(
    directory: Path,
    config: Config,
    checkpoints: Checkpoints,
    *,
    step: int,
    mesh: Mesh | None = None,
) -> LanguageModel:
    """Return the model of a workdir whose config and checkpoints are open already.

    Arguments as for `load`; the step is that of a checkpoint which exists.
    """
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    model = models.build(config.model.for_inference(), platform=device.platform)
    if mesh is None:
        # A model that was split over devices may not fit one of them.
        candidates = (config.mesh.without_context(), MeshConfig(data=1, fsdp=-1))
        mesh = sharding.fitting_mesh(candidates, axes=model.axes, shapes=model.shapes)
    params = checkpoints.restore_params(model, mesh, step=step)
    tokenizer = load_tokenizer(directory / "tokenizer")
    return LanguageModel(config, tokenizer, model, params, mesh, step)
