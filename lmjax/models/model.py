"""What the rest of lmjax sees of a network: pure functions over plain dicts.

B batch, T length, S cache slots, D dim, V vocabulary, L layers, C labels.
"""

import dataclasses
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import ModelConfig, RecurrentConfig, TransformerConfig
from lmjax.errors import ConfigError
from lmjax.models.decoder import Decoder
from lmjax.models.encdec import EncoderDecoder
from lmjax.models.encoder import Encoder
from lmjax.models.recurrent import RecurrentNetwork
from lmjax.models.recurrent_encdec import RecurrentEncoderDecoder
from lmjax.nn.attention import KVCache, cudnn_obstacle
from lmjax.nn.beams import take_beams
from lmjax.nn.block import Cache
from lmjax.nn.recurrent.attention import Reading
from lmjax.nn.recurrent.layers import State, zero_state
from lmjax.types import Array, Axes, Batch, Params

MODELS: dict[str, Any] = {
    "decoder": Decoder,
    "encoder": Encoder,
    "encoder_decoder": EncoderDecoder,
    "recurrent": RecurrentNetwork,
    "recurrent_encoder_decoder": RecurrentEncoderDecoder,
}

# What decoding goes on from: of Transformers, of recurrent networks, and of those that
# read a source.
AnyCache = Cache | State | Reading

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A network without its arrays."""

    config: ModelConfig
    graphdef: Any
    shapes: Params  # ShapeDtypeStruct
    axes: Axes

    def init(self, key: Array) -> Params:
        """Return fresh parameters."""
        return _pure(MODELS[self.config.kind](key, self.config))

    def hidden(
        self, params: Params, batch: Batch, *, key: Array | None = None
    ) -> Array:
        """Return the last hidden states (B, T, D); dropout only with a key."""
        return self._module(params)(batch, key=key)

    def apply(self, params: Params, batch: Batch, *, key: Array | None = None) -> Array:
        """Return float32 logits (B, T, V); dropout only with a key."""
        module = self._module(params)
        return module.logits(module(batch, key=key))

    def apply_from(
        self, params: Params, batch: Batch, state: State, *, key: Array | None = None
    ) -> tuple[Array, State]:
        """Return a recurrent network's logits (B, T, V), and its state after them.

        Args:
          params: the model's.
          batch: whose `positions` are 0 only where nothing is to be remembered.
          state: after the tokens before those of the batch.
          key: for dropout; none without it.
        """
        module = self._module(params)
        hidden_BTD, state = module.extend(
            batch["tokens"],
            batch["positions"],
            batch["segments"],
            key=key,
            cache=state,
        )
        return module.logits(hidden_BTD), state

    def start(self, batch_size: int) -> State:
        """Return the state of a recurrent network that has read nothing."""
        c = self.config
        assert isinstance(c, RecurrentConfig)
        return zero_state(c.cell, (batch_size, c.num_layers, c.hidden_dim))

    def prefill(
        self,
        params: Params,
        tokens_BT: Array,
        lengths_B: Array,
        *,
        cache_length: int,
        source: Batch | None = None,
    ) -> tuple[Array, AnyCache]:
        """Read prompts, and return the logits (B, V) that follow each, and a cache.

        What a recurrent network remembers does not grow with the length.

        Args:
          params: the model's.
          tokens_BT: prompts, which start at the left.
          lengths_B: where they end, each >= 1.
          cache_length: tokens of prompt and continuation to make room for.
          source: for a model that reads one: source, source_segments, source_positions.

        Raises:
          ConfigError: the model continues nothing.
        """
        batch_size, length = tokens_BT.shape
        assert length <= cache_length, (length, cache_length)
        if self.config.mute:
            raise ConfigError(f"config.model.{self.config.mute}: it generates no text")
        positions = jnp.broadcast_to(jnp.arange(length), tokens_BT.shape)
        segments = (positions < lengths_B[:, None]).astype(jnp.int32)
        module, memory = self._module(params), {}
        cache: AnyCache
        if self.config.kind == "recurrent":
            cache = self.start(batch_size)
        elif self.config.kind == "recurrent_encoder_decoder":
            cache = module.begin(source)
        else:
            cache = self._empty_cache(batch_size, cache_length, source)
            memory = {} if source is None else {"memory_BSD": module.encode(source)}
        hidden, cache = module.extend(
            tokens_BT, positions, segments, cache=cache, **memory
        )
        last = jnp.take_along_axis(hidden, (lengths_B - 1)[:, None, None], axis=1)
        return module.logits(last[:, 0]), _advance(cache, length)

    def decode_step(
        self,
        params: Params,
        tokens_B: Array,
        positions_B: Array,
        cache: AnyCache,
    ) -> tuple[Array, AnyCache]:
        """Read one more token of each row, and return the logits (B, V) after it."""
        tokens, positions = tokens_B[:, None], positions_B[:, None]
        module = self._module(params)
        hidden, cache = module.extend(
            tokens, positions, jnp.ones_like(tokens), cache=cache
        )
        return module.logits(hidden[:, 0]), _advance(cache, 1)

    def pooled(self, params: Params, hidden_BTD: Array) -> Array:
        """Return an encoder's vector (B, D) for each row of hidden states."""
        return self._module(params).pooled(hidden_BTD)

    def pair_logits(self, params: Params, hidden_BTD: Array) -> Array:
        """Return an encoder's logits (B, 2): are the two texts in order, or swapped?"""
        return self._module(params).pair_logits(hidden_BTD)

    def summary(self, params: Params, hidden_BTD: Array, segments_BT: Array) -> Array:
        """Return one vector (B, D) for each row, as the kind of model makes it."""
        return self._module(params).summary(hidden_BTD, segments_BT)

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

    def token_logits(self, params: Params, hidden: Array) -> Array:
        """Return float32 logits (..., V) of hidden states (..., D)."""
        return self._module(params).logits(hidden)

    def _module(self, params: Params) -> Any:
        return nnx.merge(self.graphdef, params)

    def _empty_cache(self, batch_size: int, length: int, source: Batch | None) -> Cache:
        own = self._empty_keys(batch_size, length)
        if source is None:
            return Cache(own=own)
        segments_BS = source["source_segments"]
        read = self._empty_keys(*segments_BS.shape)
        return Cache(own=own, source=dataclasses.replace(read, segments_BS=segments_BS))

    def _empty_keys(self, batch_size: int, length: int) -> KVCache:
        c = self.config
        assert isinstance(c, TransformerConfig)
        shape = (c.num_layers, batch_size, length, c.num_kv_heads, c.head_dim)
        return KVCache(
            k_LBSKH=jnp.zeros(shape, c.dtype),
            v_LBSKH=jnp.zeros(shape, c.dtype),
            positions_BS=jnp.zeros((batch_size, length), jnp.int32),
            segments_BS=jnp.zeros((batch_size, length), jnp.int32),
            slot=jnp.zeros((), jnp.int32),
        )


def _advance(cache: AnyCache, num_tokens: int) -> AnyCache:
    if not isinstance(cache, Cache):
        return cache
    own = dataclasses.replace(cache.own, slot=cache.own.slot + num_tokens)
    source = cache.source and dataclasses.replace(cache.source, filled=True)
    return Cache(own=own, source=source)


def take(cache: Any, parents_BK: Array) -> Any:
    """Return a cache of beams, each of which goes on from one of the same row.

    Args:
      cache: of `prefill` or `decode_step`: a `Cache` or `Reading`, which know what
        beams share, or any tree of arrays (R, ...), such as the state of a recurrent
        network.
      parents_BK: as in `take_beams`.
    """
    if isinstance(cache, Cache | Reading):
        return cache.take(parents_BK)
    return jax.tree.map(lambda x: take_beams(x, parents_BK), cache)


def build(config: ModelConfig, *, platform: str) -> Model:
    """Return the model of a config, for "cpu", "gpu" or "tpu"; allocates nothing.

    Raises:
      ConfigError: the attention asked for cannot do what the config asks of it.
    """
    assert config.vocab_size > 0, "the vocabulary must be known"
    config = resolve(config, platform=platform)
    make = functools.partial(MODELS[config.kind], config=config)
    module = jax.eval_shape(make, jax.random.key(0))
    graphdef, state = nnx.split(module)
    axes = jax.tree.map(_axes, state, is_leaf=_is_variable)
    return Model(config, graphdef, nnx.to_pure_dict(state), nnx.to_pure_dict(axes))


def resolve(config: ModelConfig, *, platform: str) -> ModelConfig:
    """Return the config with each "auto" decided for this platform."""
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    if not isinstance(config, TransformerConfig):
        return dataclasses.replace(config, dtype=dtype)
    scan = platform != "cpu" if config.scan_layers == "auto" else config.scan_layers
    obstacle = cudnn_obstacle(
        dtype=jnp.dtype(dtype),
        softcap=config.attention_softcap,
        head_dim=config.head_dim,
        bias=config.position == "relative",
        dropout_rate=config.attention_dropout,
    )
    if platform != "gpu":
        obstacle = f"runs on GPUs only, not on {platform}"
    attention = config.attention
    if attention == "auto":
        attention = "xla" if obstacle else "cudnn"
        # Only a GPU leaves a choice that is worth a line to everyone.
        level = logging.INFO if platform == "gpu" else logging.DEBUG
        why = obstacle or "can serve it"
        log.log(level, "attention: %s (cudnn %s)", attention, why)
    elif attention == "cudnn" and obstacle:
        raise ConfigError(f"config.model.attention = 'cudnn': {obstacle}")
    return dataclasses.replace(
        config, dtype=dtype, scan_layers=scan, attention=attention
    )


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
