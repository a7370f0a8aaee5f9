"""Whether FreeU helps a model: settings compared on the same prompts and the same noise."""
