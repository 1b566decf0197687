"""The library behind the book *Scientific Spaces, executed*.

Rooms follow the parts of the book: ``kexue.geometry``, ``kexue.regularization``, ``kexue.generative`` and so on. Three modules are
shared ground: ``kexue.numerics`` (log-space and linear-algebra primitives), ``kexue.observe`` (read intermediate values of a model)
and ``kexue.data`` (real data sets that ship inside packages). ``kexue.book`` is what the notebooks and CI share.
"""

__version__ = "0.1.0"
