"""The choice of a backend follows from an operation's list: platforms, refusals, the interpreter."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from pit_kernels import UnsupportedImplementationError, unsupported_reason
from pit_kernels.dispatch import OTHERS, Backend, Route, choose
from pit_kernels.operations import BACKENDS


def backend(name, platforms, times=1.0, refusal=None, **options):
    def forward(settings, x):
        return x * times * settings

    return Backend(name, platforms, lambda settings, *arrays: refusal, forward, **options)


TPU = backend("pallas_tpu", ("tpu",), 2.0, interpreted=True)
XLA = backend("xla", (OTHERS,), 3.0)


def chosen(backends, implementation="auto", interpret=False):
    return choose("op", backends, implementation, 1.0, interpret=interpret)


@pytest.mark.parametrize("operation", BACKENDS)
def test_every_operation_has_backends_of_different_names_and_one_for_every_platform(operation):
    names = [backend.name for backend in BACKENDS[operation]]
    assert len(set(names)) == len(names)
    assert [backend.name for backend in BACKENDS[operation] if OTHERS in backend.platforms] == ["xla"]
    assert unsupported_reason(operation, "auto") is unsupported_reason(operation, "xla") is None


@pytest.mark.parametrize("operation", BACKENDS)
def test_an_absent_backend_is_refused_with_those_that_exist(operation):
    reason = unsupported_reason(operation, "sparse")
    available = ", ".join(backend.name for backend in BACKENDS[operation])
    assert reason == f"{operation} has no sparse backend; available: {available}"
    with pytest.raises(UnsupportedImplementationError) as caught:
        chosen((TPU, XLA), "sparse")
    assert str(caught.value) == (
        'op has no sparse backend; available: pallas_tpu, xla. Ask for implementation="auto" to take what there is: '
        "pallas_tpu (tpu), xla (any platform)"
    )


def test_an_unknown_operation_is_refused():
    with pytest.raises(ValueError, match=r"operation is 'softmax'; it must be one of three_way_attention, cached"):
        unsupported_reason("softmax", "xla")


def test_auto_takes_for_each_platform_the_first_backend_that_serves_it():
    gpu, slower = backend("triton_gpu", ("cuda",)), backend("slower", ("cuda", "tpu"))
    assert chosen((TPU, XLA)) == Route(XLA, (("tpu", TPU),))
    route = chosen((TPU, gpu, slower, XLA))
    assert [route.on(platform) for platform in ("tpu", "cuda", "cpu")] == [TPU, gpu, XLA]
    refusing = backend("triton_gpu", ("cuda",), refusal="too long")
    assert chosen((TPU, refusing, slower, XLA)).on("cuda") == slower
    assert chosen((refusing, XLA)) == Route(XLA)


def test_a_named_backend_runs_everywhere_or_says_why_not():
    assert chosen((TPU, XLA), "pallas_tpu") == Route(TPU)
    refusing = backend("pallas_tpu", ("tpu",), refusal="too long")
    with pytest.raises(UnsupportedImplementationError) as caught:
        chosen((refusing, backend("fast", ("cuda", "rocm")), XLA), "pallas_tpu")
    assert str(caught.value) == (
        'op: pallas_tpu cannot serve this call: too long. Ask for implementation="auto" to take what there is: '
        "fast (cuda, rocm), xla (any platform)"
    )


def test_a_platform_without_a_backend_is_an_error_with_the_reasons():
    with pytest.raises(UnsupportedImplementationError, match=r"no backend serves .* \(xla: float64\)"):
        chosen((TPU, backend("xla", (OTHERS,), refusal="float64")))


def test_the_interpreter_runs_what_has_one():
    assert chosen((XLA, TPU), interpret=True) == Route(TPU)
    with pytest.raises(UnsupportedImplementationError, match=r"interpret is for TPU kernels, .* 'xla'; .*: pallas_tpu"):
        chosen((TPU, XLA), "xla", interpret=True)
    with pytest.raises(UnsupportedImplementationError, match="interpreter: none"):
        chosen((XLA,), interpret=True)


def test_a_route_lowers_to_the_backend_of_the_platform():
    route = chosen((TPU, XLA))
    program = jax.jit(lambda x: route.forward(5.0, x))
    assert program(jnp.float32(1)) == 15
    (tpu,) = (program.trace(jnp.float32(1)).lower(lowering_platforms=(name,)).as_text() for name in ("tpu",))
    assert "2.000000e+00" in tpu
    assert "3.000000e+00" not in tpu


def recording(backends, traced):
    """A route of backends that note their names when they are traced."""

    def forward(name):
        return lambda settings, x: traced.append(name) or x

    return chosen([Backend(each.name, each.platforms, each.refuses, forward(each.name)) for each in backends])


def test_under_a_mesh_only_the_backend_of_its_devices_is_traced():
    traced = []
    route = recording((TPU, XLA), traced)
    program = jax.jit(lambda x: route.forward(1.0, x))
    program(jnp.float32(1))
    assert set(traced) == {"pallas_tpu", "xla"}
    traced.clear()
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))):
        program(jnp.float32(1))
    assert traced == ["xla"]


@pytest.mark.parametrize(
    ("platform", "names"), [("tpu", ["pallas_tpu"]), ("gpu", ["pallas_tpu", "triton_gpu", "xla"]), ("cpu", ["xla"])]
)
def test_a_mesh_of_gpus_may_be_of_several_kinds(platform, names, monkeypatch):
    mesh = types.SimpleNamespace(abstract_device=types.SimpleNamespace(platform=platform))
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: mesh)
    traced = []
    route = recording((TPU, backend("triton_gpu", ("cuda",)), XLA), traced)
    jax.eval_shape(lambda x: route.forward(1.0, x), jnp.float32(1))
    assert sorted(set(traced)) == names
