"""Recurrent encoder-decoders with attention.

B batch, R rows of targets, S source length, T length, D dim, L layers, H hidden.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import RecurrentEncoderDecoderConfig
from lmjax.models.heads import Head
from lmjax.nn.linear import Embed
from lmjax.nn.recurrent.attention import Memory, Reading, remember
from lmjax.nn.recurrent.attention_decoder import Bridge, make_attentive
from lmjax.nn.recurrent.layers import Recurrent, State
from lmjax.types import Array, Batch


class RecurrentEncoderDecoder(nnx.Module):
    """Bahdanau et al. 2015, or by its config Luong et al. 2015.

    A row holds one source and one text, of segment 1. All else is padding.

    One table has the vectors of source and target. Dropout is where Zaremba et al.
    2014 have it: on what is embedded, between layers, and on what the head reads.
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
        self.decoder = make_attentive(keys[3], c)
        self.head = Head(keys[4], c)

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Array:
        """Return what the decoder puts out (B, T, D); dropout only with a key."""
        keys = (None, None) if key is None else jax.random.split(key)
        cache = self._begun(self._read(batch, keys[0]))
        return self._write(batch["tokens"], batch["segments"], cache, key=keys[1])[0]

    def begin(self, source: Batch) -> Reading:
        """Return where texts stand, one for each source, of which nothing is written.

        Args:
          source: source, source_segments (1, or 0 where there is padding) and
            source_positions, each (B, S).
        """
        return self._begun(self._read(source, None))

    def extend(
        self,
        tokens_RT: Array,
        positions_RT: Array,
        segments_RT: Array,
        *,
        cache: Reading,
    ) -> tuple[Array, Reading]:
        """Return what the decoder puts out for tokens that follow, and where they end.

        Args:
          tokens_RT: int32 ids, which begin with `config.decoder_prefix_ids`.
          positions_RT: not read: the state knows what came before.
          segments_RT: int32; all but 1 is padding, which is not remembered.
          cache: of as many texts, or of sources with equally many each.
        """
        out_RTD, state = self._write(tokens_RT, segments_RT, cache, key=None)
        return out_RTD, Reading(state, cache.memory)

    def logits(self, x: Array) -> Array:
        """Return float32 logits (..., V) of what the decoder puts out (..., D)."""
        return self.head(x, self.embed)

    def _read(self, batch: Batch, key: Array | None) -> Memory:
        keys = (None, None) if key is None else jax.random.split(key)
        real_BS = batch["source_segments"] == 1
        x_BSD = self.embed(batch["source"], jnp.dtype(self.config.dtype))
        states_BSM, _ = self.encoder(
            self.encoder.drop(x_BSD, keys[0]),
            positions_BT=batch["source_positions"],
            segments_BT=real_BS,
            key=keys[1],
        )
        return remember(self.decoder.attention, states_BSM, real_BS)

    def _begun(self, memory: Memory) -> Reading:
        """Return where texts stand that have their sources before them."""
        state = self.bridge(memory)
        if self.decoder.fed_dim:
            shape = (len(memory.real_BS), self.decoder.fed_dim)
            state["fed"] = jnp.zeros(shape, jnp.float32)
        return Reading(state, memory)

    def _write(
        self, tokens_RT: Array, segments_RT: Array, cache: Reading, *, key: Array | None
    ) -> tuple[Array, State]:
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        drop = self.encoder.drop
        x_RTD = drop(self.embed(tokens_RT, jnp.dtype(self.config.dtype)), keys[0])
        out_RTD, state = self.decoder(
            x_RTD,
            cache.memory,
            real_BT=segments_RT == 1,
            state=cache.state,
            key=keys[1],
        )
        return drop(out_RTD, keys[2]), state
