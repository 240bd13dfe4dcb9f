"""Recurrent encoder-decoders with attention.

B batch, R rows of targets (B, or B times beams), S source length, T length, D dim,
M memory.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from lmjax.config.model import RecurrentEncoderDecoderConfig
from lmjax.models import flops
from lmjax.models.heads import Head, OutputLayer
from lmjax.nn import intermediates
from lmjax.nn.linear import Embed
from lmjax.nn.recurrent.attention import Memory, make_memory
from lmjax.nn.recurrent.attention_decoder import Bridge, make_attention_decoder
from lmjax.nn.recurrent.decode_state import RecurrentDecodeState
from lmjax.nn.recurrent.layers import Recurrent, State
from lmjax.types import Array, Batch


class RecurrentEncoderDecoder(nnx.Module):
    """Bahdanau et al. 2015 or Luong et al. 2015, by `config.attention`.

    A row holds one source and one target, both of segment 1. All else is padding.

    Source and target share one embedding table. Dropout is that of Zaremba et al. 2014:
    on the embeddings, between layers, and before the head.
    """

    def __init__(self, key: Array, config: RecurrentEncoderDecoderConfig) -> None:
        c, keys = config, jax.random.split(key, 5)
        self.config = c
        table = {"vocab": c.vocab_size, "embed": c.dim}
        self.embed = Embed(keys[0], table, std=0.1 * 3**-0.5)
        self.encoder = Recurrent(
            keys[1],
            cell=c.cell,
            dim=c.dim,
            hidden_dim=c.hidden_dim,
            num_layers=c.num_encoder_layers,
            bidirectional=True,
            dropout=c.dropout,
            variational=c.variational_dropout,
        )
        self.bridge = Bridge(keys[2], c)
        self.decoder = make_attention_decoder(keys[3], c)
        self.head = Head(keys[4], c)

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Array:
        """Return the decoder's outputs (B, T, D); dropout only with a key."""
        keys = (None, None) if key is None else jax.random.split(key)
        source = self._encode(batch, keys[0])
        layers = self._init_layers(source)
        return self._decode(
            batch["tokens"], batch["segments"], layers, source, key=keys[1]
        )[0]

    def init_decode_state(
        self, *, num_rows: int, num_slots: int, source: Batch | None
    ) -> RecurrentDecodeState:
        """Encode a source, and return the state before the first token.

        Args:
          num_rows: as many as the source has.
          num_slots: not used: the state does not grow with the text.
          source: source, source_segments (1, or 0 at padding) and source_positions,
            each (B, S).
        """
        assert source is not None
        memory = self._encode(source, None)
        return RecurrentDecodeState(layers=self._init_layers(memory), source=memory)

    def extend(
        self,
        tokens_RT: Array,
        state: RecurrentDecodeState,
        *,
        positions_RT: Array,
        segments_RT: Array,
    ) -> tuple[Array, RecurrentDecodeState]:
        """Return the outputs (R, T, D) for new tokens, and the new state.

        Args:
          tokens_RT: int32 ids, which begin with `config.decoder_prefix_ids`.
          state: the tokens before them, and the source.
          positions_RT: not used: the state implies them.
          segments_RT: int32; all but 1 is padding, which changes no state.
        """
        source = state.source
        assert source is not None
        out_RTD, layers = self._decode(
            tokens_RT, segments_RT, state.layers, source, key=None
        )
        return out_RTD, RecurrentDecodeState(layers=layers, source=source)

    def output_layer(self, x: Array) -> OutputLayer:
        """Return the output layer of the decoder's outputs (..., D)."""
        return self.head(x, self.embed)

    @staticmethod
    def resolve(
        config: RecurrentEncoderDecoderConfig,
        *,
        platform: str,
        mesh: Mesh | None = None,
    ) -> RecurrentEncoderDecoderConfig:
        """Return the config: no leaf but `dtype` depends on the platform."""
        return config

    @staticmethod
    def count_macs(
        config: RecurrentEncoderDecoderConfig,
        kernels: flops.KernelSizes,
        batch: Batch,
    ) -> float:
        """Return the multiply-adds of a forward pass over one row and its source."""
        length, source = batch["tokens"].shape[1], batch["source"].shape[1]
        # Attention projects each state of the source to a key. For each pair of a token
        # and a source token it computes a score over the hidden states, and adds a
        # state of both directions to the weighted sum.
        key = kernels("decoder.attention.key.")
        in_pairs = kernels("decoder.attention.score.")
        return (
            source * (kernels("encoder.") + key)
            + length * (kernels("decoder.") - key - in_pairs)
            + length * source * 3 * config.hidden_dim
            + kernels("bridge.")
            + flops.head_macs(config, kernels, batch)
        )

    def _encode(self, batch: Batch, key: Array | None) -> Memory:
        keys = (None, None) if key is None else jax.random.split(key)
        real_BS = batch["source_segments"] == 1
        x_BSD = self.embed(batch["source"], jnp.dtype(self.config.dtype))
        x_BSD = intermediates.record("source_embeddings", x_BSD)
        states_BSM, _ = self.encoder(
            self.encoder.drop(x_BSD, keys[0]),
            positions_BT=batch["source_positions"],
            segments_BT=real_BS,
            key=keys[1],
        )
        return make_memory(self.decoder.attention, states_BSM, real_BS)

    def _init_layers(self, source: Memory) -> State:
        """Return the decoder's states before the first token."""
        layers = self.bridge(source)
        if self.decoder.fed_dim:
            shape = (len(source.real_BS), self.decoder.fed_dim)
            layers["fed"] = jnp.zeros(shape, jnp.float32)
        return layers

    def _decode(
        self,
        tokens_RT: Array,
        segments_RT: Array,
        layers: State,
        source: Memory,
        *,
        key: Array | None,
    ) -> tuple[Array, State]:
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        drop = self.encoder.drop
        x_RTD = self.embed(tokens_RT, jnp.dtype(self.config.dtype))
        x_RTD = drop(intermediates.record("embeddings", x_RTD), keys[0])
        out_RTD, layers = self.decoder(
            x_RTD, source, real_BT=segments_RT == 1, state=layers, key=keys[1]
        )
        return drop(out_RTD, keys[2]), layers
