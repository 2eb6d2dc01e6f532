"""Initial noise -> videos, by a grid of deterministic steps with a few stochastic ones whose density is known."""
