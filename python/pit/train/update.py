"""One optimizer step from any number of microbatches: gradients of *sums* are added up and divided once.

Because losses return (sum, weight), k microbatches give the step of the whole batch, and two data shards that of one. A
step whose loss or gradient is not finite is refused: it counts, but weights and optimizer stay as they were.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import chain, islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float32, Int32

from pit.config import OptimizerConfig
from pit.losses.total import Total
from pit.model.params import Params
from pit.model.programs import Program, Shapes, shape_of
from pit.model.sharding import by_rules, on_mesh, replicated

Arrays = Mapping[str, Array]
LossFunction = Callable[[Params, Arrays], tuple[Total, dict[str, Total]]]

REFUSED = "refused"
"""Metric of an update: 1 where its loss or gradient was not finite, so that only its number counted."""


class TrainState(NamedTuple):
    """State of training: number of steps done (refused ones too), weights that train and the optimizer's state."""

    step: Int32[Array, ""]
    params: Params
    optimizer: optax.OptState


class Sums(NamedTuple):
    """Gradient of the summed loss, the loss, and metrics, added up over microbatches."""

    grads: Params
    loss: Total
    metrics: dict[str, Total]


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Return norm clipping and AdamW, or Adafactor's scaling, under a linear warm-up and a cosine decay."""
    warmup = min(config.warmup_steps, max(steps - 1, 0))
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / (warmup + 1),
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=config.learning_rate * config.end_fraction,
    )
    if config.moments == "full":
        scaled = optax.adamw(schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=_decays)
    else:
        scaled = optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.add_decayed_weights(config.weight_decay, mask=_decays),
            optax.scale_by_learning_rate(schedule),
        )
    chain = optax.chain(optax.clip_by_global_norm(config.clip_norm), scaled)

    def update(
        grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        # Optax mixes Python floats and step counts, which JAX's strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            result: tuple[optax.Updates, optax.OptState] = chain.update(grads, state, params)
        return result

    return optax.GradientTransformation(chain.init, update)


def _decays(params: Params) -> dict[str, bool]:
    """Return which parameters decay: matrices, not the scales of norms or the score vector."""
    return {name: value.ndim >= 2 for name, value in params.items()}


def _place(value: Array) -> NamedSharding | None:
    return value.sharding if isinstance(value.sharding, NamedSharding) else None


def _places(state: TrainState, whole: NamedSharding) -> TrainState:
    """Return the place of each array of a state: that of the weight that it belongs to, on every device otherwise."""

    def place(path: tuple[Any, ...], x: Any) -> Any:
        weight = state.params.get(getattr(path[-1], "key", ""))
        return weight.sharding if weight is not None and weight.shape == x.shape else whole

    placed: TrainState = jax.tree_util.tree_map_with_path(place, state)
    return placed


class Update:
    """The jitted step of one loss: `state, metrics = update(state, microbatches)`; the state's buffers are donated.

    Where the loss or the gradient is NaN or infinite the step is refused (see `REFUSED`) and its metrics weigh nothing.

    Args:
        loss: function of all weights and a microbatch.
        optimizer: optimizer of the weights that train.
        frozen: the other weights, which have no gradient; they are never donated, so that other models may share them.
    """

    def __init__(
        self, loss: LossFunction, optimizer: optax.GradientTransformation, frozen: Params | None = None
    ) -> None:
        def summed(
            params: Params, frozen: Params, batch: Arrays
        ) -> tuple[Float32[Array, ""], tuple[Total, dict[str, Total]]]:
            total, metrics = loss({**frozen, **params}, batch)
            return total.sum, (total, metrics)

        def only(params: Params, frozen: Params, batch: Arrays) -> Sums:
            (_, (total, metrics)), grads = jax.value_and_grad(summed, has_aux=True)(params, frozen, batch)
            # Each gradient is summed onto the devices that hold its weight, and is whole on none.
            return Sums(by_rules(grads), total, metrics)

        def more(params: Params, frozen: Params, sums: Sums, batch: Arrays) -> Sums:
            added: Sums = jax.tree.map(jnp.add, sums, self._only(params, frozen, batch))
            return added

        def apply(state: TrainState, sums: Sums) -> tuple[TrainState, dict[str, Total]]:
            weight = jnp.maximum(sums.loss.weight, jnp.float32(1e-30))
            grads = jax.tree.map(lambda g: g / weight, sums.grads)
            norm = optax.tree.norm(grads)
            updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
            metrics = {"loss": sums.loss, "grad_norm": Total(norm, jnp.float32(1.0)), **sums.metrics}
            # Chosen here, where both are at hand: the buffers of the old state are given away.
            finite = jnp.isfinite(sums.loss.sum) & jnp.isfinite(norm)

            def kept(new: Array, old: Array) -> Array:
                return jnp.where(finite, new, old)

            state = TrainState(
                state.step + 1,
                jax.tree.map(kept, params, state.params),
                jax.tree.map(kept, optimizer_state, state.optimizer),
            )
            metrics = {name: Total(*(kept(x, jnp.zeros_like(x)) for x in total)) for name, total in metrics.items()}
            return state, {**metrics, REFUSED: Total(1.0 - finite.astype(jnp.float32), jnp.float32(1.0))}

        self._optimizer, self._frozen = optimizer, frozen or {}
        self._only = jax.jit(only)
        self._zero: tuple[Mapping[str, NamedSharding | None], Callable[[], Sums]] | None = None
        self._more = jax.jit(more, donate_argnums=2)
        self._apply = jax.jit(apply, donate_argnums=0)

    def start(self, params: Params) -> TrainState:
        """Return the state at step 0, on the mesh of `params` (those that train); takes ownership of their buffers."""
        state = TrainState(jnp.int32(0), params, self._optimizer.init(params))
        sharding = next(iter(params.values())).sharding
        if not isinstance(sharding, NamedSharding):
            return state
        # Counters start on one device; a restored one is committed there, and then refuses to meet sharded weights.
        placed: TrainState = jax.tree.map(jax.device_put, state, _places(state, replicated(sharding.mesh)))
        return placed

    def shapes(self, params: Shapes) -> TrainState:
        """Return the state that `start` makes of weights on a mesh, as shapes at its places."""
        optimizer = jax.eval_shape(self._optimizer.init, params)
        state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), dict(params), optimizer)  # type: ignore[arg-type]
        sharding = next(iter(params.values())).sharding
        placed: TrainState = jax.tree.map(shape_of, state, _places(state, replicated(sharding.mesh)))
        return placed._replace(params=state.params)

    def programs(self, state: TrainState, batch: Shapes, *, accumulates: bool) -> list[Program]:
        """Return the programs of a step.

        Args:
            state: shapes of the state, see `shapes`.
            batch: shapes of a microbatch.
            accumulates: whether a step has several of them.
        """
        weights = state.params, self._frozen
        with on_mesh(state.params):
            sums = jax.eval_shape(self._only, *weights, batch)
        whole = replicated(next(iter(batch.values())).sharding.mesh)
        # As `by_rules` and `_zeros` lay them.
        grads = {name: shape_of(x, state.params[name].sharding) for name, x in sums.grads.items()}  # type: ignore[arg-type]
        sums = Sums(grads, *jax.tree.map(lambda x: shape_of(x, whole), (sums.loss, sums.metrics)))  # type: ignore[arg-type]
        if accumulates:
            gradient = Program("gradient, added", self._more, (*weights, sums, batch))
        else:
            gradient = Program("gradient", self._only, (*weights, batch))
        return [gradient, Program("optimizer", self._apply, (state, sums))]

    def sums(self, params: Params, batch: Arrays) -> Sums:
        """Return gradient, loss and metrics of one microbatch, not divided yet."""
        with on_mesh(params):
            result: Sums = self._only(params, self._frozen, batch)
        return result

    def __call__(self, state: TrainState, batches: Iterable[Arrays]) -> tuple[TrainState, dict[str, Total]]:
        """Add up the microbatches and step.

        Raises:
            ValueError: there is no microbatch.
        """
        rest = iter(batches)
        begin = list(islice(rest, 2))
        if not begin:
            raise ValueError("batches: empty; a step needs at least one microbatch")
        weights = state.params, self._frozen
        with on_mesh(state.params):
            if len(begin) == 1:
                sums = self._only(*weights, begin[0])
            else:
                sums = self._zeros(state.params, begin[0])
                for batch in chain(begin, rest):
                    sums = self._more(*weights, sums, batch)
            result: tuple[TrainState, dict[str, Total]] = self._apply(state, sums)
        return result

    def _zeros(self, params: Params, batch: Arrays) -> Sums:
        """Return sums of nothing, so that one program adds every microbatch: compiling takes long at size."""
        # Each gradient lies where its weight does: a whole one may not fit on a device.
        places = {name: _place(value) for name, value in params.items()}
        if self._zero is None or self._zero[0] != places:
            shapes: Sums = jax.eval_shape(self._only, params, self._frozen, batch)
            zeros = jax.jit(
                lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
                out_shardings=Sums(places, None, None),  # type: ignore[arg-type]
            )
            self._zero = places, zeros
        return self._zero[1]()


class Evaluation:
    """The same sums without gradients, for held-out batches.

    Args:
        loss: function of all weights and a microbatch.
        frozen: the weights that do not train.
    """

    def __init__(self, loss: LossFunction, frozen: Params | None = None) -> None:
        self._frozen = frozen or {}
        self._loss = jax.jit(loss)

    def program(self, params: Params, batch: Shapes) -> Program:
        """Return the program of a batch, from shapes."""
        return Program("held-out loss", self._loss, ({**self._frozen, **params}, batch))

    def __call__(self, params: Params, batches: Iterable[Arrays]) -> dict[str, float]:
        """Return the means over all batches, on the host; `params` are the weights that train."""
        sums: dict[str, list[float]] = {}
        for batch in batches:
            with on_mesh(params):
                total, metrics = jax.device_get(self._loss({**self._frozen, **params}, batch))
            for name, value in {"loss": total, **metrics}.items():
                pair = sums.setdefault(name, [0.0, 0.0])
                pair[0] += float(value.sum)
                pair[1] += float(value.weight)
        return {name: s / w if w else 0.0 for name, (s, w) in sums.items()}
