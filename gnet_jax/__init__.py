"""GoogLeNet (Inception v1) in JAX and Flax Linen, from one laptop to a TPU pod."""

__version__ = "0.1.0"
