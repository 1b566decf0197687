"""Sequences: lattices and their sums, taggers, and words found without a teacher."""
