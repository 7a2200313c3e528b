"""The mesh: one axis, the batch split over it, the state on every device."""

import functools
import math
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gnet_jax.config import Config, ConfigError
from gnet_jax.config.paths import cache_folder, plain_path

AXIS = "data"
# Lists the operations that jaxlib gives to the library YNNPACK on CPUs. XLA's own are faster for
# this network (benchmarks/peers.py --with-ynn).
YNN = "xla_cpu_experimental_ynn_fusion_type"


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh of one axis over the devices (all by default), in the order of the hosts.

    A host's share of a batch is contiguous, and an image's random keys depend on its place in the
    batch. `jax.make_mesh` would order devices by their place in the network, and refuse those of
    several slices, such as the nodes of a GPU cluster.
    """
    devices = jax.devices() if devices is None else devices
    by_host = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(by_host), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a value that every device has in full: the state, the metrics."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def platform_of(mesh: Mesh) -> str:
    """Returns the platform of the mesh: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def xla_options(platform: str) -> dict[str, Any]:
    """Returns XLA's compiler options for the network on a platform ("cpu", "gpu", "tpu").

    They turn YNNPACK off on CPUs if this jaxlib has it and XLA_FLAGS does not mention it.
    """
    if platform == "cpu" and YNN not in os.environ.get("XLA_FLAGS", "") and _knows_ynn():
        return {YNN: ""}
    return {}


@functools.cache
def _knows_ynn() -> bool:
    """Returns whether this jaxlib has the option; others refuse to compile with it."""
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda x: x, compiler_options={YNN: ""}).lower(0).compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            return False
        raise
    return True


def check_batches(config: Config, mesh: Mesh) -> None:
    """Check that the batches divide over the devices, accumulated parts, pairs and virtual shards.

    Raises:
        ConfigError: naming the batch, what it must divide into and the nearest batches that do.
    """
    devices, shards, parts = mesh.size, config.virtual_shards, config.optim.accumulate
    into, unit = f"{devices} devices", devices
    if config.numerics == "canonical":
        if devices & (devices - 1):
            raise ConfigError(
                f"numerics canonical needs a power of two of devices, but there are {devices}; "
                f"show JAX {2 ** (devices.bit_length() - 1)} of them, or use --numerics fast"
            )
        if shards % (2 * devices):
            raise ConfigError(
                f"virtual_shards is {shards}, but {devices} devices need a multiple of "
                f"{2 * devices}; use {2 * devices} or a larger power of two"
            )
        into, unit = f"{shards} virtual shards", shards
    if parts > 1:
        into += f" x {parts} accumulated parts"
    if config.augment.mixup:
        into, parts = f"{into} x pairs for augment.mixup", math.lcm(2, parts)
    _check_divides("batch_size", config.batch_size, unit * parts, into)
    if config.eval_batch_size is not None:
        _check_divides("eval_batch_size", config.eval_batch_size, devices, f"{devices} devices")


def _check_divides(name: str, batch_size: int, unit: int, into: str) -> None:
    low = batch_size // unit * unit
    if batch_size != low:
        near = f"{low} or {low + unit}" if low else f"{unit}"
        raise ConfigError(f"{name} {batch_size} does not divide over {into}; use {near}")


def compile_train_step(
    mesh: Mesh,
    step: Callable[..., Any],
    state: Any,
    *inputs: Any,
    manual: bool = False,
    compiler_options: dict[str, Any] | None = None,
) -> jax.stages.Compiled:
    """Compile `step(state, *inputs)` for the mesh; the state passed in is donated.

    Args:
        mesh: the devices; they need not be attached (`gnet_jax.pods`).
        step: the pure step, on global arrays.
        state: concrete or abstract, as are `inputs`: the batch and others split over the devices.
        manual: `step` takes one device's share of the inputs and averages over `AXIS` itself.
        compiler_options: of XLA; by default `xla_options` of the mesh's platform.
    """
    whole, parts = replicated(mesh), split(mesh)
    if manual:
        # With check_vma, averaged gradients count as sums and become N times too large.
        step = jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(whole.spec, *(parts.spec for _ in inputs)),
            out_specs=whole.spec,
            check_vma=False,
        )
    jitted = jax.jit(
        step, in_shardings=(whole, *(parts for _ in inputs)), out_shardings=whole, donate_argnums=0
    )
    if compiler_options is None:
        compiler_options = xla_options(platform_of(mesh))
    return jitted.lower(state, *inputs).compile(compiler_options)


def compile_eval_step(mesh: Mesh, step: Callable[..., Any], inputs: int = 1) -> Callable[..., Any]:
    """Jit `step(state, *inputs)` for the mesh; it compiles at its first call.

    `inputs` is the number of arguments after the state, which are split over the devices.
    """
    whole = replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(whole, *[split(mesh)] * inputs),
        out_shardings=whole,
        compiler_options=xla_options(platform_of(mesh)),
    )


def augment_share(augment: Callable[..., Any], axis_name: str) -> Callable[..., Any]:
    """Returns `augment` for one device's share of the batch, under shard_map or pmap.

    The random keys of an image depend on its place in the global batch.
    """

    def share_augment(images_BHWC: jax.Array, label_B: jax.Array, key: jax.Array) -> Any:
        offset = jax.lax.axis_index(axis_name) * label_B.shape[0]
        return augment(images_BHWC, label_B, key, offset=offset)

    return share_augment


def put_state(state: Any, mesh: Mesh) -> Any:
    """Returns the state on every device. All hosts must pass the same one; this is not checked."""
    whole = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(state, whole)

    # device_put would compare every leaf over the hosts, which takes minutes.
    def put(leaf: Any) -> jax.Array:
        value = np.asarray(leaf)
        return jax.make_array_from_process_local_data(whole, value, value.shape)

    return jax.tree.map(put, state)


def put_batches(
    batches: Iterable[Mapping[str, Any]], mesh: Mesh, batch_size: int
) -> Generator[dict[str, jax.Array], None, None]:
    """Yields global device batches made of this process's slices.

    `batch_size` is the global one; without it, JAX would accept a local batch of the wrong size.
    """
    sharding = split(mesh)
    for batch in batches:
        yield {
            name: jax.make_array_from_process_local_data(
                sharding, value, (batch_size, *value.shape[1:])
            )
            for name, value in batch.items()
        }


def use_compilation_cache() -> None:
    """Cache compiled programs in JAX_COMPILATION_CACHE_DIR, or in this package's cache folder.

    An empty JAX_COMPILATION_CACHE_DIR turns the cache off.
    """
    folder: str | None = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if folder is None:
        folder = str(cache_folder() / "xla")
    if not folder or "://" in folder:
        return
    plain = str(plain_path(Path(folder)))
    if plain != folder:  # XLA's own caches make the path part of every program's key
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", plain)
