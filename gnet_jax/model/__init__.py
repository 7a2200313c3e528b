"""What the paper describes: the network, its variants and its parts."""
