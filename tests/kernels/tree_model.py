"""A small decoder in plain JAX, for tests of trees: learned positions, attention over rows, a tied output table."""

import jax
import jax.numpy as jnp
import numpy as np

from pit_kernels import three_way_attention, trees

VOCABULARY, WIDTH, HEADS, LAYERS, POSITIONS = 16, 16, 2, 1, 64


def initial(seed=0):
    """Return random parameters."""
    rng = np.random.default_rng(seed)

    def weight(*shape):
        return jnp.asarray(rng.normal(0, shape[0] ** -0.5, shape), jnp.float32)

    layers = [{"qkv": weight(WIDTH, 3 * WIDTH), "out": weight(WIDTH, WIDTH)} for _ in range(LAYERS)]
    return {"token": weight(VOCABULARY, WIDTH), "position": weight(POSITIONS, WIDTH), "layers": layers}


def row_logprob(params, tree):
    """Return the log-probability of every token of the rows."""
    token, position = jnp.asarray(tree.token), jnp.asarray(tree.position)
    x = params["token"][token] + params["position"][position]
    for layer in params["layers"]:
        q, k, v = jnp.split(jnp.tanh(x) @ layer["qkv"], 3, axis=-1)
        q, k, v = (part.reshape(*token.shape, HEADS, -1) for part in (q, k, v))
        mixed = three_way_attention(q, k, v, jnp.asarray(tree.visible_until), implementation="xla")
        x = x + jnp.tanh(mixed.reshape(x.shape) @ layer["out"])
    return trees.row_logprob(x, params["token"], tree)


def path_logprob(params, sequence):
    """Return the log-probability of every token of one sequence but the first, by plain causal attention."""
    tokens = jnp.asarray(sequence)
    x = params["token"][tokens] + params["position"][: tokens.size]
    seen = np.tri(tokens.size, dtype=bool)
    for layer in params["layers"]:
        q, k, v = jnp.split(jnp.tanh(x) @ layer["qkv"], 3, axis=-1)
        q, k, v = (part.reshape(tokens.size, HEADS, -1) for part in (q, k, v))
        logits = jnp.einsum("qnh,knh->nqk", q, k) * (WIDTH // HEADS) ** -0.5
        weights = jax.nn.softmax(jnp.where(seen[None], logits, -jnp.inf), axis=-1)
        mixed = jnp.einsum("nqk,knh->qnh", weights, v).reshape(x.shape)
        x = x + jnp.tanh(mixed @ layer["out"])
    logp = jax.nn.log_softmax(x[:-1] @ params["token"].T, axis=-1)
    return logp[np.arange(tokens.size - 1), tokens[1:]]
