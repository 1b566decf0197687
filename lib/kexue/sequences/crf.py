r"""Linear-chain conditional random fields: everything public of the three modules that they are made of.

:mod:`~kexue.sequences.crf_sums` has the log-partition function, losses, marginals and entropy, :mod:`~kexue.sequences.crf_decode` the
best paths and samples, :mod:`~kexue.sequences.crf_layer` the trainable layer and the constraints of tagging schemes.
"""

from kexue.sequences.crf_decode import Decoded, posterior_decode, sample, viterbi
from kexue.sequences.crf_layer import LinearChainCRF, TagConstraints, tag_constraints
from kexue.sequences.crf_sums import Marginals, entropy, log_partition, marginals, path_score, sequence_nll

__all__ = [
    "Decoded",
    "LinearChainCRF",
    "Marginals",
    "TagConstraints",
    "entropy",
    "log_partition",
    "marginals",
    "path_score",
    "posterior_decode",
    "sample",
    "sequence_nll",
    "tag_constraints",
    "viterbi",
]
