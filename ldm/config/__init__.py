"""What a config may hold, and whose code it may run."""
