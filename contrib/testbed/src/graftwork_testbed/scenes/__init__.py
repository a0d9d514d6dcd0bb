"""Scenes of handwritten digits: what is in them, how they are drawn, what is said of them."""
