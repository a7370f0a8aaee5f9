"""A search for FreeU's factors on one model, by Optuna."""
