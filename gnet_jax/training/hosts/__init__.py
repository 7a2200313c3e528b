"""Several hosts: start, agree and stop together."""
