"""Generative models: divergences between distributions known through samples, and the games that minimize them."""
