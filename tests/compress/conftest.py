"""Tiny language models with random parameters, and a text."""

import dataclasses

import jax
import pytest

from lmjax.config.experiment import MeshConfig
from lmjax.data.tokenizers.plain import Bytes
from lmjax.inference.language_model import LanguageModel
from lmjax.parallel import sharding

LINES = [f"{i} green bottles hanging on the wall\t{i * i}\n" for i in range(40)]


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Return a text file of 40 lines, each with a tab."""
    file = tmp_path_factory.mktemp("compress") / "text.txt"
    file.write_text("".join(LINES))
    return file


@pytest.fixture(scope="session")
def make_lm(make_config, tiny, random_params):
    """Return a function: make_lm("llama", **model) makes a language model of bytes."""

    def make(architecture="llama", **model):
        vocab = {"vocab_size": 258}
        config = make_config(architecture, **vocab, **model)
        built = tiny(architecture, **vocab, **model)
        mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
        params = jax.device_put(random_params(built), sharding.replicated(mesh))
        lm = LanguageModel(config, Bytes(bos=True), built, params, mesh, 1)
        return dataclasses.replace(lm)

    return make
