"""In processes of their own: what was imported or compiled before would count for nothing."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def answer_of(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_what_training_imports_is_light():
    """JAX and Flax alone take half of it, 0.7 s; a TensorFlow would be ten times that.

    Half as much again as that is allowed, for what else the machine may do.
    """
    code = """
import sys, time
import flax.linen
alone = time.process_time()
sys.modules["torch"] = None  # tensorboardX takes it along where it is installed; ours does not
import train
from gnet_jax.training import loop, program
from gnet_jax.convert import start
heavy = {"tensorflow", "cv2", "sklearn", "matplotlib", "tensorflow_datasets"}
print(time.process_time() / alone, *heavy & set(sys.modules))
"""
    ratio, *heavy = answer_of(code)
    assert heavy == []
    assert float(ratio) < 3


def test_initialising_the_full_network_compiles_next_to_nothing():
    """160 programs would take as long as all else; those of JAX's keys are left."""
    code = """
import jax
from gnet_jax.model.googlenet import googlenet, init
events = []
jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))
jax.block_until_ready(init(googlenet("paper", 1000), jax.random.PRNGKey(0), 224))
print(sum("backend_compile" in name for name in events))
"""
    (programs,) = answer_of(code)
    assert 0 < int(programs) < 25
