"""Backends as values, and the one choice among the backends that an operation lists.

A backend's file exports `BACKEND`; an operation lists its backends, best first. What "auto" runs, what is refused and
both directions of the derivative follow from that list; nothing decides by catching an exception.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import jax
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental.pallas import tpu as pltpu

Interpret = bool | pltpu.InterpretParams
"""Interpretation by Pallas' TPU interpreter, on any platform: off, on, or on with parameters."""

OTHERS = "default"
"""Platform of a backend that serves every platform for which the list has no other backend."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Backend:
    """One implementation of an operation.

    All its functions take the operation's static settings and then arrays. `backward` is None for an operation without
    a derivative of its own.

    name: name that callers pass as `implementation`.
    platforms: platforms that "auto" lowers to it: "tpu", "cuda", "rocm", "cpu", or OTHERS.
    refuses: from the arguments of `forward`, of which it reads shapes and dtypes, to the reason why this backend cannot
      serve them; None where it can.
    forward: results of one shard.
    backward: gradients of one shard.
    interpreted: whether `interpret` runs it on any platform.
    """

    name: str
    platforms: tuple[str, ...]
    refuses: Callable[..., str | None] = field(repr=False)
    forward: Callable[..., Any] = field(repr=False)
    backward: Callable[..., Any] | None = field(default=None, repr=False)
    interpreted: bool = False


@dataclass(frozen=True)
class Route:
    """The backends of a call, by the platform that its program is lowered for.

    default: backend of every platform that has none of its own.
    platforms: pairs of a platform and its backend.
    """

    default: Backend
    platforms: tuple[tuple[str, Backend], ...] = ()

    def on(self, platform: str) -> Backend:
        """Return the backend of a platform.

        Example:
          >>> xla = Backend("xla", (OTHERS,), refuses=serves_all, forward=abs)
          >>> Route(xla).on("tpu").name
          'xla'
        """
        return dict(self.platforms).get(platform, self.default)

    def forward(self, settings: Any, *arrays: Any) -> Any:
        """Return the results of the backend of the platform that the program is lowered for."""
        return self._run("forward", settings, *arrays)

    def backward(self, settings: Any, *arrays: Any) -> Any:
        """Return the gradients of the backend of the platform that the program is lowered for."""
        return self._run("backward", settings, *arrays)

    def _run(self, direction: Literal["forward", "backward"], settings: Any, *arrays: Any) -> Any:
        """Trace the direction of the backend of the mesh in context; without one, of all that the route has.

        Of several, only that of the platform that the program is lowered for is compiled.
        """
        platform = platform_of_mesh()
        if platform is not None or not self.platforms:
            return getattr(self.on(platform or OTHERS), direction)(settings, *arrays)
        default = functools.partial(getattr(self.default, direction), settings)
        branches = {name: functools.partial(getattr(of, direction), settings) for name, of in self.platforms}
        return lax.platform_dependent(*arrays, default=default, **branches)


def platform_of_mesh() -> str | None:
    """Return the platform of the devices of the mesh in context; None without one, or where JAX's name fits several."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return None if device is None or device.platform == "gpu" else device.platform


class UnsupportedImplementationError(ValueError):
    """A named backend cannot serve an operation; the message says why and what to ask for instead."""


def serves_all(settings: Any, *arrays: Any) -> None:
    """Refuse nothing: the `refuses` of a backend that serves every call."""


def choose(
    operation: str, backends: Sequence[Backend], implementation: str, settings: Any, *arrays: Any, interpret: Interpret
) -> Route:
    """Return the backends that will run a call.

    "auto" takes, for each platform, the first backend of the list that is for the platform and does not refuse the
    call. With `interpret` it takes the first that has an interpreter, on every platform.

    Args:
      operation: name of the operation.
      backends: backends of the operation, best first.
      implementation: "auto" or the name of a backend.
      settings: static settings of the call.
      arrays: arguments of the backends' `forward`.
      interpret: whether the caller asks for the interpreter.

    Raises:
      UnsupportedImplementationError: if the named backend is missing or cannot serve the call, or if none can.

    Example:
      >>> xla = Backend("xla", (OTHERS,), refuses=serves_all, forward=abs)
      >>> tpu = Backend("pallas_tpu", ("tpu",), refuses=serves_all, forward=abs)
      >>> route = choose("gap_reward", (tpu, xla), "auto", None, interpret=False)
      >>> route.on("tpu").name, route.on("cuda").name
      ('pallas_tpu', 'xla')
    """
    refusals = {backend.name: backend.refuses(settings, *arrays) for backend in backends}
    serving = [backend for backend in backends if refusals[backend.name] is None]
    reason = missing_reason(operation, backends, implementation)
    if reason is not None:
        raise _unsupported(reason, serving)
    if interpret:
        implementation = _with_interpreter(operation, backends, implementation)
    if implementation == "auto":
        return _automatic(operation, backends, refusals)
    reason = refusals[implementation]
    if reason is not None:
        raise _unsupported(f"{operation}: {implementation} cannot serve this call: {reason}", serving)
    return Route(next(backend for backend in backends if backend.name == implementation))


def _with_interpreter(operation: str, backends: Sequence[Backend], implementation: str) -> str:
    """Return the name of the backend that the interpreter runs."""
    names = [backend.name for backend in backends if backend.interpreted]
    if implementation == "auto" and names:
        return names[0]
    if implementation not in names:
        raise UnsupportedImplementationError(
            f"{operation}: interpret is for TPU kernels, and implementation is {implementation!r}; backends with an "
            f"interpreter: {', '.join(names) or 'none'}. Name one of them, or leave interpret out"
        )
    return implementation


def _automatic(operation: str, backends: Sequence[Backend], refusals: Mapping[str, str | None]) -> Route:
    """Return for each platform the first backend that is for it and does not refuse."""
    chosen: dict[str, Backend] = {}
    for backend in backends:
        if refusals[backend.name] is None:
            for platform in backend.platforms:
                chosen.setdefault(platform, backend)
    default = chosen.pop(OTHERS, None)
    if default is None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items() if reason is not None)
        raise UnsupportedImplementationError(
            f"{operation}: no backend serves this call on every platform ({reasons}); name one as implementation"
        )
    return Route(default, tuple((platform, backend) for platform, backend in chosen.items()))


def missing_reason(operation: str, backends: Sequence[Backend], implementation: str) -> str | None:
    """Return why an operation has no backend of that name, or None where it has one or the name is "auto"."""
    names = [backend.name for backend in backends]
    if implementation in ("auto", *names):
        return None
    return f"{operation} has no {implementation} backend; available: {', '.join(names)}"


def _unsupported(reason: str, serving: Sequence[Backend]) -> UnsupportedImplementationError:
    """Return the error of a refusal, which ends with the backends that would serve the call."""
    names = [
        f"{backend.name} ({'any platform' if OTHERS in backend.platforms else ', '.join(backend.platforms)})"
        for backend in serving
    ]
    what = f": {', '.join(names)}" if names else ""
    return UnsupportedImplementationError(f'{reason}. Ask for implementation="auto" to take what there is{what}')


def interpreter(interpret: Interpret) -> Interpret:
    """Return the argument for `pallas_call`: True becomes the TPU interpreter, as Pallas' generic one has no DMAs."""
    return pltpu.InterpretParams() if interpret is True else interpret


def one_by_one(function: Callable[..., Result]) -> Callable[..., Result]:
    """Return `function` with a `jax.vmap` that loops: Mosaic refuses a batch of an array that a kernel fetches from."""
    looped: Callable[..., Result] = sequential_vmap(function)
    return looped
