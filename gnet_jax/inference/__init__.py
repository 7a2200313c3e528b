"""Uses of a trained model: prediction, crops and ensembles, class activation maps."""
