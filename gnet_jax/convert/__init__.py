"""Conversion of models from and to the file formats of other programs."""
