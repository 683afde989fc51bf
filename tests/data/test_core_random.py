"""Philox, unbiased integers and the keyed permutation of the C++ core."""

import re

import core_twins as twins
import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data import _core

WORDS = st.integers(0, 2**32 - 1)
KEYS = st.integers(0, 2**64 - 1)

# Known answers that come with Random123, the authors' implementation (kat_vectors, philox4x32 10).
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, expected):
    assert _core.philox4x32(counter, key) == expected
    assert twins.philox(counter, key) == expected


@given(counter=st.lists(WORDS, min_size=4, max_size=4), key=st.lists(WORDS, min_size=2, max_size=2))
def test_philox_agrees_with_its_twin(counter, key):
    assert _core.philox4x32(counter, key) == twins.philox(counter, key)


@given(key=KEYS, stream=WORDS, index=KEYS, n=st.one_of(st.integers(1, 100), st.integers(1, 2**64 - 1)))
def test_uniform_below_agrees_with_its_twin(key, stream, index, n):
    # Sizes just above 2^63 reject half of all attempts, so retries are exercised.
    value = _core.uniform_below(key, stream, index, n)
    assert 0 <= value < n
    assert value == twins.uniform_below(key, stream, index, n)


def test_uniform_below_retries():
    n = 2**63 + 1
    first_attempts = [twins.random_bits(5, 0, i) * n % 2**64 >= 2**64 % n for i in range(64)]
    assert not all(first_attempts)
    for i in range(64):
        assert _core.uniform_below(5, 0, i, n) == twins.uniform_below(5, 0, i, n)


def test_uniform_below_is_even():
    # 60000 draws of 6 faces: chi-square with 5 degrees of freedom is below 20.5 with probability 0.999.
    counts = np.bincount([_core.uniform_below(1, 0, i, 6) for i in range(60000)], minlength=6)
    assert ((counts - 10000) ** 2 / 10000).sum() < 20.5


def test_uniform_below_an_empty_range_raises():
    with pytest.raises(_core.CoreError, match=re.escape("n=0, but [0, 0) holds no number")):
        _core.uniform_below(0, 0, 0, 0)


def _assert_bijective(n, key):
    permutation = _core.Permutation(n, key)
    index = np.arange(n, dtype=np.int64)
    image = permutation.apply(index)
    assert np.array_equal(np.sort(image), index)
    assert np.array_equal(permutation.invert(image), index)


# Every size to 5,000, larger powers of two and the statistics are in cpp/tests/test_permutation.cpp.
def test_permutation_is_bijective_for_every_small_size():
    for n in range(1001):
        _assert_bijective(n, key=n * 0x9E3779B97F4A7C15 % 2**64)


@pytest.mark.parametrize("power", range(11, 17))
def test_permutation_is_bijective_around_powers_of_two(power):
    for n in (2**power - 1, 2**power, 2**power + 1):
        _assert_bijective(n, key=power)


@given(data=st.data(), n=st.one_of(st.integers(1, 1000), st.integers(1, 2**48)), key=KEYS)
def test_permutation_agrees_with_its_twin(data, n, key):
    index = data.draw(st.lists(st.integers(0, n - 1), max_size=5))
    permutation = _core.Permutation(n, key)
    image = permutation.apply(np.array(index, np.int64))
    assert image.tolist() == [twins.permute(n, key, i) for i in index]
    assert permutation.invert(image).tolist() == index


@pytest.mark.parametrize("n", [255, 256, 257, 272, 273, 2**20 + 1, 2**47 + 1, 2**48])
def test_permutation_agrees_with_its_twin_over_several_blocks(n):
    index = np.random.default_rng(n).integers(0, n, 600)
    image = _core.Permutation(n, 9).apply(index)
    assert image.tolist() == [twins.permute(n, 9, int(i)) for i in index]


def test_permutation_repeats_nothing_where_grain_does():
    n, one, other = 4**8 + 1, 0, 4**8
    shuffled = grain.MapDataset.range(n).shuffle(seed=7)
    assert shuffled[one] == shuffled[other]  # if Grain repairs this, remove these lines
    assert len(np.unique(_core.Permutation(n, 7).apply(np.arange(n)))) == n


def test_permutation_keeps_the_shape():
    image = _core.Permutation(12, 3).apply(np.arange(12).reshape(3, 4))
    assert image.shape == (3, 4)


def test_permutation_has_no_favourite_place():
    # The image of index 0 over 4000 keys, 8 places: chi-square with 7 degrees of freedom is below 24.3 with p 0.999.
    zero = np.zeros(1, np.int64)
    counts = np.bincount([_core.Permutation(8, key).apply(zero)[0] for key in range(4000)], minlength=8)
    assert ((counts - 500) ** 2 / 500).sum() < 24.3


@pytest.mark.parametrize("n", [-1, 2**48 + 1])
def test_permutation_refuses_a_size_out_of_range(n):
    with pytest.raises(_core.CoreError, match=re.escape(f"Permutation: n={n} is outside [0, 281474976710656]")):
        _core.Permutation(n, 0)


@pytest.mark.parametrize(("n", "index"), [(0, 0), (5, 5), (5, -1), (5, 2**62)])
@pytest.mark.parametrize("method", ["apply", "invert"])
def test_permutation_refuses_an_index_out_of_range(n, index, method):
    with pytest.raises(_core.CoreError, match=re.escape(f"index={index} is outside [0, {n})")):
        getattr(_core.Permutation(n, 0), method)(np.array([index]))


def test_permutation_converts_nothing():
    with pytest.raises(_core.CoreError, match="index is an array of int32; give a C-contiguous NumPy array of int64"):
        _core.Permutation(5, 0).apply(np.zeros(2, np.int32))
    with pytest.raises(_core.CoreError, match="index is a list; give a C-contiguous"):
        _core.Permutation(5, 0).apply([1, 2])
    with pytest.raises(_core.CoreError, match="int64 that is not C-contiguous"):
        _core.Permutation(5, 0).apply(np.zeros(4, np.int64)[::2])
