"""Attention on GPUs by cuDNN's fused kernel, for packed rows.

The kernel is told where the documents of a row begin and how long they are. It computes
no scores above the diagonal or between documents, and its memory does not grow with the
square of the length.

B batch, T queries, S keys, N heads, K kv heads, H head_dim, M documents.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.nn.attention_context import AttentionContext, AttentionOptions
from lmjax.nn.chunked_attention import BlockMask, block_mask, chunked_attention
from lmjax.types import Array

# For each document that a row may hold, the kernel keeps a float32 for each head and
# token of the row.
MIN_DOCUMENTS, MAX_DOCUMENTS, TOKENS_A_DOCUMENT = 8, 64, 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedMask:
    """Where the runs of a segment lie in each row: padding is one, too.

    Unused places hold -1, and offsets end with the end of the last run.
    """

    lengths_BM: Array
    offsets_BM1: Array
    fits: Array  # bool scalar: whether no row has more than M runs
    blocks: BlockMask  # for the batches that do not fit
    causal: bool = dataclasses.field(metadata={"static": True})


def max_documents(length: int) -> int:
    """Return the most documents in a row of this length that the kernel is given."""
    return min(max(length // TOKENS_A_DOCUMENT, MIN_DOCUMENTS), MAX_DOCUMENTS)


def packed_mask(context: AttentionContext) -> PackedMask:
    """Return the mask of a sequence that attends to itself."""
    assert context.is_self and not context.window
    segments_BT = context.segments_BT
    T = segments_BT.shape[1]
    M = max_documents(T)
    begins_BT = segments_BT != jnp.roll(segments_BT, 1, axis=1)
    begins_BT = begins_BT.at[:, 0].set(True)
    find = lambda row_T: jnp.nonzero(row_T, size=M, fill_value=T)[0]
    starts_BM = jax.vmap(find)(begins_BT).astype(jnp.int32)
    offsets_BM1 = jnp.pad(starts_BM, ((0, 0), (0, 1)), constant_values=T)
    count_B1 = begins_BT.sum(axis=1, keepdims=True)
    index = jnp.arange(M + 1)
    return PackedMask(
        lengths_BM=jnp.where(index[:M] < count_B1, jnp.diff(offsets_BM1), -1),
        offsets_BM1=jnp.where(index <= count_B1, offsets_BM1, -1),
        fits=count_B1.max() <= M,
        blocks=block_mask(context),
        causal=context.causal,
    )


def cudnn_attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    mask: PackedMask,
    *,
    options: AttentionOptions,
    bias: Array | None = None,
    key: Array | None = None,
) -> Array:
    """Attend with cuDNN; in a batch where a row has too many documents, block by block.

    Arguments as for `attend`, but for the `mask`, which is of `packed_mask`.
    """
    assert bias is None and not (key is not None and options.dropout_rate)

    def fused(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array) -> Array:
        return _attend(
            q_BTNH, k_BSKH, v_BSKH, mask, scale=options.scale_of(q_BTNH.shape[-1])
        )

    def chunked(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array) -> Array:
        return chunked_attention(q_BTNH, k_BSKH, v_BSKH, mask.blocks, options=options)

    return jax.lax.cond(mask.fits, fused, chunked, q_BTNH, k_BSKH, v_BSKH)


def _attend(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: PackedMask, *, scale: float
) -> Array:
    # Not public: the public function takes neither lengths of documents nor offsets.
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    if reads_wrong_grouped_keys():
        repeats = q_BTNH.shape[2] // k_BSKH.shape[2]
        k_BSKH, v_BSKH = (jnp.repeat(x, repeats, axis=2) for x in (k_BSKH, v_BSKH))
    _serve_other_targets(cudnn)
    kind = cudnn.MaskType.PADDING_CAUSAL if mask.causal else cudnn.MaskType.PADDING
    return cudnn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        q_seqlen=mask.lengths_BM,
        kv_seqlen=mask.lengths_BM,
        q_offsets=mask.offsets_BM1,
        kv_offsets=mask.offsets_BM1,
        scale=scale,
        mask_type=kind,
    )


def reads_wrong_grouped_keys() -> bool:
    """Return whether this JAX places packed keys as if there were as many as queries.

    Fixed by https://github.com/jax-ml/jax/pull/39521.
    """
    return jax.__version_info__ < (0, 11, 2)


def _serve_other_targets(cudnn: Any) -> None:
    """Let the kernel be compiled for a GPU by a process that has none.

    JAX asks the devices of this process whether they can run it. Here the answer is
    known: `choose_attention` has asked the device that is compiled for.
    """
    if jax.default_backend() != "gpu":
        cudnn.check_compute_capability = lambda capability: True
        if cudnn.cuda_versions is None:
            cudnn.check_cudnn_version = lambda: 91000
