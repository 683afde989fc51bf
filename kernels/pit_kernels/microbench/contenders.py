"""The contenders: our operations, the published kernels that people would use instead, and the user's functions.

A peer gets its natural layout and the best tiles of a small sweep. Trees and grouped heads
that it cannot compute are replaced as its users would do it: separate paths with segment ids, repeated key/value heads.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from pit_kernels import three_way_attention
from pit_kernels.conformance import OPERATIONS, judge
from pit_kernels.dispatch import OTHERS, Backend
from pit_kernels.gap_reward import tiles as gap_tiles
from pit_kernels.operations import BACKENDS
from pit_kernels.three_way_attention import tiles as attention_tiles
from pit_kernels.three_way_attention.api import Axes
from pit_kernels.token_logprob import tiles as logprob_tiles

Tiles = Mapping[str, int]
"""Tile sizes by the name that a contender gives them."""


@dataclass(frozen=True)
class Contender:
    """Something that computes one operation.

    name: name in options and tables.
    operation: name of the operation.
    serves: needs of cases of `pit_kernels.conformance` it claims to serve.
    make: gives the function for tiles (None for its own choice); the flag asks for the interpreter. For attention the
      function takes q, k, v in `axes`, then visible_until; for the others the arguments of the cases of conformance.
    axes: layout of an attention contender.
    sweep: tiles to try.
    absent: reason why it cannot run here, or None.
    needs_interpreter: whether it runs on a CPU only in Pallas' interpreter.
    plain_rows: whether visible_until may be None, for rows of one causal sequence.
    scaled_queries: whether its q comes multiplied by the scale, which its users fold into their projection.
    ours: whether it is one of this package's backends, whose figures are held to a baseline.
    """

    name: str
    operation: str
    serves: frozenset[str]
    make: Callable[[Tiles | None, bool], Callable[..., Any]]
    axes: Axes = "BTNH"
    sweep: tuple[Tiles, ...] = ()
    absent: str | None = None
    needs_interpreter: bool = False
    plain_rows: bool = False
    scaled_queries: bool = False
    ours: bool = False

    @property
    def packs_trees(self) -> bool:
        """Whether it computes trees as they are."""
        return "trees" in self.serves


ATTENTION_SWEEP = tuple({"q": q, "kv": kv} for q, kv in ((512, 512), (512, 1024), (1024, 1024)))
"""Tiles that the peers' attention is tried with; 512 x 512 is the first, the one that figures of others are for."""


def contenders(operation: str) -> dict[str, Contender]:
    """Return the known contenders of an operation by name, ours first.

    Raises:
      ValueError: if the operation has none.
    """
    makers = {"three_way_attention": _attention, "token_logprob": _logprob, "gap_reward": _gap}
    if operation not in makers:
        raise ValueError(f"op is {operation!r}; it must be one of {', '.join(makers)}")
    return {contender.name: contender for contender in makers[operation]()}


def load_contender(operation: str, text: str) -> Contender:
    """Return a user's own contender, "module:function": a function with the signature of our operation.

    Raises:
      ValueError: if there is no such function.
    """
    where, _, name = text.partition(":")
    function = getattr(importlib.import_module(where), name, None) if where and name else None
    if not callable(function):
        raise ValueError(f"contender is {text!r}; it must name a function, as package.module:function")
    claimed = getattr(function, "serves", ("trees", "grouped", "soft_cap", "temperature", "ragged", "entropy"))
    return Contender(text, operation, frozenset(claimed), lambda tiles, interpret: function)


def _missing(module: str, what: str) -> str | None:
    if importlib.util.find_spec(module) is not None:
        return None
    return f"{what} is not installed: pip install {what}"


_TILES: dict[str, Callable[..., Any]] = {
    "three_way_attention": attention_tiles.Tiles,
    "token_logprob": logprob_tiles.Tiles,
    "gap_reward": gap_tiles.Tiles,
}


def _ours(operation: str, call: Callable[..., Any], axes: Axes = "BTNH") -> list[Contender]:
    """Return the backends of an operation that run on a TPU, in the order of its list."""
    serves = OPERATIONS[operation].serves
    ours = []
    for backend in BACKENDS[operation]:
        if not {"tpu", OTHERS} & set(backend.platforms):
            continue

        def make(tiles: Tiles | None, interpret: bool, backend: Backend = backend) -> Callable[..., Any]:
            options: dict[str, Any] = {"implementation": backend.name}
            if interpret and backend.interpreted:
                options["interpret"] = True
            if tiles is not None:
                options["tiles"] = _TILES[operation](**tiles)
            return functools.partial(call, **options)

        ours.append(Contender(backend.name, operation, serves, make, axes, ours=True))
    return ours


# --- attention ---


def _attention() -> list[Contender]:
    ours = _ours("three_way_attention", functools.partial(three_way_attention, axes="BNTH"), "BNTH")
    # The cost for a caller whose projections can only write the tokens before the heads.
    as_called = replace(_ours("three_way_attention", three_way_attention)[0], name="pallas_tpu_btnh")
    # Ours with the work of the peers, so that sharing prefixes and all else can be told apart.
    on_paths = replace(ours[0], name="pallas_tpu_paths", serves=ours[0].serves - {"trees"})
    tokamax = _missing("tokamax", "tokamax")
    return [
        *ours,
        as_called,
        on_paths,
        _peer("jax_flash", _flash, needs_interpreter=True),
        _peer("jax_splash", _splash, scaled_queries=True),
        _peer("tokamax", _tokamax_splash, absent=tokamax, scaled_queries=True),
    ]


def _peer(name: str, make: Callable[[Tiles | None, bool], Callable[..., Any]], **options: Any) -> Contender:
    """Return a published attention kernel: packed sequences and grouped heads, but no trees."""
    serves = frozenset({"grouped"})
    return Contender(name, "three_way_attention", serves, make, "BNTH", ATTENTION_SWEEP, plain_rows=True, **options)


def segment_ids(visible_until: Int32[Array, "B T"]) -> Int32[Array, "B T"]:
    """Return the ids of packed sequences: the id of a sequence is its end, and padding's is 0."""
    return visible_until


def _repeated(q: Float[Array, "B N T H"], x: Float[Array, "B K T H"]) -> Float[Array, "B N T H"]:
    return x if x.shape[1] == q.shape[1] else jnp.repeat(x, q.shape[1] // x.shape[1], axis=1)


def _flash(tiles: Tiles | None, interpret: bool) -> Callable[..., Any]:
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    def attend(q: Any, k: Any, v: Any, visible_until: Any) -> Any:
        size = dict(tiles or ATTENTION_SWEEP[0])
        tokens = q.shape[2]
        block_q, block_k = _fitting(size["q"], tokens), _fitting(size["kv"], tokens)
        blocks = flash.BlockSizes(
            block_q=block_q,
            block_k_major=block_k,
            block_k=block_k,
            block_b=1,
            block_q_major_dkv=block_q,
            block_k_major_dkv=block_k,
            block_k_dkv=block_k,
            block_q_dkv=block_q,
            block_k_major_dq=block_k,
            block_k_dq=block_k,
            block_q_dq=block_q,
        )
        ids = None if visible_until is None else segment_ids(visible_until)
        return flash.flash_attention(
            q,
            _repeated(q, k),
            _repeated(q, v),
            segment_ids=None if ids is None else flash.SegmentIds(ids, ids),
            causal=True,
            sm_scale=q.shape[3] ** -0.5,
            block_sizes=blocks,
        )

    return attend


def _fitting(block: int, tokens: int) -> int:
    """Return the largest divisor of the row in lanes that is at most `block`: peers' tiles must divide their rows."""
    return next(size for size in range(min(block, tokens), 0, -128) if tokens % size == 0)


def _splash(tiles: Tiles | None, interpret: bool) -> Callable[..., Any]:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    def attend(q: Any, k: Any, v: Any, visible_until: Any) -> Any:
        size = dict(tiles or ATTENTION_SWEEP[0])
        _, heads, tokens, _ = q.shape
        block_q, block_kv = _fitting(size["q"], tokens), _fitting(size["kv"], tokens)
        blocks = splash.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_kv_compute=min(512, block_kv),
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_kv_dkv_compute=min(512, block_kv),
            use_fused_bwd_kernel=True,
        )
        mask = masks.MultiHeadMask([masks.CausalMask((tokens, tokens)) for _ in range(heads)])
        kernel = splash.make_splash_mha(mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret)
        if visible_until is None:
            return jax.vmap(kernel)(q, k, v)
        ids = segment_ids(visible_until)
        return jax.vmap(lambda q, k, v, ids: kernel(q, k, v, splash.SegmentIds(ids, ids)))(q, k, v, ids)

    return attend


def _tokamax_splash(tiles: Tiles | None, interpret: bool) -> Callable[..., Any]:
    splash = importlib.import_module("tokamax._src.ops.experimental.tpu.splash_attention.splash_attention_kernel")
    masks = importlib.import_module("tokamax._src.ops.experimental.tpu.splash_attention.splash_attention_mask")
    base = importlib.import_module("tokamax._src.ops.experimental.tpu.splash_attention.base")

    def attend(q: Any, k: Any, v: Any, visible_until: Any) -> Any:
        size = dict(tiles or ATTENTION_SWEEP[0])
        tokens = q.shape[2]
        block_q, block_kv = _fitting(size["q"], tokens), _fitting(size["kv"], tokens)
        config = splash.SplashConfig(
            block_q=block_q,
            block_kv=block_kv,
            block_kv_compute=min(512, block_kv),
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_kv_dkv_compute=min(512, block_kv),
            interpret=interpret,
        )
        kernel = splash.make_splash_mha(masks.CausalMask((tokens, tokens)), config=config, q_seq_shards=1)
        if visible_until is None:
            return jax.vmap(kernel)(q, k, v)
        ids = segment_ids(visible_until)
        return jax.vmap(lambda q, k, v, ids: kernel(q, k, v, base.SegmentIds(ids, ids)))(q, k, v, ids)

    return attend


# --- log-probabilities ---


def _logprob() -> list[Contender]:
    tokamax = _missing("tokamax", "tokamax")
    return [
        *_ours("token_logprob", OPERATIONS["token_logprob"].call),
        Contender(
            "tokamax",
            "token_logprob",
            frozenset({"sum"}),
            _tokamax_loss,
            sweep=LOSS_SWEEP,
            absent=tokamax,
            needs_interpreter=True,
        ),
    ]


LOSS_SWEEP = tuple({"b": b, "h": h, "v": v} for b, h, v in ((1024, 512, 512), (1024, 256, 1024), (2048, 256, 1024)))
"""Tiles that tokamax's loss is tried with; the first are its own choice for v5e."""


def _tokamax_loss(tiles: Tiles | None, interpret: bool) -> Callable[..., Any]:
    # Its operation asks which device is attached; the kernels under it can be compiled for one that is not.
    kernel = importlib.import_module("tokamax._src.ops.linear_softmax_cross_entropy_loss.pallas_mosaic_tpu_kernel")
    size = dict(tiles or LOSS_SWEEP[0])
    blocks = {f"{letter}_block_size": size[letter] for letter in ("b", "h", "v")}

    @jax.custom_vjp
    def summed(hidden: Any, weight: Any, target: Any) -> Any:
        return forward(hidden, weight, target)[0]

    def forward(hidden: Any, weight: Any, target: Any) -> Any:
        # Its table is [D, V]: the transposition is a view that XLA lays out as it likes.
        loss, lse = kernel.linear_softmax_cross_entropy_loss_fwd_pallas_mosaic_tpu(hidden, target, weight.T, **blocks)
        return loss, (hidden, weight, target, lse)

    def backward(saved: Any, d_loss: Any) -> Any:
        hidden, weight, target, lse = saved
        d_hidden, d_weight = kernel.linear_softmax_cross_entropy_loss_bwd_pallas_mosaic_tpu(
            d_loss, lse, hidden, target, weight.T, **blocks
        )
        return d_hidden.astype(hidden.dtype), d_weight.T.astype(weight.dtype), None

    summed.defvjp(forward, backward)
    return summed


# --- scores ---


def _gap() -> list[Contender]:
    return _ours("gap_reward", OPERATIONS["gap_reward"].call)


@dataclass(frozen=True)
class Judged:
    """A contender with the verdict of conformance."""

    contender: Contender
    failure: str | None
    skipped: Sequence[str] = field(default=())


def judged(contender: Contender) -> Judged:
    """Run the cases of its operation on a CPU, TPU kernels in the interpreter."""
    function = conforming(contender, contender.make(None, True))
    verdict = judge(function, OPERATIONS[contender.operation].cases(), contender.serves)
    return Judged(contender, None if verdict.failure is None else str(verdict.failure), verdict.skipped)


def conforming(contender: Contender, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a contender's function as conformance calls it: [B, T, N, H], and queries without the scale."""
    if contender.operation != "three_way_attention":
        return function

    def attend(q: Any, k: Any, v: Any, visible_until: Any, *position: Any, **options: Any) -> Any:
        if contender.scaled_queries:
            q = (q * q.shape[3] ** -0.5).astype(q.dtype)
        if contender.axes == "BTNH":
            return function(q, k, v, visible_until, *position, **options)
        out = function(*(x.swapaxes(1, 2) for x in (q, k, v)), visible_until, *position, **options)
        return out.swapaxes(1, 2)

    return attend
