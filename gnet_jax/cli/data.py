"""Commands about data: check-data, show-data, prepare."""
