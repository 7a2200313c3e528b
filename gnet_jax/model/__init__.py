"""The network of the paper, its variants, and the layers and blocks that they consist of."""
