"""What a model starts from: the parts of it that are not random."""

import dataclasses

import numpy as np
import path_twins as twins

from pit.model.decoder import Decoder
from pit.model.params import build


def test_matched_heads_start_with_keys_that_are_queries():
    config = dataclasses.replace(twins.LLAMA, matched_heads=1)
    _, params = build(Decoder, config, twins.VOCAB, 0)
    for layer in range(config.layers):
        q, k = (params[f"layers.{layer}.attention.{name}"] for name in "qk")
        group = config.heads // config.kv_heads
        np.testing.assert_array_equal(k[:, 0], q[:, 0])
        assert not np.array_equal(k[:, 1], q[:, group])


def test_learned_positions_start_as_sinusoids_of_half_a_token():
    _, params = build(Decoder, dataclasses.replace(twins.LLAMA, width=64, learned_positions=128), twins.VOCAB, 0)
    table = np.asarray(params["positions"])
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 0.5, rtol=1e-5)
    closeness = table @ table.T / 0.25
    # Neighbours are alike, and the farther two positions are, the less (on average over the table).
    by_distance = [np.diagonal(closeness, distance).mean() for distance in (0, 1, 2, 4, 8, 16, 32, 64)]
    assert by_distance[1] > 0.9
    assert np.all(np.diff(by_distance) < 0)
