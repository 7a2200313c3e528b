"""File systems that are soon full."""

import subprocess

import pytest


@pytest.fixture
def new_disk(tmp_path):
    """`new_disk(size)` is a new file system of that size, in the words of mount ("1m")."""
    mounted = []

    def mount(size):
        disk = tmp_path / f"disk-{size}"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no right to mount a small file system")
        mounted.append(disk)
        return disk

    yield mount
    for disk in mounted:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
