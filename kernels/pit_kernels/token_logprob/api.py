"""Log-probabilities of chosen tokens straight from hidden states and the output table, without keeping the logits.

Every loss and every KL of the project reads its log-probabilities here.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from pit_kernels import checks, dispatch
from pit_kernels.partition import WHOLE, Partition
from pit_kernels.token_logprob import autodiff
from pit_kernels.token_logprob.backends import BACKENDS
from pit_kernels.token_logprob.settings import Layout, Settings
from pit_kernels.token_logprob.tiles import Tiles

_NAME = "token_logprob"


class TokenLogprob(NamedTuple):
    """Statistics of a row's distribution, in nats at the temperature; exactly 0 in invalid rows.

    logp: log-probability of the target.
    lse: log-sum-exp of the logits, after cap and temperature.
    entropy: entropy of the distribution.
    """

    logp: Float[Array, " M"]
    lse: Float[Array, " M"]
    entropy: Float[Array, " M"]


def token_logprob(
    hidden: Float[Array, "M D"],
    weight: Float[Array, "V D"] | Float[Array, "D V"],
    target: Int32[Array, " M"],
    *,
    layout: Layout = "vd",
    valid: Bool[Array, " M"] | None = None,
    temperature: float = 1.0,
    logit_soft_cap: float | None = None,
    bias: Float[Array, " V"] | None = None,
    implementation: str = "auto",
    interpret: dispatch.Interpret = False,
    partition: Partition | None = None,
    tiles: Tiles | None = None,
) -> TokenLogprob:
    """Return the log-softmax of soft_cap(hidden . weight + bias) / temperature at the targets, with its log-sum-exp and
    entropy.

    Products accumulate in float32 and everything after them is float32, whatever the dtype (float64 stays). The logits
    never live at once; the gradients recompute them. Differentiable (reverse mode) in hidden, weight and bias
    through all three results. An invalid row gives exact zeros and zero gradients, and a NaN there reaches nothing.

    Args:
      hidden: M rows of width D, after the final norm.
      weight: output table, [V, D] or [D, V] by `layout`; neither is transposed in memory.
      target: index of the chosen token. A valid row whose target is outside 0..V-1 has logp NaN: a wrong index is not
        a small loss.
      layout: layout of `weight`.
      valid: rows that count; all when None.
      temperature: divides the logits; a Python float.
      logit_soft_cap: c of the cap c tanh(z / c) before the temperature (Gemma 2); no cap when None.
      bias: added to the logits before the cap.
      implementation: backend; see `pit_kernels.dispatch`.
      interpret: runs the TPU kernels on any platform, slowly, in Pallas' interpreter.
      partition: mesh axes that split the rows and, as columns, the vocabulary; nothing is split when None.
      tiles: sizes of the TPU kernels' blocks; those of the committed table when None.

    Raises:
      ValueError: if shapes or dtypes do not fit, or the temperature is not a finite Python float above 0.
      UnsupportedImplementationError: if the named backend cannot serve.

    Example:
      >>> import jax.numpy as jnp
      >>> result = token_logprob(jnp.ones((2, 4)), jnp.zeros((8, 4)), jnp.array([3, 5], jnp.int32))
      >>> [round(float(x), 3) for x in result.logp]
      [-2.079, -2.079]
    """
    checks.require_rank(_NAME, "hidden", hidden, "M D")
    checks.require_same_float(_NAME, hidden=hidden, weight=weight)
    checks.require_int32(_NAME, "target", target)
    if layout not in ("vd", "dv"):
        raise ValueError(f'{_NAME}: layout is {layout!r}; it must be "vd" for a [V, D] table or "dv" for a [D, V] one')
    checks.require_rank(_NAME, "weight", weight, "V D" if layout == "vd" else "D V")
    rows, width = hidden.shape
    vocabulary, weight_width = weight.shape if layout == "vd" else weight.shape[::-1]
    if weight_width != width:
        raise ValueError(
            f"{_NAME}: weight has shape {weight.shape} with layout {layout!r}, so its width is {weight_width}; hidden "
            f"has width {width}. Give the layout of the table as it is stored"
        )
    checks.require_shape(_NAME, "target", target, "M", (rows,))
    checks.require_positive(_NAME, "temperature", temperature)
    if logit_soft_cap is not None:
        checks.require_positive(_NAME, "logit_soft_cap", logit_soft_cap)
    if bias is not None:
        checks.require_shape(_NAME, "bias", bias, "V", (vocabulary,))
    if valid is None:
        valid = jnp.ones((rows,), bool)
    checks.require_shape(_NAME, "valid", valid, "M", (rows,))
    if valid.dtype != jnp.bool_:
        raise ValueError(f"{_NAME}: valid has dtype {valid.dtype}; it must be bool: compare it, as in weight > 0")

    settings = Settings(
        layout=layout,
        temperature=float(temperature),
        logit_soft_cap=None if logit_soft_cap is None else float(logit_soft_cap),
        tiles=tiles,
        interpret=dispatch.interpreter(interpret),
        partition=(partition or WHOLE).here([rows], [vocabulary]),
    )
    arrays = hidden, weight, target, valid, bias
    route = dispatch.choose(_NAME, BACKENDS, implementation, settings, *arrays, interpret=interpret)
    return TokenLogprob(*autodiff.logprob(*arrays, settings, route))
