"""Host arrays on the devices of a mesh, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pit.config import MeshConfig
from pit.model.global_arrays import put, whole
from pit.model.sharding import make_mesh


@pytest.mark.parametrize("spec", [P(), P(("data", "fsdp")), P(None, "fsdp")])
def test_each_device_holds_its_part_and_the_whole_comes_back(spec):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2))
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    array = put(values, NamedSharding(mesh, spec))
    assert array.sharding.spec == spec
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), values[shard.index])
    np.testing.assert_array_equal(whole(array), values)


def test_a_tree_comes_back_with_its_scalars_and_host_values():
    tree = {"a": jnp.float32(2.0), "b": [np.arange(3), None], "c": 7}
    result = whole(tree)
    assert result["a"] == 2.0
    assert isinstance(result["a"], np.ndarray | np.generic)
    assert result["b"][0].tolist() == [0, 1, 2]
    assert (result["b"][1], result["c"]) == (None, 7)


def test_of_one_process_no_array_has_parts_elsewhere():
    mesh = make_mesh(MeshConfig(data=2))
    array = put(np.zeros(2, np.int32), NamedSharding(mesh, P("data")))
    assert array.is_fully_addressable
    assert jax.process_count() == 1
