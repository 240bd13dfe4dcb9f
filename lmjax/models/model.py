"""The interface of all networks: pure functions over parameters in plain dicts.

B batch, R rows of texts (B, or B times beams), T length, D dim, V vocabulary, C labels.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from lmjax.config.model import ModelConfig
from lmjax.errors import ConfigError
from lmjax.models import flops
from lmjax.models.decoder import Decoder
from lmjax.models.encdec import EncoderDecoder
from lmjax.models.encoder import Encoder
from lmjax.models.heads import OutputLayer
from lmjax.models.prepare import prepare
from lmjax.models.recurrent import RecurrentNetwork
from lmjax.models.recurrent_encdec import RecurrentEncoderDecoder
from lmjax.models.word_vectors import WordVectorsNetwork
from lmjax.nn import intermediates
from lmjax.nn.decode_state import DecodeState
from lmjax.nn.recurrent.layers import State
from lmjax.types import Array, Axes, Batch, Params

# By `config.model.kind`. Each class has
#   __call__(batch, key): the last hidden states (B, T, D) of whole sequences;
#   output_layer(x): to logits over the vocabulary, of hidden states;
#   init_decode_state(...) and extend(tokens, state, ...): decoding, if it generates;
#   resolve(config, platform, mesh): the config with each "auto" decided;
#   count_macs(config, kernels, batch): the multiply-adds of a row.
# Labels need `classifier` and `summary`, vectors of texts `embedding`, and a carry
# between windows `hidden_with_carry`.
MODELS: dict[str, Any] = {
    "decoder": Decoder,
    "encoder": Encoder,
    "encoder_decoder": EncoderDecoder,
    "recurrent": RecurrentNetwork,
    "recurrent_encoder_decoder": RecurrentEncoderDecoder,
    "word_vectors": WordVectorsNetwork,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A network without its arrays."""

    config: ModelConfig
    graphdef: Any
    shapes: Params  # ShapeDtypeStruct
    axes: Axes

    def init(self, key: Array) -> Params:
        """Return fresh parameters."""
        return _pure(self._network(key, self.config))

    def hidden(
        self, params: Params, batch: Batch, *, key: Array | None = None
    ) -> Array:
        """Return the last hidden states (B, T, D); dropout only with a key."""
        return self._module(params)(batch, key=key)

    def hidden_with_intermediates(
        self, params: Params, batch: Batch
    ) -> tuple[Array, dict[str, Array]]:
        """Return the last hidden states (B, T, D), and the arrays of `capture`."""
        with self.capture() as captured:
            hidden = self.hidden(params, batch)
        return hidden, captured

    @staticmethod
    def capture(
        replace: Mapping[str, Array] | None = None,
    ) -> contextlib.AbstractContextManager[dict[str, Array]]:
        """Collect the arrays within the network while it is traced.

        They are `embeddings` (B, T, D) of the tokens, and of a Transformer `embedded`
        with their positions, `hidden` (L, B, T, D) after each block, `last_hidden`
        before the last norm, and, if `config.attention` is "xla", `attention`
        (L, B, N, T, T). With a source there are `cross_attention` (L, B, N, T, S), and
        `source_embeddings` and the like of the encoder. A recurrent decoder has
        `cross_attention` (B, T, S) or (B, T, 1, S).

        Args:
          replace: arrays to use in place of `embeddings`, `source_embeddings` or
            `last_hidden`.
        """
        return intermediates.capture(replace)

    def apply(self, params: Params, batch: Batch, *, key: Array | None = None) -> Array:
        """Return float32 logits (B, T, V); dropout only with a key."""
        module = self._module(params)
        return module.output_layer(module(batch, key=key)).logits()

    def hidden_with_carry(
        self, params: Params, batch: Batch, carry: State, *, key: Array | None = None
    ) -> tuple[Array, State]:
        """Return hidden states (B, T, D) that continue from a carry, and the new one.

        Args:
          params: the model's.
          batch: its `positions` are 0 only where a document begins, which forgets the
            one before.
          carry: of `init_carry`, or of the window of text before this one.
          key: for dropout; none without it.
        """
        return self._module(params).hidden_with_carry(batch, carry, key=key)

    def init_carry(self, num_rows: int) -> State:
        """Return the carry of a recurrent network before the first window of text."""
        return self._network.init_carry(self.config, num_rows=num_rows)

    def prepare(self, params: Params) -> Params:
        """Return parameters as decoding reads them; see `prepare`."""
        return prepare(params, config=self.config, axes=self.axes)

    def prefill(
        self,
        params: Params,
        tokens_BT: Array,
        lengths_B: Array,
        *,
        cache_length: int,
        source: Batch | None = None,
    ) -> tuple[Array, DecodeState]:
        """Read prompts; return the logits (B, V) after each, and the decode state.

        Args:
          params: the model's.
          tokens_BT: prompts, padded on the right.
          lengths_B: of the prompts, each >= 1.
          cache_length: tokens of prompt and continuation to make room for. The state of
            a recurrent network does not grow with it.
          source: for an encoder-decoder: source, source_segments, source_positions.

        Raises:
          ConfigError: the model cannot generate text.
        """
        num_rows, length = tokens_BT.shape
        assert length <= cache_length, (length, cache_length)
        if not self.config.can_generate:
            obstacle = self.config.generation_obstacle
            raise ConfigError(f"config.model.{obstacle}: it generates no text")
        positions = jnp.broadcast_to(jnp.arange(length), tokens_BT.shape)
        segments = (positions < lengths_B[:, None]).astype(jnp.int32)
        module = self._module(params)
        state = module.init_decode_state(
            num_rows=num_rows, num_slots=cache_length, source=source
        )
        hidden, state = module.extend(
            tokens_BT, state, positions_RT=positions, segments_RT=segments
        )
        last = jnp.take_along_axis(hidden, (lengths_B - 1)[:, None, None], axis=1)
        return module.output_layer(last[:, 0]).logits(), state

    def decode_step(
        self,
        params: Params,
        tokens_R: Array,
        positions_R: Array,
        state: DecodeState,
    ) -> tuple[Array, DecodeState]:
        """Read one more token of each text; return the logits (R, V) and the new state.

        Beams make more texts than there were prompts: R is as many as `state` has.
        """
        logits, state = self.extend(
            params, tokens_R[:, None], positions_R[:, None], state
        )
        return logits[:, 0], state

    def extend(
        self,
        params: Params,
        tokens_RT: Array,
        positions_RT: Array,
        state: DecodeState,
    ) -> tuple[Array, DecodeState]:
        """Read T more tokens of each text; return the logits (R, T, V) after each."""
        module = self._module(params)
        hidden, state = module.extend(
            tokens_RT,
            state,
            positions_RT=positions_RT,
            segments_RT=jnp.ones_like(tokens_RT),
        )
        return module.output_layer(hidden).logits(), state

    def neighbours(self, params: Params, ids: Array) -> Array:
        """Return the vectors (..., D) of words as neighbours, of a model of words."""
        return self._module(params).neighbours(ids)

    def pooled(self, params: Params, hidden_BTD: Array) -> Array:
        """Return an encoder's vector (B, D) for each row of hidden states."""
        return self._module(params).pooled(hidden_BTD)

    def pair_logits(self, params: Params, hidden_BTD: Array) -> Array:
        """Return an encoder's logits (B, 2): are the two texts in order, or swapped?"""
        return self._module(params).pair_logits(hidden_BTD)

    def summary(self, params: Params, hidden_BTD: Array, segments_BT: Array) -> Array:
        """Return the vector (B, D) of each row that is classified."""
        return self._module(params).summary(hidden_BTD, segments_BT)

    def embedding(self, params: Params, batch: Batch) -> Array:
        """Return the vector of each row, float32 (B, E): `config.text_embedding`."""
        module = self._module(params)
        return module.embedding(module(batch), batch["segments"])

    def label_logits(
        self, params: Params, x: Array, *, key: Array | None = None
    ) -> Array:
        """Return float32 logits (..., C) over labels of vectors (..., D).

        Dropout only with a key.

        Raises:
          ConfigError: the model has no head for labels.
        """
        classifier = self._module(params).classifier
        if classifier is None:
            raise ConfigError("config.model.num_labels = 0: the model gives no labels")
        return classifier(x, key=key)

    def output_layer(self, params: Params, hidden: Array) -> OutputLayer:
        """Return what gives the logits over the vocabulary of hidden states (..., D).

        Raises:
          ConfigError: the model has no head over the vocabulary.
        """
        return self._module(params).output_layer(hidden)

    def token_logits(self, params: Params, hidden: Array) -> Array:
        """Return float32 logits (..., V) of hidden states (..., D)."""
        return self.output_layer(params, hidden).logits()

    def flops_per_token(self, batch: Batch) -> float:
        """Return the FLOPs of training on one token, forward and backward.

        `models/flops.py` says which operations are counted.

        Args:
          batch: anything with the shapes of a batch: tokens, and a source, labels or
            targets where there are some. Tokens of the source count as tokens.
        """
        kernels = flops.kernel_sizes(self.shapes)
        macs = self._network.count_macs(self.config, kernels, batch)
        return 6 * macs * batch["tokens"].shape[0] / flops.num_tokens(batch)

    @property
    def _network(self) -> Any:
        return MODELS[self.config.kind]

    def _module(self, params: Params) -> Any:
        return nnx.merge(self.graphdef, params)


def build(config: ModelConfig, *, platform: str, mesh: Mesh | None = None) -> Model:
    """Return the model of a config; allocates nothing.

    Args:
      config: of the model.
      platform: "cpu", "gpu" or "tpu".
      mesh: that it runs on, if it is known: kernels are chosen for its devices.

    Raises:
      ConfigError: the attention kernel that the config names does not support it.
    """
    assert config.vocab_size > 0, "the vocabulary must be known"
    config = resolve(config, platform=platform, mesh=mesh)
    make = functools.partial(MODELS[config.kind], config=config)
    module = jax.eval_shape(make, jax.random.key(0))
    graphdef, state = nnx.split(module)
    axes = jax.tree.map(_axes, state, is_leaf=_is_variable)
    return Model(config, graphdef, nnx.to_pure_dict(state), nnx.to_pure_dict(axes))


def resolve(
    config: ModelConfig, *, platform: str, mesh: Mesh | None = None
) -> ModelConfig:
    """Return the config with each "auto" decided; arguments as for `build`."""
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    config = dataclasses.replace(config, dtype=dtype)
    return MODELS[config.kind].resolve(config, platform=platform, mesh=mesh)


def _pure(module: nnx.Module) -> Params:
    return nnx.to_pure_dict(nnx.split(module)[1])


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _axes(variable: Any) -> Any:
    """Return a variable whose value is its axes, "layers" added where stacked."""
    axes = variable.get_metadata().get("axes")
    if axes is not None and len(variable.shape) == len(axes) + 1:
        axes = ("layers", *axes)
    return variable.replace(axes)
