import pytest

from gnet_jax.config.command import Launch
from gnet_jax.training.hosts import start as cluster

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        (SLURM, "Slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),  # a job of one task is no job of several
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, None),  # a shell of sbatch, outside of srun
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "GKE with TPUs"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "GKE with TPUs"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),  # Colab
        ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_a_job_of_several_processes_is_told_by_its_environment(environment, found, monkeypatch):
    for name in ("JAX_PLATFORMS", "JAX_COORDINATOR_ADDRESS", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cluster.cluster() == found
    assert cluster.should_join(Launch()) == (found is not None)
    assert not cluster.should_join(Launch(distributed="off"))
    assert cluster.should_join(Launch(distributed="on"))


def test_a_tpu_vm_has_chips_and_a_library_for_them_and_may_ask_for_its_neighbours(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setattr(cluster.glob, "glob", lambda pattern: ["/dev/accel0"])
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: object())
    assert cluster.cluster() == "TPU VM"
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    assert cluster.cluster() is None


@pytest.mark.parametrize(
    "launch", [{"coordinator": "a:1"}, {"num_processes": 2}, {"process_id": 0}]
)
def test_any_option_of_the_coordinator_makes_a_process_join(launch):
    assert cluster.should_join(Launch(**launch))
