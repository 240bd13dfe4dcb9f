"""The shapes of networks, as config sections: one class for each architecture."""

import dataclasses
import fnmatch
from collections.abc import Iterator
from typing import Annotated, Literal

from lmjax.config.parse import Range, runtime
from lmjax.errors import nearest

Count = Annotated[int, Range(1, below=1 << 31)]  # steps are counted in int32
CountOrZero = Annotated[int, Range(0, below=1 << 31)]
Width = Annotated[int, Range(1, below=1 << 20)]
WidthOrZero = Annotated[int, Range(0, below=1 << 20)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Rate = Annotated[float, Range(0, below=1)]  # all of it dropped, or kept, leaves NaN

UNLIMITED = 1 << 30  # tokens, of what may have any number


# The matrices of a block, which adapters can be added to.
MATRICES = (
    *(f"attention.{name}" for name in ("query", "key", "value", "out")),
    *(f"cross_attention.{name}" for name in ("query", "key", "value", "out")),
    *(f"mlp.{name}" for name in ("up", "gate", "down")),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters beside a block's matrices (Hu et al. 2021)."""

    rank: WidthOrZero = 0  # 0: no adapters
    alpha: NonNegative = 16.0  # their product is scaled by alpha / rank
    targets: tuple[str, ...] = ("*attention.query", "*attention.value")  # of MATRICES

    def mistakes(self, path: str) -> Iterator[str]:
        """Yield the errors between fields."""
        for target in self.targets:
            if not fnmatch.filter(MATRICES, target):
                yield (
                    f"{path}.targets: {target!r} is none of a block's matrices"
                    f"{nearest(target, MATRICES)}; there are {', '.join(MATRICES)}"
                )

    def rank_of(self, matrix: str) -> int:
        """Return the rank of the adapter of one of `MATRICES`, 0 for none."""
        named = any(fnmatch.fnmatchcase(matrix, target) for target in self.targets)
        return self.rank if named else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelBaseConfig:
    """What all networks over tokens are described by."""

    vocab_size: CountOrZero = 0  # 0: as many as the tokenizer has
    dim: Width = 768
    num_layers: Width = 12
    max_length: Count = 1024
    tie_embeddings: bool = True
    head_bias: bool = False  # one number added to the logit of each id
    dropout: Rate = 0.0
    dtype: Literal["auto", "float32", "bfloat16"] = runtime("auto")

    is_encoder_decoder = False  # a text apart from the one that it writes

    @property
    def width(self) -> int:
        """Return the size of the last hidden states."""
        return self.dim

    @property
    def mute(self) -> str:
        """Return the leaf that keeps the model from writing text; "": none does."""
        return ""

    @property
    def decoder_prefix_ids(self) -> tuple[int, ...]:
        """Return what its decoder has read before it writes from a source."""
        return ()

    @property
    def is_bidirectional(self) -> bool:
        """Return whether a token's hidden state tells of the tokens after it."""
        return False

    @property
    def longest_text(self) -> int:
        """Return how many tokens a text may have."""
        return self.max_length

    @property
    def longest_source(self) -> int:
        """Return how many tokens a source may have."""
        return self.longest_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelHeadConfig(ModelBaseConfig):
    """What reads one text, and can give labels to it or to its tokens."""

    num_labels: CountOrZero = 0  # 0: as many as the task has; none without such a task


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(ModelBaseConfig):
    """What all Transformers are described by."""

    num_heads: Width = 12
    num_kv_heads: WidthOrZero = 0  # 0: as many as num_heads
    head_dim: WidthOrZero = 0  # 0: dim / num_heads
    mlp_dim: WidthOrZero = 0  # 0: 4 * dim
    position: Literal["learned", "sinusoidal", "rope", "relative"] = "rope"
    position_offset: CountOrZero = 0  # rows of the learned table before position 0
    rope_theta: NonNegative = 10_000.0
    rope_scaling: Literal["none", "linear", "llama3"] = "none"
    rope_factor: NonNegative = 1.0
    rope_low_frequency_factor: NonNegative = 1.0
    rope_high_frequency_factor: NonNegative = 4.0
    rope_original_length: Count = 8192
    relative_buckets: Annotated[int, Range(4)] = 32
    relative_max_distance: Count = 128  # from where on all distances are one bucket
    norm: Literal["layernorm", "rmsnorm", "rmsnorm1p"] = "rmsnorm"  # 1p: 1 + scale
    norm_epsilon: NonNegative = 1e-5
    norm_place: Literal["pre", "post", "both"] = "pre"  # both: around each sublayer
    embedding_norm: bool = False
    scale_embeddings: bool = False  # by sqrt(dim)
    activation: Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"] = "silu"
    gated: bool = True  # SwiGLU and its kin
    use_bias: bool = False
    qkv_bias: bool = False  # on queries, keys and values even if not elsewhere
    qk_norm: bool = False
    window: CountOrZero = 0  # tokens that a query sees, itself included; 0: all
    global_every: CountOrZero = 0  # every n-th layer has no window; 0: none
    attention_scale: NonNegative = 0.0  # of scores; 0: 1 / sqrt(head_dim)
    attention_softcap: NonNegative = 0.0  # 0: none
    logit_softcap: NonNegative = 0.0  # 0: none
    attention_dropout: Rate = 0.0
    lora: LoraConfig = LoraConfig()
    scan_layers: Literal["auto", True, False] = runtime("auto")
    remat: Literal["none", "dots", "full"] = runtime("none")
    attention: Literal["auto", "xla", "cudnn"] = runtime("auto")

    split_by_tensor = ("num_heads", "num_kv_heads", "mlp_dim")

    def mistakes(self, path: str) -> Iterator[str]:
        """Yield what is wrong between fields, once derived ones are filled in."""
        if self.head_dim * self.num_heads != self.dim and self.dim % self.num_heads:
            yield (
                f"{path}.num_heads = {self.num_heads}: must divide "
                f"{path}.dim = {self.dim}, unless {path}.head_dim is given"
            )
        if self.num_heads % self.num_kv_heads:
            yield (
                f"{path}.num_kv_heads = {self.num_kv_heads}: must divide "
                f"{path}.num_heads = {self.num_heads}"
            )
        if self.global_every and not self.window:
            yield f"{path}.global_every = {self.global_every}: needs {path}.window"
        yield from self._position_mistakes(path)

    def _position_mistakes(self, path: str) -> Iterator[str]:
        if self.position == "sinusoidal" and self.dim % 2:
            yield f"{path}.dim = {self.dim}: must be even for sinusoidal positions"
        if self.position_offset and self.position != "learned":
            yield f"{path}.position_offset: only learned positions have one"
        if self.position == "rope" and self.head_dim % 2:
            yield f"{path}.head_dim = {self.head_dim}: must be even for rope"
        if self.position == "rope" and min(self.rope_theta, self.rope_factor) <= 0:
            yield f"{path}.rope_theta and {path}.rope_factor: must be > 0"
        if self.rope_low_frequency_factor >= self.rope_high_frequency_factor:
            yield (
                f"{path}.rope_low_frequency_factor = {self.rope_low_frequency_factor}:"
                f" must be below {path}.rope_high_frequency_factor"
            )
        if self.relative_max_distance <= self.relative_buckets // 2:
            yield (
                f"{path}.relative_max_distance = {self.relative_max_distance}: must be "
                f"above half of {path}.relative_buckets = {self.relative_buckets}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(LabelHeadConfig, TransformerConfig):
    """A decoder-only Transformer, from GPT-2 to Gemma by its fields."""

    kind: Literal["decoder"] = "decoder"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(LabelHeadConfig, TransformerConfig):
    """A Transformer in which every token sees every other, such as BERT."""

    kind: Literal["encoder"] = "encoder"
    num_token_types: CountOrZero = 0  # 0: tokens have no types
    mlm_head: bool = True  # what predicts masked tokens
    pooler: bool = False  # a tanh layer on the first token
    pair_head: bool = False  # tells from the pooler which of two texts came first

    @property
    def mute(self) -> str:
        """Return the leaf that keeps the model from writing text."""
        return f"kind = {self.kind!r}"

    @property
    def is_bidirectional(self) -> bool:
        """Return whether a token's hidden state tells of the tokens after it."""
        return True

    def mistakes(self, path: str) -> Iterator[str]:
        """Yield what is wrong between fields, once derived ones are filled in."""
        yield from super().mistakes(path)
        if self.pair_head and not self.pooler:
            yield f"{path}.pair_head = True: needs {path}.pooler"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(TransformerConfig):
    """A Transformer that reads a source and writes a target, such as T5 and BART."""

    kind: Literal["encoder_decoder"] = "encoder_decoder"
    num_encoder_layers: WidthOrZero = 0  # 0: as many as num_layers
    start_id: CountOrZero = 0  # what the decoder reads before the first token
    opening: tuple[CountOrZero, ...] = ()  # what each target begins with: BART's <s>
    scale_logits: bool = False  # hidden states by 1 / sqrt(dim) before the head

    is_encoder_decoder = True

    @property
    def decoder_prefix_ids(self) -> tuple[int, ...]:
        """Return what its decoder has read before it writes from a source."""
        return (self.start_id, *self.opening)

    @property
    def longest_source(self) -> int:
        """Return how many tokens a source may have: relative positions have no end."""
        return UNLIMITED if self.position == "relative" else self.max_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentBaseConfig(ModelBaseConfig):
    """What all recurrent networks are described by."""

    cell: Literal["rnn", "lstm", "gru"] = "lstm"
    hidden_dim: WidthOrZero = 0  # 0: dim, the size of the embeddings
    variational_dropout: bool = False  # drop the same elements at every step of a row

    split_by_tensor = ("hidden_dim",)

    @property
    def longest_text(self) -> int:
        """Return how many tokens a text may have: no positions run out."""
        return UNLIMITED

    def mistakes(self, path: str) -> Iterator[str]:
        """Yield what is wrong between fields, once derived ones are filled in."""
        if self.variational_dropout and not self.dropout:
            yield f"{path}.variational_dropout = True: needs {path}.dropout"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentConfig(LabelHeadConfig, RecurrentBaseConfig):
    """A recurrent network that reads tokens one after another, such as an LSTM.

    It predicts the next token, or where it has labels gives these instead.
    """

    kind: Literal["recurrent"] = "recurrent"
    num_layers: Width = 2
    bidirectional: bool = False  # also read backwards; both ways' states side by side
    num_token_types: CountOrZero = 0  # 0: tokens have no types
    # What of a text is classified: the last state of each direction, or over all states
    summary: Literal["last", "mean", "max"] = "last"

    @property
    def width(self) -> int:
        """Return the size of the last hidden states."""
        return self.hidden_dim * (1 + self.bidirectional)

    @property
    def mute(self) -> str:
        """Return the leaf that keeps the model from writing text; "": none does."""
        return f"num_labels = {self.num_labels}" if self.num_labels else ""

    @property
    def is_bidirectional(self) -> bool:
        """Return whether a token's hidden state tells of the tokens after it."""
        return self.bidirectional


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentEncoderDecoderConfig(RecurrentBaseConfig):
    """A recurrent network that reads a source both ways and attends to it, writing."""

    kind: Literal["recurrent_encoder_decoder"] = "recurrent_encoder_decoder"
    num_layers: Width = 1
    num_encoder_layers: WidthOrZero = 0  # 0: as many as num_layers
    # bahdanau: additive, before each step; luong: multiplicative, after it
    attention: Literal["bahdanau", "luong"] = "bahdanau"
    input_feeding: bool = False  # each step also reads what the last one attended to
    start_id: CountOrZero = 0  # what the decoder reads before the first token

    is_encoder_decoder = True

    @property
    def decoder_prefix_ids(self) -> tuple[int, ...]:
        """Return what its decoder has read before it writes from a source."""
        return (self.start_id,)

    def mistakes(self, path: str) -> Iterator[str]:
        """Yield what is wrong between fields, once derived ones are filled in."""
        yield from super().mistakes(path)
        if self.input_feeding and self.attention == "bahdanau":
            yield (
                f"{path}.input_feeding = True: is of {path}.attention = 'luong'; in "
                "'bahdanau' each step reads what it attends to"
            )


AnyTransformer = DecoderConfig | EncoderConfig | EncoderDecoderConfig
AnyEncoderDecoder = EncoderDecoderConfig | RecurrentEncoderDecoderConfig
ModelConfig = AnyTransformer | RecurrentConfig | RecurrentEncoderDecoderConfig

# The kinds that predict each token from those before it alone, and those that read a
# source for it.
CAUSAL_KINDS = ("decoder", "recurrent")
SOURCE_KINDS = ("encoder_decoder", "recurrent_encoder_decoder")


def derived(config: ModelConfig) -> ModelConfig:
    """Fill in the zeros that stand for "follows from the rest"."""
    if isinstance(config, AnyEncoderDecoder):
        num_encoder_layers = config.num_encoder_layers or config.num_layers
        config = dataclasses.replace(config, num_encoder_layers=num_encoder_layers)
    if not isinstance(config, TransformerConfig):
        return dataclasses.replace(config, hidden_dim=config.hidden_dim or config.dim)
    return dataclasses.replace(
        config,
        num_kv_heads=config.num_kv_heads or config.num_heads,
        head_dim=config.head_dim or config.dim // config.num_heads,
        mlp_dim=config.mlp_dim or 4 * config.dim,
    )
