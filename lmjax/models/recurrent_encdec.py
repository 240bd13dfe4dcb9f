"""Recurrent encoder-decoders with attention.

B batch, R rows of targets, S source length, T length, D dim, L layers, H hidden.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.model_config import RecurrentEncoderDecoderConfig
from lmjax.models.heads import Head
from lmjax.nn.attentive import Rows, make_attentive
from lmjax.nn.bridge import Bridge
from lmjax.nn.linear import Embed
from lmjax.nn.recurrent import Recurrent, State
from lmjax.nn.source_attention import Memory, Reading, remember
from lmjax.types import Array, Batch


class RecurrentEncoderDecoder(nnx.Module):
    """Bahdanau et al. 2015, or by its config Luong et al. 2015.

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
        memory, segments_BT = self._read(batch, keys[0]), batch["segments"]
        starts_BT = (batch["positions"] == 0) & (segments_BT > 0)
        first = self.bridge(memory, segments_BT[:, :1])
        begins = jax.lax.cond(
            starts_BT[:, 1:].any(),
            lambda: self.bridge(memory, segments_BT),
            # Most rows hold one text, and it begins with them.
            lambda: {
                name: jnp.broadcast_to(s, (*segments_BT.shape, *s.shape[2:]))
                for name, s in first.items()
            },
        )
        rows = Rows(
            starts_BT=starts_BT,
            real_BT=segments_BT > 0,
            mask_BTS=memory.mask(segments_BT),
            state=self._state(first),
            begins=begins,
        )
        return self._write(batch["tokens"], memory, rows=rows, key=keys[1])[0]

    def begin(self, source: Batch) -> Reading:
        """Return where texts stand, one for each source, of which nothing is written.

        Args:
          source: source, source_segments (1, or 0 where there is padding) and
            source_positions, each (B, S).
        """
        memory = self._read(source, None)
        ones_B1 = jnp.ones_like(memory.segments_BS[:, :1])
        return Reading(self._state(self.bridge(memory, ones_B1)), memory)

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
          tokens_RT: int32 ids, which begin with `config.start_id`.
          positions_RT: not read: the state knows what came before.
          segments_RT: int32; 0 is padding, which is not remembered.
          cache: of as many texts, or of sources with equally many each.
        """
        rows = Rows(
            starts_BT=jnp.zeros_like(segments_RT, bool),
            real_BT=segments_RT > 0,
            mask_BTS=cache.memory.mask(segments_RT),
            state=cache.state,
            begins={},
        )
        out_RTD, state = self._write(tokens_RT, cache.memory, rows=rows, key=None)
        return out_RTD, Reading(state, cache.memory)

    def logits(self, x: Array) -> Array:
        """Return float32 logits (..., V) of what the decoder puts out (..., D)."""
        return self.head(x, self.embed)

    def _read(self, batch: Batch, key: Array | None) -> Memory:
        keys = (None, None) if key is None else jax.random.split(key)
        x_BSD = self.embed(batch["source"], jnp.dtype(self.config.dtype))
        states_BSM, _ = self.encoder(
            self.encoder.drop(x_BSD, keys[0]),
            positions_BT=batch["source_positions"],
            segments_BT=batch["source_segments"],
            key=keys[1],
        )
        return remember(self.decoder.attention, states_BSM, batch["source_segments"])

    def _state(self, first: State) -> State:
        """Return the state before the first step, of states (B, 1, L, H)."""
        state = {name: s[:, 0] for name, s in first.items()}
        if not self.decoder.fed_dim:
            return state
        shape = (len(first["hidden"]), self.decoder.fed_dim)
        return {**state, "fed": jnp.zeros(shape, jnp.float32)}

    def _write(
        self, tokens_BT: Array, memory: Memory, *, rows: Rows, key: Array | None
    ) -> tuple[Array, State]:
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        drop = self.encoder.drop
        x_BTD = drop(self.embed(tokens_BT, jnp.dtype(self.config.dtype)), keys[0])
        out_BTD, state = self.decoder(x_BTD, memory, rows=rows, key=keys[1])
        return drop(out_BTD, keys[2]), state
