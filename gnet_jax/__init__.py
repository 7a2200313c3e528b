"""GoogLeNet (Inception v1) in JAX and Flax Linen, from one laptop to a TPU pod."""
