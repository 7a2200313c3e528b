"""What the network costs, and what its parts are worth."""
