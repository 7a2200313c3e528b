"""What is done with a trained model: prediction, crops and ensembles, class activation maps."""
