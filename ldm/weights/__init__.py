"""Files of weights: fetched, read without running anything in them, and held against a model."""
