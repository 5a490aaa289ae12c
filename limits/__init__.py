"""How many requests a node takes at once: measured here (sampling.py), decided purely (controller.py)."""
