"""Device mesh, shardings, compilation of the steps, and the memory that a step needs."""

import contextlib
import ctypes
import functools
import math
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gnet_jax.config import Config, ConfigError
from gnet_jax.config.paths import cache_folder, plain_path
from gnet_jax.errors import first_line

AXIS = "data"
# XLA's option for the library YNNPACK on CPUs. XLA's own operations are faster for this network
# (benchmarks/peers.py --with-ynn).
YNN = "xla_cpu_experimental_ynn_fusion_type"
# XLA's option for the vector width on CPUs, in bits. The default is 256, because older processors
# with AVX-512 lower their clock for vectors of 512 bits.
VECTORS = "xla_cpu_prefer_vector_width"
FAST_AT_512_BITS = "avx512_bf16"  # the processors since 2020
CPU_INFO = Path("/proc/cpuinfo")
# The files with the memory limit of a container: cgroups version 2 and version 1.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
KEEP_FREED = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}  # allocate on the heap, never shrink it
DEFAULTS = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 128 * 1024}
# On a heap that never shrinks, a step may need twice its memory: if a small block is allocated
# where a large one was freed, the next large block extends the heap.
LARGEST_KEPT = 1 / 4  # of the machine's memory; a step that needs more keeps no freed memory
MALLOC_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with one axis over the devices (all by default), in the order of the hosts.
    A host's share of a batch is then contiguous. `jax.make_mesh` would order the devices by their
    position in the network, and rejects several slices, such as the nodes of a GPU cluster.
    """
    devices = jax.devices() if devices is None else devices
    by_host = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(by_host), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of the state and the metrics: every device has a full copy."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: the first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def xla_options(platform: str, *, training: bool = False) -> dict[str, Any]:
    """Returns XLA's compiler options for the network on a platform ("cpu", "gpu", "tpu").
    On CPUs the options turn YNNPACK off, and allow vectors of 512 bits if the processor is fast
    with them. Not for training, where they change the rounding and so the whole run, and save only
    3 % of the time. An option in XLA_FLAGS takes precedence.
    """
    if platform != "cpu":
        return {}
    wanted: dict[str, str | int] = {YNN: ""}
    if FAST_AT_512_BITS in cpu_features() and not training:
        wanted[VECTORS] = 512
    given = os.environ.get("XLA_FLAGS", "")
    return {
        name: value for name, value in wanted.items() if name not in given and _known(name, value)
    }


@functools.cache
def cpu_features() -> frozenset[str]:
    """Returns the instruction sets of this processor ("avx2"), or none if they are not known."""
    if not CPU_INFO.is_file():
        return frozenset()
    lines = (line.partition(":") for line in CPU_INFO.read_text().splitlines())
    flags = (value for name, _, value in lines if name.strip() in ("flags", "Features"))
    return frozenset(next(flags, "").split())


@functools.cache
def _known(option: str, value: str | int) -> bool:
    """Returns whether this jaxlib has a compiler option; if not, compiling with it fails."""
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda x: x, compiler_options={option: value}).lower(0).compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            return False
        raise
    return True


def check_batches(config: Config, mesh: Mesh) -> None:
    """Raise a ConfigError if a batch cannot be divided evenly.
    It is divided over devices (or virtual shards), then into accumulated parts and mixup pairs.
    """
    devices, shards, parts = mesh.size, config.virtual_shards, config.optim.accumulate
    into, unit = f"{devices} devices", devices
    if config.numerics == "canonical":
        if devices & (devices - 1):
            raise ConfigError(
                "numerics canonical requires a power-of-two number of devices, but there are "
                f"{devices}; make only {2 ** (devices.bit_length() - 1)} of them visible to JAX, "
                "or use --numerics fast"
            )
        if shards % (2 * devices):
            raise ConfigError(
                f"virtual_shards is {shards}, but on {devices} devices it must be a "
                f"multiple of {2 * devices}; use {2 * devices} or a larger power of two"
            )
        into, unit = f"{shards} virtual shards", shards
    group = config.model.batch_norm_group
    if group is not None:
        # With canonical numerics, batch norm sees one virtual shard at a time.
        together = config.batch_size // (parts * (shards if config.numerics == "canonical" else 1))
        if together % group:
            raise ConfigError(
                f"model.batch_norm_group is {group}; it must divide the {together} images that "
                "batch norm sees at once"
            )
    if parts > 1:
        into += f", each with {parts} accumulated parts"
    if config.augment.mixup:
        into, parts = f"{into}, in pairs for augment.mixup", math.lcm(2, parts)
    sizes = {"batch_size": (config.batch_size, unit * parts, into)}
    if config.eval_batch_size is not None:
        sizes["eval_batch_size"] = (config.eval_batch_size, devices, f"{devices} devices")
    for name, (size, unit, into) in sizes.items():
        low = size // unit * unit
        if size != low:
            near = f"{low} or {low + unit}" if low else f"{unit}"
            raise ConfigError(f"{name} {size} does not divide evenly over {into}; use {near}")


def compile_train_step(
    mesh: Mesh,
    step: Callable[..., Any],
    state: Any,
    *inputs: Any,
    manual: bool = False,
    compiler_options: dict[str, Any] | None = None,
) -> jax.stages.Compiled:
    """Compile `step(state, *inputs)` for the mesh, from arrays or shapes; donates the state.
    The inputs are split over the devices. The mesh can have devices that this machine lacks (see
    `gnet_jax.pods`). With `manual`, `step` takes one device's share of the inputs and averages over
    `AXIS` itself.
    """
    whole, shardings = replicated(mesh), (replicated(mesh), *[split(mesh)] * len(inputs))
    if manual:
        specs = {"in_specs": tuple(x.spec for x in shardings), "out_specs": whole.spec}
        # With check_vma, JAX would sum the averaged gradients over the N devices again.
        step = jax.shard_map(step, mesh=mesh, check_vma=False, **specs)
    if compiler_options is None:
        compiler_options = xla_options(mesh.devices.flat[0].platform, training=True)
    jitted = jax.jit(step, in_shardings=shardings, out_shardings=whole, donate_argnums=0)
    return jitted.lower(state, *inputs).compile(compiler_options)


def compile_eval_step(mesh: Mesh, step: Callable[..., Any], inputs: int = 1) -> Callable[..., Any]:
    """Jit `step(state, *args)` with args split over the devices; `inputs` is the number of args."""
    whole = replicated(mesh)
    options = xla_options(mesh.devices.flat[0].platform)
    shardings = (whole, *[split(mesh)] * inputs)
    return jax.jit(step, in_shardings=shardings, out_shardings=whole, compiler_options=options)


def put_state(state: Any, mesh: Mesh) -> Any:
    """Copy the state to every device; all hosts must pass the same state.
    This is not checked. `jax.device_put` would check it, which takes minutes.
    """
    return jax.tree.map(lambda leaf: put_local(leaf, replicated(mesh), np.shape(leaf)), state)


def put_batches(
    batches: Iterable[Mapping[str, Any]], mesh: Mesh, batch_size: int
) -> Generator[dict[str, jax.Array], None, None]:
    """Yield global batches on the devices; `batches` has this process's part of each.
    Without the global `batch_size`, JAX would accept a local batch of the wrong size.
    """
    parts = split(mesh)
    for batch in batches:
        yield {
            k: put_local(each, parts, (batch_size, *each.shape[1:])) for k, each in batch.items()
        }


def put_local(value: Any, sharding: NamedSharding, shape: tuple[int, ...]) -> jax.Array:
    """Returns a global array of `shape`; `value` is this process's part of it."""
    # With several processes, JAX's transfer guard takes this explicit transfer for an implicit one.
    with jax.transfer_guard("allow"):
        return jax.make_array_from_process_local_data(sharding, np.asarray(value), shape)


def use_compilation_cache() -> None:
    """Cache compiled programs in JAX_COMPILATION_CACHE_DIR, or in this package's cache folder.
    The variable may name a bucket (gs://BUCKET/FOLDER, extra [gcs]). An empty one turns the cache
    off.
    """
    folder: str | None = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if folder is None:
        folder = str(cache_folder() / "xla")
    if not folder:
        return
    bucket = "://" in folder
    plain = folder if bucket else str(plain_path(Path(folder)))
    # XLA's own caches, which only GPUs have, would fail in a bucket, because XLA cannot open one.
    # They would also add the path of a link to the key of every program.
    if bucket or plain != folder:
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", plain)


def machine_memory() -> int:
    """Returns the machine's memory in bytes, or the memory limit of its container if lower."""
    limits = [file.read_text().strip() for file in LIMITS if file.is_file()]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *(int(limit) for limit in limits if limit.isdigit())])


def step_memory(step: jax.stages.Compiled) -> int | None:
    """Returns the bytes that a call of `step` needs per device; None if XLA does not report it."""
    plan: Any = step.memory_analysis()
    if plan is None:
        return None
    operands = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return operands + plan.temp_size_in_bytes


@contextlib.contextmanager
def memory_errors(batch_size: int) -> Iterator[None]:
    """Raise a ConfigError if the body compiles a step that does not fit. Only TPUs find it then."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(
            f"a step of batch_size {batch_size} does not fit into the memory of a device; use a "
            f"smaller batch_size or --optim.accumulate ({first_line(error)})"
        ) from error


def check_memory(needed: int | None, batch_size: int, mesh: Mesh) -> None:
    """Raise a ConfigError if the step needs more memory than the device has (see `step_memory`).
    On a CPU the kernel would kill the process without a message.
    """
    device = mesh.local_devices[0]  # JAX cannot query the memory of another host's device
    available = (device.memory_stats() or {}).get("bytes_limit")
    if device.platform == "cpu":  # virtual devices share the machine's memory
        available = machine_memory() // len(mesh.local_devices)
    if needed is not None and available is not None and needed > available:
        raise ConfigError(
            f"a step of batch_size {batch_size} needs {needed / 2**30:.1f} GiB on each device, "
            f"which has {available / 2**30:.1f}; use a smaller batch_size or --optim.accumulate"
        )


def call_in_this_thread() -> None:
    """Make JAX run CPU programs in the calling thread; call this before JAX runs a program.
    The reason is that glibc keeps freed memory for the main thread only. With several processes,
    this does nothing: their programs wait for each other, so they need JAX's own thread.
    """
    if not jax.distributed.is_initialized():
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def calls_wait(mesh: Mesh) -> bool:
    """Returns whether a call of a program returns when the program has ended, not before."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return on_cpu and not jax.config.read("jax_cpu_enable_async_dispatch")


def keep_freed_memory(needed: int | None = None) -> bool:
    """On CPUs, make glibc's malloc keep freed memory for reuse; returns whether it will.
    Restores the defaults if `needed`, from `step_memory`, is a large part of the machine's memory.
    Does nothing with several processes, or if the environment sets malloc's options.
    """
    tuned = any(name in os.environ for name in MALLOC_VARIABLES)
    unfit = jax.default_backend() != "cpu" or jax.distributed.is_initialized()
    if tuned or unfit or sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    keeps = needed is None or needed <= LARGEST_KEPT * machine_memory()
    accepted = [libc.mallopt(*option) for option in (KEEP_FREED if keeps else DEFAULTS).items()]
    if not keeps:
        libc.malloc_trim(0)
    return keeps and all(accepted)
