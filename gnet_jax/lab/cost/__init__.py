"""The parameters and multiply-adds of networks."""
