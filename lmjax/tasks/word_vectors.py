"""Word vectors: tell the neighbours of a word from noise.

B batch, T and S words of a row, K words of noise, D dim, V vocabulary.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.config.text_task import WordVectorsTaskConfig
from lmjax.data.formats.word_pairs import read_analogies, read_similarities
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.data.tokenizers.vocabulary import list_words
from lmjax.errors import UserError
from lmjax.metrics.word_vectors import VectorSpace
from lmjax.models import Model
from lmjax.nn.recurrent.layers import State
from lmjax.tasks.task import EvalOutput, LossOutput, Task
from lmjax.types import Array, Batch, Params


@dataclasses.dataclass(frozen=True)
class WordVectors(Task):
    """Skip-gram and CBOW with negative sampling (Mikolov et al. 2013, eq. 4).

    A row's words of noise are shared by all its words, and weighted so that each pair
    has `num_negatives` of them (Ji et al. 2016): products of matrices instead of five
    vectors for each pair. The loss is in nats a pair, for CBOW a word.
    """

    config: WordVectorsTaskConfig

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Return "loss", and the name of each file that judges vectors."""
        c = self.config
        similarities = (f"similarity_{_stem(file)}" for file in c.similarity_files)
        analogies = (f"analogies_{_stem(file)}" for file in c.analogy_files)
        return ("loss", *similarities, *analogies)

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return tokens, segments and reach (B, T), and noise (B, K)."""
        row = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        noise = jax.ShapeDtypeStruct((batch_size, self.config.num_noise), jnp.int32)
        return {**dict.fromkeys(("tokens", "segments", "reach"), row), "noise": noise}

    def loss(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        key: Array | None,
        carry: State | None = None,
    ) -> LossOutput:
        """Return the loss of the neighbours and the noise."""
        near_BTS = find_neighbours(batch)
        words_BTD = model.hidden(params, batch)
        others_BSD = model.neighbours(params, batch["tokens"])
        noise_BKD = model.neighbours(params, batch["noise"])
        count_BT = near_BTS.sum(axis=-1)
        if self.config.objective == "cbow":
            mean_BTS = near_BTS / jnp.maximum(count_BT, 1.0)[..., None]
            words_BTD = jnp.einsum("bts,bsd->btd", mean_BTS, words_BTD)
            score_BT = (words_BTD * others_BSD).sum(axis=-1, dtype=jnp.float32)
            count_BT = jnp.minimum(count_BT, 1.0)
            true_sum = (count_BT * jax.nn.softplus(-score_BT)).sum()
        else:
            score_BTS = _products(words_BTD, others_BSD)
            true_sum = (near_BTS * jax.nn.softplus(-score_BTS)).sum()
        noise_BT = jax.nn.softplus(_products(words_BTD, noise_BKD)).mean(axis=-1)
        noise_sum = self.config.num_negatives * (count_BT * noise_BT).sum()
        loss_sum, weight_sum = true_sum + noise_sum, count_BT.sum()
        return LossOutput(loss_sum, weight_sum, {"loss": (loss_sum, weight_sum)})

    def evaluate(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        carry: State | None = None,
    ) -> EvalOutput:
        """Return the loss."""
        return EvalOutput(self.loss(model, params, batch, key=None).metrics, {})

    def measure(
        self, model: Model, params: Params, *, tokenizer: Tokenizer
    ) -> dict[str, float]:
        """Return how well the vectors agree with people's similarities and analogies.

        `similarity_FILE` is Spearman's rank correlation over the pairs, and
        `analogies_FILE` the share of right answers, of those whose words are all known.

        Raises:
          UserError: a file cannot be read, or none of its words is known.
        """
        if not (self.config.similarity_files or self.config.analogy_files):
            return {}
        return self._judge(vector_space(params, tokenizer))

    def check_measures(self, tokenizer: Tokenizer) -> None:
        """Check that the files can be read, and that their words are known."""
        words, _ = list_words(tokenizer)
        self._judge(VectorSpace(words, np.zeros((len(words), 1), np.float32)))

    def _judge(self, space: VectorSpace) -> dict[str, float]:
        leaf, found = "config.task.{}_files", {}
        for file in self.config.similarity_files:
            pairs = read_similarities(file, leaf=leaf.format("similarity"))
            with _name_file(file, leaf.format("similarity")):
                found[f"similarity_{_stem(file)}"] = space.rank_correlation(pairs)
        for file in self.config.analogy_files:
            questions = read_analogies(file, leaf=leaf.format("analogy"))
            with _name_file(file, leaf.format("analogy")):
                found[f"analogies_{_stem(file)}"] = space.solve_analogies(questions)
        return found


def find_neighbours(batch: Batch) -> Array:
    """Return 1 where word s is a neighbour of word t, else 0, float32 (B, T, S)."""
    places_T = jnp.arange(batch["tokens"].shape[1])
    distance_TS = jnp.abs(places_T[:, None] - places_T)
    segments_BT = batch["segments"]
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None]
    near_BTS = (distance_TS > 0) & (distance_TS <= batch["reach"][..., None])
    real_BT1 = segments_BT[..., None] > 0
    return (near_BTS & same_BTS & real_BT1).astype(jnp.float32)


def _products(x_BTD: Array, y_BKD: Array) -> Array:
    """Return the float32 dot products of the words of a row, (B, T, K)."""
    return jnp.einsum("btd,bkd->btk", x_BTD, y_BKD, preferred_element_type=jnp.float32)


def vector_space(params: Params, tokenizer: Tokenizer) -> VectorSpace:
    """Return the vectors of the words of a model's embedding table, to be compared."""
    return VectorSpace(*vector_table(params, tokenizer))


def vector_table(params: Params, tokenizer: Tokenizer) -> tuple[list[str], np.ndarray]:
    """Return the words of a model's embedding table, and their vectors (N, D).

    All processes of a run call it together.
    """
    words, ids_N = list_words(tokenizer)
    table_VD = params["embed"]["embedding"]
    if not table_VD.is_fully_addressable:
        whole = NamedSharding(table_VD.sharding.mesh, PartitionSpec())
        table_VD = jax.jit(lambda x: x, out_shardings=whole)(table_VD)
    return words, np.asarray(jax.device_get(table_VD), np.float32)[ids_N]


@contextlib.contextmanager
def _name_file(file: str, leaf: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{leaf}: {file}: {error}") from error


def _stem(file: str) -> str:
    return Path(file).stem
