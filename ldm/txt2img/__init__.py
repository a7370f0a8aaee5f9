"""A run of txt2img: what is asked for, the pictures that come of it, and the processes that share them."""
