"""How the network's operations are computed: a reference form of each, and a fast one."""
