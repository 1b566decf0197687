"""Numerical ground floor: functions that several parts need and that go wrong quietly when written in one line.

:mod:`~kexue.numerics.linear` has spectral norms, :mod:`~kexue.numerics.hessian` curvature, :mod:`~kexue.numerics.special` beta and
polygamma functions; what is public there can be imported from here. :mod:`~kexue.numerics.semiring` multiplies matrices in log space.
"""

from kexue.numerics.hessian import Eigen, hessian_operator, top_eigenvalue
from kexue.numerics.linear import Singular, power_iteration, safe_sqrt, spectral_norm
from kexue.numerics.special import log_beta, log_betainc, polygamma

__all__ = [
    "Eigen",
    "Singular",
    "hessian_operator",
    "log_beta",
    "log_betainc",
    "polygamma",
    "power_iteration",
    "safe_sqrt",
    "spectral_norm",
    "top_eigenvalue",
]
