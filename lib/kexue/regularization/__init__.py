"""Smoothness and regularization: penalties on gradients, and what they do to the function that is learned."""
