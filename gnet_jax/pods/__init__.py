"""What a run takes on a machine that is not there: its step, compiled for a pod or a GPU server."""
