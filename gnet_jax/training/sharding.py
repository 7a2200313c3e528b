"""The only module that names devices: one mesh axis, the batch split over it, the state on all."""

import functools
import math
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gnet_jax.config import ConfigError
from gnet_jax.config.paths import cache_folder, plain_path

AXIS = "data"
# jaxlib gives convolutions and products on CPUs to the library YNNPACK where this lists their
# kinds; XLA's own are faster for this network (benchmarks/peers.py --with-ynn).
YNN = "xla_cpu_experimental_ynn_fusion_type"


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis over the given devices, or over all of the job's, host by host.

    `jax.make_mesh` would order them by their place in the network, and refuse devices of several
    slices, which the nodes of a GPU cluster are. But a host's share of a batch is one stretch of
    it, and an image's keys follow its place in the batch: so the devices follow the hosts.
    """
    devices = jax.devices() if devices is None else devices
    by_host = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(by_host), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value that every device holds whole: the state, the metrics."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis divided over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def platform_of(mesh: Mesh) -> str:
    """What the mesh's devices are: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def xla_options(platform: str) -> dict[str, Any]:
    """The options that XLA compiles the network with on a platform ("cpu", "gpu", "tpu").

    On CPUs YNNPACK is left out, where this jaxlib has it and XLA_FLAGS does not speak of it.
    """
    if platform == "cpu" and YNN not in os.environ.get("XLA_FLAGS", "") and _knows_ynn():
        return {YNN: ""}
    return {}


@functools.cache
def _knows_ynn() -> bool:
    """Whether this jaxlib has the option; older ones refuse it, and some later one may again."""
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda x: x, compiler_options={YNN: ""}).lower(0).compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            return False
        raise
    return True


def check_batch_size(name: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Refuse a global batch that does not divide over the mesh, or not into `parts` on each device.

    Raises:
        ConfigError: naming both numbers and the nearest batches that work.
    """
    unit = mesh.size * parts
    if batch_size % unit:
        into = f"{mesh.size} devices" + (f" x {parts} accumulated parts" if parts > 1 else "")
        near = _nearest(batch_size, unit)
        raise ConfigError(f"{name} {batch_size} does not divide over {into}; use {near}")


def check_pairs(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Refuse to mix images where a device holds an odd number of them: pairs would be torn apart.

    Raises:
        ConfigError: naming both numbers and the nearest batches that work.
    """
    share = batch_size // mesh.size
    if share % 2:
        near = _nearest(batch_size, mesh.size * math.lcm(2, parts))
        raise ConfigError(
            f"augment.mixup mixes pairs of images, but batch_size {batch_size} gives each of "
            f"{mesh.size} devices {share}; use {near}"
        )


def _nearest(batch_size: int, unit: int) -> str:
    """The multiples of `unit` around `batch_size`, in words."""
    below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
    return f"{below} or {above}" if below else f"{above}"


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
        state: concrete or abstract (`jax.ShapeDtypeStruct`); every device holds all of it.
        inputs: the batch, and whatever else is split over the devices; shapes are global.
        manual: `step` takes one device's share of the inputs, and averages over `AXIS` itself.
        compiler_options: of XLA; None takes `xla_options` of the mesh's platform.
    """
    whole, parts = replicated(mesh), split(mesh)
    if manual:
        # check_vma would take the averaged gradients for sums, and make them N times too large.
        step = jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(whole.spec, *(parts.spec for _ in inputs)),
            out_specs=whole.spec,
            check_vma=False,
        )
    jitted = jax.jit(
        step,
        in_shardings=(whole, *(parts for _ in inputs)),
        out_shardings=whole,
        donate_argnums=0,
    )
    if compiler_options is None:
        compiler_options = xla_options(platform_of(mesh))
    return jitted.lower(state, *inputs).compile(compiler_options)


def compile_eval_step(mesh: Mesh, step: Callable[..., Any], inputs: int = 1) -> Callable[..., Any]:
    """Jit `step(state, *inputs)` for the mesh; it compiles at its first call.

    Args:
        mesh: the devices.
        step: the pure step, on global arrays.
        inputs: number of arguments after the state, each split over the devices.
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

    Random draws are keyed by the place of an image in the global batch.
    """

    def of_share(images_BHWC: jax.Array, label_B: jax.Array, key: jax.Array) -> Any:
        offset = jax.lax.axis_index(axis_name) * label_B.shape[0]
        return augment(images_BHWC, label_B, key, offset=offset)

    return of_share


def put_state(state: Any, mesh: Mesh) -> Any:
    """The state on every device of the mesh. Every host must have the same one: none is asked."""
    whole = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(state, whole)

    # device_put would compare every leaf over the hosts, one after another: minutes.
    def put(leaf: Any) -> jax.Array:
        value = np.asarray(leaf)
        return jax.make_array_from_process_local_data(whole, value, value.shape)

    return jax.tree.map(put, state)


def put_batches(
    batches: Iterable[Mapping[str, Any]], mesh: Mesh, batch_size: int
) -> Generator[dict[str, jax.Array], None, None]:
    """Global device batches from this process's slices of them.

    `batch_size` is the global one: it is passed on so that a wrong local batch is an error and not
    silently another global size.
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
    """Keep compiled programs between runs, unless JAX was already told where (or not) to keep them.

    The folder is JAX_COMPILATION_CACHE_DIR, or xla/ in this package's cache folder.
    """
    folder: str | None = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if folder is None:
        folder = str(cache_folder() / "xla")
    if not folder or "://" in folder:
        return
    plain = str(plain_path(Path(folder)))
    if plain != folder:  # XLA's own caches make the path a part of every program's key
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", plain)
