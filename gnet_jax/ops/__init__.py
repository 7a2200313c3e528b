"""The operations of the network, each in a reference and a fast implementation."""
