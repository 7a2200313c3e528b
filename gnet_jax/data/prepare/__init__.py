"""Write data sets in the layout of tensorflow-datasets."""
