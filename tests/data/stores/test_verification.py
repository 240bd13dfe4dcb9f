"""Checksums of stores: of their files, of the manifest, and of counts."""

import json

import pytest

from lmjax.data.stores.store_manifest import MANIFEST
from lmjax.data.stores.token_store import TokenStore
from lmjax.data.stores.verification import Verification, verify
from lmjax.errors import UserError

TEXTS = ["one text", "another", "a third one", "the last"]


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("suffix", ["tokens", "offsets"])
@pytest.mark.parametrize("shard", [0, 2])
def test_a_flipped_bit_is_named(make_store, suffix, shard):
    store = make_store(TEXTS)
    verify([store, store])
    file = store.directory / f"0000{shard}-of-00003.{suffix}"
    flip(file, 3)
    with pytest.raises(UserError) as error:
        verify([TokenStore(store.directory)])
    assert str(error.value).startswith(f"{file}: damaged")
    assert f"remove {store.directory}" in str(error.value)
    # Of two processes, the one that has this file in its share finds it.
    found = []
    for index in range(2):
        verification = Verification([store], share=(index, 2))
        verification.close()
        found.append(Verification([store], share=(index, 2)))
    for verification in found:
        verification._thread.join()
    assert sum(verification.has_failed for verification in found) == 1


def test_a_flipped_bit_of_the_manifest_is_told(make_store):
    """Wherever it is; the store is built again."""
    store = make_store(TEXTS)
    file = store.directory / MANIFEST
    original = file.read_bytes()
    values = (store.counts, store.fingerprint, store.checksums)
    for place in range(0, len(original), 7):
        flip(file, place)
        try:
            opened = TokenStore(store.directory)
        except (ValueError, OSError):
            continue
        finally:
            file.write_bytes(original)
        assert (opened.counts, opened.fingerprint, opened.checksums) == values


def test_a_store_of_an_earlier_version_goes_on(make_store, caplog):
    store = make_store(TEXTS)
    file = store.directory / MANIFEST
    manifest = json.loads(file.read_text())
    del manifest["seal"], manifest["checksums"]
    file.write_text(json.dumps(manifest))
    with caplog.at_level("INFO"):
        verify([TokenStore(store.directory)])
    assert "has no checksums" in caplog.text
