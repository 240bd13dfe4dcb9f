"""The config of a model: one class for each architecture."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from lmjax.config.leaf_types import (
    Fraction,
    Interval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Rate,
    Size,
    SizeOrZero,
    runtime_field,
)
from lmjax.config.matrices import LoraConfig, LowRankConfig, QuantizeConfig
from lmjax.config.rope import validate_rope

UNLIMITED = 1 << 30  # the length in tokens of what has no limit

Activation = Literal["none", "tanh", "relu", "gelu", "silu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """A linear layer on the vector of a text."""

    dim: Size = 768  # of its outputs
    bias: bool = True
    activation: Activation = "tanh"


Pooling = Literal["first", "max", "mean", "mean_sqrt", "weighted_mean", "last"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEmbeddingConfig:
    """The vector of a text, as `lm.embed` returns it."""

    # what becomes of the last hidden states: that of the first or the last token, the
    # maximum, the mean, the sum over the square root of their number, or the mean
    # weighted by position. Of several the vectors are concatenated
    pooling: tuple[Pooling, ...] = ("mean",)
    dense: tuple[DenseConfig, ...] = ()  # layers after it
    normalize: bool = False  # to length 1, at the end
    # tokens at which a text is cut, special ones included; 0: those of the model
    max_length: NonNegativeInt = 0
    prompt: str = ""  # put before each text
    lowercase: bool = False  # texts are read in small letters

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields."""
        if not self.pooling:
            yield f"{path}.pooling = (): must name at least one"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelBaseConfig:
    """The leaves of all models."""

    vocab_size: NonNegativeInt = 0  # 0: the tokenizer's
    dim: Size = 768  # of token embeddings, and of the hidden states of a Transformer
    num_layers: Size = 12  # of an encoder-decoder: in its decoder
    max_length: PositiveInt = 1024  # tokens in a sequence
    tie_embeddings: bool = True  # the output layer shares the embedding matrix
    head_bias: bool = False  # the output layer has a bias
    dropout: Rate = 0.0
    # of activations; parameters are float32. auto: float32 on CPU, else bfloat16
    dtype: Literal["auto", "float32", "bfloat16"] = runtime_field("auto")

    is_encoder_decoder = False  # it reads a source, and generates another text
    has_carry = False  # a state that continues from one window of text in the next
    one_text_per_row = False  # a row of a batch cannot hold several documents
    attends_to_rows = False  # tokens see each other by attention alone
    quantize = QuantizeConfig()  # of models that cannot be quantized
    low_rank = LowRankConfig()  # of models whose matrices are whole

    @property
    def width(self) -> int:
        """Return the size of the last hidden states."""
        return self.dim

    @property
    def max_positions(self) -> int:
        """Return the number of tokens of a text that have a position of their own."""
        return UNLIMITED

    def for_inference(self) -> Self:
        """Return the config of the same model without dropout, for any machine."""
        return dataclasses.replace(self, dropout=0.0)

    @property
    def can_generate(self) -> bool:
        """Return whether the model can generate text."""
        return not self.generation_obstacle

    @property
    def generation_obstacle(self) -> str:
        """Return the leaf, `name = value`, that rules out generation; "" if none."""
        return ""

    @property
    def adapter_rank(self) -> int:
        """Return the rank of the model's LoRA adapters, 0 if it has none."""
        return 0

    @property
    def adapter_scale(self) -> float:
        """Return the factor of the product of each adapter's two matrices."""
        return 1.0

    def without_adapters(self) -> Self:
        """Return the config of the same model without adapters."""
        return self

    @property
    def decoder_prefix_ids(self) -> tuple[int, ...]:
        """Return the token ids fed to the decoder before the first target token."""
        return ()

    @property
    def is_bidirectional(self) -> bool:
        """Return whether a token's hidden state tells of the tokens after it."""
        return False

    @property
    def longest_text(self) -> int:
        """Return how many tokens a text may have."""
        return self.max_length

    def longest_continuation(self, length: int) -> int:
        """Return how many tokens a text of `length` may grow to, token by token."""
        return self.longest_text

    @property
    def longest_source(self) -> int:
        """Return how many tokens a source may have."""
        return self.longest_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelHeadConfig(ModelBaseConfig):
    """The leaves of models of one sequence, which can have a label head."""

    # outputs of the label head; 0: those of the task, and no head if it has no labels
    num_labels: NonNegativeInt = 0
    text_embedding: TextEmbeddingConfig = TextEmbeddingConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(ModelBaseConfig):
    """The leaves of all Transformers."""

    num_heads: Size = 12  # attention heads
    num_kv_heads: SizeOrZero = 0  # heads of keys and values (GQA); 0: num_heads
    head_dim: SizeOrZero = 0  # 0: dim / num_heads
    mlp_dim: SizeOrZero = 0  # hidden size of the MLP; 0: 4 * dim
    # rope: rotary; relative: T5's bias per bucket of distances
    position: Literal["learned", "sinusoidal", "rope", "relative"] = "rope"
    # learned: unused rows at the beginning of the table (2 in RoBERTa and BART)
    position_offset: NonNegativeInt = 0
    rope_theta: NonNegativeFloat = 10_000.0  # base of the frequencies
    # base in the layers with a window, which are not scaled (Gemma 3); 0: no other
    rope_local_theta: NonNegativeFloat = 0.0
    rope_fraction: Fraction = 1.0  # of the dimensions of each head, that are rotated
    # for contexts longer than in pretraining. linear: divide all frequencies by
    # rope_factor; llama3: only the low ones, by wavelength; yarn: by dimension;
    # dynamic: the more, the longer the text; longrope: by given factors
    rope_scaling: Literal["none", "linear", "llama3", "yarn", "dynamic", "longrope"] = (
        "none"
    )
    rope_factor: NonNegativeFloat = 1.0
    rope_original_length: PositiveInt = 8192  # all but linear: max_length before
    rope_low_frequency_factor: NonNegativeFloat = 1.0  # llama3
    rope_high_frequency_factor: NonNegativeFloat = 4.0
    rope_beta_fast: NonNegativeFloat = 32.0  # yarn: turns from which nothing is scaled
    rope_beta_slow: NonNegativeFloat = 1.0  # yarn: turns below which all is scaled
    rope_truncate: bool = True  # yarn: round the bounds to whole dimensions
    # yarn, longrope: factor of the rotated queries and keys; 0: by rope_factor
    rope_attention_factor: NonNegativeFloat = 0.0
    # longrope: divisors of the frequencies, in texts of up to rope_original_length
    # tokens and in longer ones
    rope_short_factors: tuple[NonNegativeFloat, ...] = ()
    rope_long_factors: tuple[NonNegativeFloat, ...] = ()
    relative_buckets: Annotated[int, Interval(4)] = 32  # relative: number of buckets
    # relative: all larger distances share the last bucket
    relative_max_distance: PositiveInt = 128
    # rmsnorm1p: multiply by 1 + scale, as in Gemma
    norm: Literal["layernorm", "rmsnorm", "rmsnorm1p"] = "rmsnorm"
    norm_epsilon: NonNegativeFloat = 1e-5
    # pre: before each sublayer; post: after the residual connection, as in BERT;
    # both: before each sublayer and on its output, as in Gemma 2; output: only there,
    # as in OLMo 2
    norm_place: Literal["pre", "post", "both", "output"] = "pre"
    # attention and MLP read the same hidden states, as in GPT-NeoX
    parallel_residual: bool = False
    embedding_norm: bool = False  # a norm after the embeddings
    # False: the attention of the first layer reads embeddings as they are (ModernBERT)
    first_norm: bool = True
    scale_embeddings: bool = False  # multiply embeddings by sqrt(dim)
    activation: Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"] = "silu"  # of MLPs
    gated: bool = True  # gated MLP: with silu SwiGLU, with gelu GeGLU
    use_bias: bool = False  # biases in linear layers and norms
    # biases of attention or of MLPs. auto: as use_bias
    attention_bias: Literal["auto", True, False] = "auto"
    mlp_bias: Literal["auto", True, False] = "auto"
    qkv_bias: bool = False  # biases of queries, keys and values alone, as in Qwen 2
    qk_norm: bool = False  # norms on queries and keys
    # qk_norm: of each head by itself, or of all heads together, as in OLMo 2
    qk_norm_over: Literal["head", "all"] = "head"
    # sliding-window attention: the number of tokens that each token attends to,
    # itself included; 0: all
    window: NonNegativeInt = 0
    global_every: NonNegativeInt = 0  # every n-th layer ignores the window; 0: none
    global_layers: tuple[NonNegativeInt, ...] = ()  # or these do; 0 is the first
    attention_scale: NonNegativeFloat = 0.0  # of attention scores; 0: 1/sqrt(head_dim)
    attention_softcap: NonNegativeFloat = 0.0  # soft cap of attention scores; 0: none
    logit_softcap: NonNegativeFloat = 0.0  # soft cap of output logits; 0: none
    attention_dropout: Rate = 0.0  # dropout of attention probabilities
    lora: LoraConfig = LoraConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    low_rank: LowRankConfig = LowRankConfig()
    # compile one layer and loop over all (jax.lax.scan). auto: except on CPU
    scan_layers: Literal["auto", True, False] = runtime_field("auto")
    # recompute activations in the backward pass to save memory. dots: keep the results
    # of matrix multiplications; attention: keep those of chunked and splash attention;
    # full: recompute whole layers
    remat: Literal["none", "dots", "attention", "full"] = runtime_field("none")
    # kernel. xla: all scores at once; chunked: block by block where rows are long;
    # of a sequence to itself: cudnn (GPUs from Hopper on), splash (TPUs), tokamax (its
    # package; GPUs); auto: cudnn or splash where it supports the model, else chunked
    attention: Literal["auto", "xla", "chunked", "cudnn", "splash", "tokamax"] = (
        runtime_field("auto")
    )
    # the family of transformers (its model_type) that it is exported as, such as that
    # of the model that it began with; "": the first that computes the same
    family: str = runtime_field("")

    split_by_tensor = ("num_heads", "num_kv_heads", "mlp_dim")
    attends_to_rows = True

    @property
    def adapter_rank(self) -> int:
        """Return the rank of the model's LoRA adapters, 0 if it has none."""
        return self.lora.rank

    @property
    def adapter_scale(self) -> float:
        """Return the factor of the product of each adapter's two matrices."""
        return self.lora.alpha / max(self.lora.rank, 1)

    def without_adapters(self) -> Self:
        """Return the config of the same model without adapters."""
        return dataclasses.replace(self, lora=LoraConfig())

    @property
    def max_positions(self) -> int:
        """Return the number of tokens of a text that have a position of their own."""
        has_table = self.position in ("learned", "sinusoidal")
        return self.max_length if has_table else UNLIMITED

    @property
    def rotary_dim(self) -> int:
        """Return how many dimensions of each head are rotated."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def rope_follows_length(self) -> bool:
        """Return whether a token's rotation depends on the length of its text."""
        return self.position == "rope" and self.rope_scaling in ("dynamic", "longrope")

    def longest_continuation(self, length: int) -> int:
        """Return how many tokens a text of `length` may grow to, token by token.

        Where rotations depend on the length of the text, those of all its tokens change
        beyond the original length, and with them what a cache holds: such a text would
        have to be read anew. LongRoPE changes them once.
        """
        longest, original = self.longest_text, self.rope_original_length
        if not self.rope_follows_length:
            return longest
        is_long = length > original and self.rope_scaling == "longrope"
        return longest if is_long else min(original, longest)

    def global_flags(self, num_layers: int) -> tuple[bool, ...]:
        """Return of each layer whether its attention has no window."""
        every = self.global_every
        return tuple(
            not self.window
            or layer in self.global_layers
            or (every > 0 and (layer + 1) % every == 0)
            for layer in range(num_layers)
        )

    def for_inference(self) -> Self:
        """Return the config of the same model without dropout, for any machine."""
        # Another machine than the one of the run may not have its kernel.
        everywhere = self.attention in ("xla", "chunked")
        return dataclasses.replace(
            self,
            dropout=0.0,
            attention_dropout=0.0,
            attention=self.attention if everywhere else "auto",
        )

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields; defaults are resolved already."""
        if self.dim % self.num_heads and self.head_dim == self.dim // self.num_heads:
            yield (
                f"{path}.num_heads = {self.num_heads}: must divide "
                f"{path}.dim = {self.dim}, unless {path}.head_dim is given"
            )
        if self.num_heads % self.num_kv_heads:
            yield (
                f"{path}.num_kv_heads = {self.num_kv_heads}: must divide "
                f"{path}.num_heads = {self.num_heads}"
            )
        if self.qk_norm_over != "head" and not self.qk_norm:
            yield f"{path}.qk_norm_over = {self.qk_norm_over!r}: needs {path}.qk_norm"
        if self.parallel_residual and self.norm_place == "post":
            yield (
                f"{path}.parallel_residual = True: needs {path}.norm_place = 'pre', "
                "'both' or 'output', not 'post'"
            )
        yield from self._validate_windows(path)
        yield from self._validate_positions(path)
        yield from self._validate_groups(path)
        if self.low_rank.fraction and self.quantize.weights:
            yield (
                f"{path}.low_rank.fraction = {self.low_rank.fraction}: must be 0 for "
                f"{path}.quantize.weights = {self.quantize.weights!r}"
            )
        if self.position == "rope":
            yield from validate_rope(self, path)

    def _validate_groups(self, path: str) -> Iterator[str]:
        for name in ("dim", "head_dim", "mlp_dim"):
            size, group = getattr(self, name), self.quantize.group
            if group and size % min(group, size):
                yield (
                    f"{path}.quantize.group = {group}: must divide {path}.{name} = "
                    f"{size}, or be larger"
                )

    def _validate_windows(self, path: str) -> Iterator[str]:
        if self.global_every and not self.window:
            yield f"{path}.global_every = {self.global_every}: needs {path}.window"
        layers = self.global_layers
        if layers and not self.window:
            yield f"{path}.global_layers = {layers}: needs {path}.window"
        if layers and self.global_every:
            yield (
                f"{path}.global_layers = {layers}: must be () with {path}.global_every "
                f"= {self.global_every}"
            )
        if layers and max(layers) >= self.num_layers:
            yield (
                f"{path}.global_layers = {layers}: must be below {path}.num_layers = "
                f"{self.num_layers}"
            )

    def _validate_positions(self, path: str) -> Iterator[str]:
        if self.position == "sinusoidal" and self.dim % 2:
            yield (
                f"{path}.dim = {self.dim}: must be even for {path}.position = "
                "'sinusoidal'"
            )
        if self.position_offset and self.position != "learned":
            yield (
                f"{path}.position_offset = {self.position_offset}: needs "
                f"{path}.position = 'learned', not {self.position!r}"
            )
        for name in ("rope_scaling", "rope_fraction", "rope_local_theta"):
            value = getattr(self, name)
            if self.position != "rope" and value not in ("none", 1.0, 0.0):
                yield (
                    f"{path}.{name} = {value!r}: needs {path}.position = 'rope', not "
                    f"{self.position!r}"
                )
        if self.relative_max_distance <= self.relative_buckets // 2:
            yield (
                f"{path}.relative_max_distance = {self.relative_max_distance}: must be "
                f"above half of {path}.relative_buckets = {self.relative_buckets}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(LabelHeadConfig, TransformerConfig):
    """A decoder-only Transformer, such as GPT-2, Llama or Gemma."""

    kind: Literal["decoder"] = "decoder"
    lm_head: bool = True  # the output layer over the vocabulary
    # the label head has a bias; in transformers that of tokens has, that of texts not
    label_bias: bool = True

    @property
    def generation_obstacle(self) -> str:
        """Return the leaf, `name = value`, that rules out generation; "" if none."""
        return "" if self.lm_head else "lm_head = False"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(LabelHeadConfig, TransformerConfig):
    """A bidirectional Transformer, such as BERT."""

    kind: Literal["encoder"] = "encoder"
    num_token_types: NonNegativeInt = 0  # token type (segment) embeddings; 0: none
    mlm_head: bool = True  # the head that predicts masked tokens
    pooler: bool = False  # a layer on the first token, for classification
    pooler_activation: Literal["tanh", "relu", "gelu"] = "tanh"
    # the vector of a text that is classified: the pooler's, or the first or mean of the
    # hidden states
    summary: Literal["pooler", "first", "mean"] = "pooler"
    label_layer: bool = False  # a layer and a norm before the label head (ModernBERT)
    # biases in the layers and norms of the head for masked tokens and of label_layer
    head_layer_bias: bool = True
    pair_head: bool = False  # predicts the order of two texts; for task.sentence_order

    @property
    def generation_obstacle(self) -> str:
        """Return the leaf, `name = value`, that rules out generation."""
        return f"kind = {self.kind!r}"

    @property
    def is_bidirectional(self) -> bool:
        """Return whether a token's hidden state tells of the tokens after it."""
        return True

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields; defaults are resolved already."""
        yield from super().validate(path)
        if self.pair_head and not self.pooler:
            yield f"{path}.pair_head = True: needs {path}.pooler = True"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(TransformerConfig):
    """An encoder-decoder Transformer, such as T5 and BART."""

    kind: Literal["encoder_decoder"] = "encoder_decoder"
    num_encoder_layers: SizeOrZero = 0  # 0: num_layers
    start_id: NonNegativeInt = 0  # the decoder's first input (decoder_start_token_id)
    # token ids that every target begins with (forced_bos_token_id), such as BART's <s>
    opening: tuple[NonNegativeInt, ...] = ()
    scale_logits: bool = False  # scale by 1/sqrt(dim) before the output layer, as in T5
    lm_head: bool = True  # the output layer over the vocabulary

    is_encoder_decoder = True

    @property
    def generation_obstacle(self) -> str:
        """Return the leaf, `name = value`, that rules out generation; "" if none."""
        return "" if self.lm_head else "lm_head = False"

    @property
    def decoder_prefix_ids(self) -> tuple[int, ...]:
        """Return the token ids fed to the decoder before the first target token."""
        return (self.start_id, *self.opening)

    @property
    def longest_source(self) -> int:
        """Return how many tokens a source may have: relative positions have no end."""
        return UNLIMITED if self.position == "relative" else self.max_length

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields; defaults are resolved already."""
        yield from super().validate(path)
        if self.parallel_residual:
            yield (
                f"{path}.parallel_residual = True: must be False for {path}.kind = "
                f"{self.kind!r}, whose decoder also reads the source"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentBaseConfig(ModelBaseConfig):
    """The leaves of all recurrent networks."""

    cell: Literal["rnn", "lstm", "gru"] = "lstm"
    hidden_dim: SizeOrZero = 0  # of hidden states; 0: dim
    # one dropout mask for all positions of a row (Gal and Ghahramani 2016)
    variational_dropout: bool = False

    split_by_tensor = ("hidden_dim",)

    @property
    def longest_text(self) -> int:
        """Return how many tokens a text may have: no positions run out."""
        return UNLIMITED

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields; defaults are resolved already."""
        if self.variational_dropout and not self.dropout:
            yield f"{path}.variational_dropout = True: needs {path}.dropout > 0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentConfig(LabelHeadConfig, RecurrentBaseConfig):
    """A recurrent network, such as an LSTM.

    It is a language model, or with `num_labels` a classifier or tagger.
    """

    kind: Literal["recurrent"] = "recurrent"
    num_layers: Size = 2
    bidirectional: bool = False  # also run right to left; states are concatenated
    num_token_types: NonNegativeInt = 0  # token type embeddings; 0: none
    # how states are pooled to classify a text: the last state of each direction, or the
    # mean or maximum over all positions
    summary: Literal["last", "mean", "max"] = "last"

    has_carry = True

    @property
    def width(self) -> int:
        """Return the size of the last hidden states."""
        return self.hidden_dim * (1 + self.bidirectional)

    @property
    def generation_obstacle(self) -> str:
        """Return the leaf, `name = value`, that rules out generation; "" if none."""
        return f"num_labels = {self.num_labels}" if self.num_labels else ""

    @property
    def is_bidirectional(self) -> bool:
        """Return whether a token's hidden state tells of the tokens after it."""
        return self.bidirectional


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentEncoderDecoderConfig(RecurrentBaseConfig):
    """A recurrent encoder-decoder with attention; the encoder is bidirectional."""

    kind: Literal["recurrent_encoder_decoder"] = "recurrent_encoder_decoder"
    num_layers: Size = 1
    num_encoder_layers: SizeOrZero = 0  # 0: num_layers
    # bahdanau: additive, before each step of the decoder (2015); luong: multiplicative,
    # after it (2015)
    attention: Literal["bahdanau", "luong"] = "bahdanau"
    # luong: each step also gets the attention output of the step before
    input_feeding: bool = False
    start_id: NonNegativeInt = 0  # the decoder's first input (decoder_start_token_id)

    is_encoder_decoder = True
    one_text_per_row = True

    @property
    def decoder_prefix_ids(self) -> tuple[int, ...]:
        """Return the token ids fed to the decoder before the first target token."""
        return (self.start_id,)

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields; defaults are resolved already."""
        yield from super().validate(path)
        if self.input_feeding and self.attention == "bahdanau":
            yield (
                f"{path}.input_feeding = True: must be False with {path}.attention = "
                "'bahdanau', where attention is always an input; or use 'luong'"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordVectorsConfig(ModelBaseConfig):
    """Two tables: the vector of each word, and that of the word as a neighbour."""

    kind: Literal["word_vectors"] = "word_vectors"
    dim: Size = 100
    num_layers: NonNegativeInt = 0  # there are none
    tie_embeddings: bool = False  # the two tables are never one

    split_by_tensor = ()

    @property
    def generation_obstacle(self) -> str:
        """Return the leaf, `name = value`, that rules out generation."""
        return f"kind = {self.kind!r}"

    @property
    def longest_text(self) -> int:
        """Return how many tokens a text may have: a word has no position."""
        return UNLIMITED

    def validate(self, path: str) -> Iterator[str]:
        """Yield the settings that two tables cannot have."""
        for leaf in ("num_layers", "tie_embeddings", "head_bias", "dropout"):
            if value := getattr(self, leaf):
                yield (
                    f"{path}.{leaf} = {value}: must be {type(value)()} for {path}.kind "
                    f"= {self.kind!r}"
                )


AnyTransformer = DecoderConfig | EncoderConfig | EncoderDecoderConfig
AnyEncoderDecoder = EncoderDecoderConfig | RecurrentEncoderDecoderConfig
ModelConfig = (
    AnyTransformer | RecurrentConfig | RecurrentEncoderDecoderConfig | WordVectorsConfig
)

# The kinds of models that are decoder-only, and those with an encoder and a decoder.
CAUSAL_KINDS = ("decoder", "recurrent")
SOURCE_KINDS = ("encoder_decoder", "recurrent_encoder_decoder")


def resolve_model_defaults(config: ModelConfig) -> ModelConfig:
    """Replace each 0 that stands for a value that follows from other leaves."""
    if isinstance(config, WordVectorsConfig):
        return config
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
        attention_bias=_resolve_bias(config.attention_bias, config),
        mlp_bias=_resolve_bias(config.mlp_bias, config),
    )


def _resolve_bias(
    value: Literal["auto", True, False], config: TransformerConfig
) -> bool:
    return config.use_bias if value == "auto" else value
