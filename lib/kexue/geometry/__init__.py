"""Geometry and initialization: angles on the sphere in many dimensions, and what they say about how networks are initialized."""
