"""The captioned scenes that the embedded model is trained on."""
