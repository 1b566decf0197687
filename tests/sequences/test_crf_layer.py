"""The trainable layer, and the constraints of tagging schemes against a reading of each scheme by a regular expression."""

import itertools
import re

import pycrfsuite
import pytest
import torch
from kexue.sequences.crf import LinearChainCRF, log_partition, marginals, path_score, tag_constraints, viterbi

INF = float("inf")
GRAMMAR = {"SBME": "(S|BM*E)*", "BIO": "(O|B-a(I-a)*|B-b(I-b)*)*", "BIOES": "(O|S-a|B-a(I-a)*E-a|S-b|B-b(I-b)*E-b)*"}


@pytest.mark.parametrize("scheme", GRAMMAR)
def test_constraints_accept_exactly_the_codes_of_the_scheme(scheme):
    rules = tag_constraints(scheme, [] if scheme == "SBME" else ["a", "b"])
    for n in (1, 2, 3):
        for y in itertools.product(range(len(rules.names)), repeat=n):
            allowed = rules.start[y[0]] and rules.end[y[-1]] and all(rules.transitions[a, b] for a, b in itertools.pairwise(y))
            assert bool(allowed) == bool(re.fullmatch(GRAMMAR[scheme], "".join(rules.names[k] for k in y))), y


def test_names_are_in_the_stated_order():
    assert tag_constraints("SBME").names == ("S", "B", "M", "E")
    assert tag_constraints("BIO", ["x", "y"]).names == ("O", "B-x", "I-x", "B-y", "I-y")
    assert tag_constraints("BIOES", ["x"]).names == ("O", "B-x", "I-x", "E-x", "S-x")


def test_scores_of_constraints_are_zero_or_minus_infinity():
    rules = tag_constraints("SBME")
    for allowed, score in zip(rules[1:], rules.scores(), strict=True):
        assert torch.equal(score == 0, allowed) and torch.equal(score == -INF, ~allowed)


def test_the_layer_is_the_functions_with_its_parameters():
    crf = LinearChainCRF(4)
    f, tags = torch.randn(3, 6, 4), torch.randint(4, (3, 6))
    mask = torch.arange(6) < torch.tensor([[2], [6], [1]])
    scores = {"transitions": crf.transition, "start": crf.start, "end": crf.end, "mask": mask}
    expected = path_score(f, tags=tags, **scores) - log_partition(f, **scores)
    torch.testing.assert_close(crf(f, tags, mask), expected)
    assert (crf(f, tags, mask) < 0).all()
    best = viterbi(f, **scores).tags[:, 0]
    assert crf.decode(f, mask) == [row[m].tolist() for row, m in zip(best, mask, strict=True)]
    assert crf.decode(f) == viterbi(f, **(scores | {"mask": None})).tags[:, 0].tolist()
    for a, b in zip(crf.marginals(f, mask), marginals(f, **scores), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(crf.viterbi(f, mask, n_best=3), viterbi(f, **scores, n_best=3), strict=True):
        assert torch.equal(a, b)
    assert repr(crf) == "LinearChainCRF(num_tags=4)"


def test_constraints_hold_and_their_gradient_is_zero():
    rules = tag_constraints("SBME")
    crf = LinearChainCRF(4, rules)
    f = torch.randn(5, 9, 4)
    for path in crf.decode(f):
        assert re.fullmatch(GRAMMAR["SBME"], "".join(rules.names[k] for k in path))
    (-crf(f, torch.tensor([[1, 2, 3, 0, 0, 1, 3, 1, 3]] * 5)).mean()).backward()
    for parameter, allowed in ((crf.transition, rules.transitions), (crf.start, rules.start), (crf.end, rules.end)):
        assert (parameter.grad[~allowed] == 0).all() and (parameter.grad[allowed] != 0).any()
    with pytest.raises(ValueError, match="tags must be a possible path, but that of sequence 0"):
        crf(f, torch.zeros(5, 9, dtype=torch.int64) + 1)


def test_a_matrix_alone_may_constrain_and_state_is_saved():
    allowed = ~torch.eye(3, dtype=torch.bool)
    crf = LinearChainCRF(3, allowed)
    path = torch.tensor(crf.decode(torch.zeros(1, 20, 3)))
    assert (path[:, 1:] != path[:, :-1]).all()
    other = LinearChainCRF(3, allowed)
    other.load_state_dict(crf.state_dict())
    f = torch.randn(2, 5, 3)
    assert other.decode(f) == crf.decode(f) and crf.double().decode(f.double()) == other.decode(f)


def test_training_recovers_a_transition_matrix():
    """Alternating tags without any help from the emissions."""
    torch.manual_seed(0)
    crf = LinearChainCRF(2)
    tags = (torch.arange(12) % 2).expand(4, 12)
    optimizer = torch.optim.Adam(crf.parameters(), lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        (-crf(torch.zeros(4, 12, 2), tags).mean()).backward()
        optimizer.step()
    assert crf.decode(torch.zeros(1, 12, 2)) == tags[:1].tolist()


def test_regularized_optimum_and_probabilities_are_those_of_crfsuite(tmp_path):
    """Both minimize the negative log-likelihood plus c times the squared weights: a strictly convex problem with one solution."""
    generator = torch.Generator().manual_seed(4)
    penalty, sequences = 0.3, []
    for length in torch.randint(1, 9, (40,), generator=generator).tolist():
        symbols = torch.randint(5, (length,), generator=generator)
        noise = torch.randint(3, (length,), generator=generator)
        sequences.append((symbols, torch.where(torch.rand(length, generator=generator) < 0.7, symbols % 3, noise)))
    trainer = pycrfsuite.Trainer(algorithm="lbfgs", verbose=False)
    every = {"feature.possible_states": True, "feature.possible_transitions": True}
    trainer.set_params({"c1": 0.0, "c2": penalty, "epsilon": 1e-9, "delta": 1e-12, "max_iterations": 1000} | every)
    for symbols, tags in sequences:
        trainer.append([[f"s{i}"] for i in symbols.tolist()], [str(t) for t in tags.tolist()])
    trainer.train(str(tmp_path / "model"))
    peer = pycrfsuite.Tagger()
    peer.open(str(tmp_path / "model"))

    weight, crf = torch.zeros(5, 3, dtype=torch.float64).requires_grad_(), LinearChainCRF(3).double()
    weights = [weight, crf.transition]
    crf.start.data.zero_(), crf.end.data.zero_()  # the peer has no scores for the ends
    optimizer = torch.optim.LBFGS(weights, max_iter=500, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = sum(-crf(weight[symbols][None], tags[None])[0] for symbols, tags in sequences)
        loss = loss + penalty * sum(w.square().sum() for w in weights)
        loss.backward()
        return loss

    optimizer.step(closure)
    learned = peer.info()
    for i in range(3):
        for j in range(3):
            assert learned.transitions[str(i), str(j)] == pytest.approx(crf.transition[i, j].item(), abs=1e-4)
    for symbol in range(5):
        for tag in range(3):
            assert learned.state_features[f"s{symbol}", str(tag)] == pytest.approx(weight[symbol, tag].item(), abs=1e-4)
    for symbols, tags in sequences[:10]:
        peer.set([[f"s{i}"] for i in symbols.tolist()])
        f = weight.detach()[symbols][None]
        assert peer.probability([str(t) for t in tags.tolist()]) == pytest.approx(crf(f, tags[None]).exp().item(), rel=1e-4)
        assert peer.marginal("1", len(tags) - 1) == pytest.approx(crf.marginals(f).node[0, -1, 1].item(), rel=1e-4)
        assert [int(t) for t in peer.tag()] == crf.decode(f)[0]  # last: the search changes what the peer's marginals are taken from


def test_first_scores_are_small_and_drawn_anew():
    torch.manual_seed(0)
    crf = LinearChainCRF(30)
    before = crf.transition.clone()
    assert before.abs().max() <= 0.1 and before.std() > 0.05
    crf.reset_parameters()
    assert not torch.equal(before, crf.transition)


def test_refusals():
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    cases = [
        (lambda: LinearChainCRF(0), "num_tags must be at least 1, got 0"),
        (lambda: LinearChainCRF(5, tag_constraints("SBME")), r"constraints must be for the 5 tags, got shape \(4, 4\)"),
        (lambda: tag_constraints("SBME", ["a"]), "types must be empty for SBME"),
        (lambda: tag_constraints("BIO"), "types must be distinct and at least one for BIO"),
        (lambda: tag_constraints("BIO", ["a", "a"]), "distinct"),
        (
            lambda: LinearChainCRF(2, nothing).decode(torch.zeros(1, 3, 2)),
            "every path of sequence 0 is forbidden",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_an_unknown_scheme_is_refused():
    function = getattr(tag_constraints, "__wrapped__", tag_constraints)
    with pytest.raises((ValueError, TypeError), match="scheme"):
        function("IOB")
