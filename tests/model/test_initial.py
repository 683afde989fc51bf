"""The initial weights that are not random."""

import dataclasses

import jax
import numpy as np
import path_twins as twins

from pit.model.decoder import Decoder

CONFIG = dataclasses.replace(twins.LLAMA, width=64, learned_positions=128, matched_heads=1)


def test_matched_heads_start_with_keys_that_are_queries():
    params = jax.device_get(twins.initial(Decoder, CONFIG))
    for layer in range(CONFIG.layers):
        q, k = (params[f"layers.{layer}.attention.{name}"] for name in "qk")
        group = CONFIG.heads // CONFIG.kv_heads
        # Some versions of XLA compute the random numbers twice, fused into each of the two, with other roundings.
        np.testing.assert_allclose(k[:, 0], q[:, 0], rtol=1e-5)
        assert np.abs(k[:, 1] - q[:, group]).max() > 0.01, "only the first KV head is matched"
    assert np.abs(params["layers.0.attention.q"] - params["layers.1.attention.q"]).max() > 0.01


def test_learned_positions_start_as_sinusoids_of_half_a_token():
    table = np.asarray(twins.initial(Decoder, CONFIG)["positions"])
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 0.5, rtol=1e-5)
    closeness = table @ table.T / 0.25
    # Neighbours are alike, and the farther two positions are, the less (on average over the table).
    by_distance = [np.diagonal(closeness, distance).mean() for distance in (0, 1, 2, 4, 8, 16, 32, 64)]
    assert by_distance[1] > 0.9
    assert np.all(np.diff(by_distance) < 0)
