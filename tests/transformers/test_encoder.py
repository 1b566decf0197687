"""Tests of kexue.transformers.encoder: the block against PyTorch's own, masks, initialization, the probe."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.geometry.residual import Signal
from kexue.observe import capture
from kexue.transformers.encoder import Block, Encoder, FeedForward, Probe, SelfAttention, initialize_, mean_cosine, probe
from torch import nn


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def random_(model, rng, std=0.3):
    """Random values everywhere, biases and gains included, so that nothing can hide behind a zero or a one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, std, generator=rng)
    return model


def peer(block, width, heads, **options):
    """PyTorch's layer with the weights of ours."""
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=block.norm == "pre", **options)
    attention, network = block.attention, block.feedforward
    stacked = [torch.cat([getattr(m, kind) for m in (attention.query, attention.key, attention.value)]) for kind in ("weight", "bias")]
    pairs = [(layer.self_attn.in_proj_weight, stacked[0]), (layer.self_attn.in_proj_bias, stacked[1])]
    modules = [(layer.self_attn.out_proj, attention.out), (layer.linear1, network.up), (layer.linear2, network.down)]
    modules += [(layer.norm1, block.norms[0]), (layer.norm2, block.norms[1])]
    with torch.no_grad():
        for theirs, ours in pairs + [(getattr(a, kind), getattr(b, kind)) for a, b in modules for kind in ("weight", "bias")]:
            theirs.copy_(ours)
    return layer


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("activation", "name"), [(nn.functional.gelu, "gelu"), (torch.relu, "relu")])
def test_block_matches_pytorch_forward_and_backward(norm, causal, activation, name, rng):
    block = random_(Block(12, 3, norm=norm, causal=causal, activation=activation), rng)
    layer = peer(block, 12, 3, activation=name)
    x = torch.randn(2, 5, 12, generator=rng, requires_grad=True)
    y = torch.randn(2, 5, 12, generator=rng)
    mask = nn.Transformer.generate_square_subsequent_mask(5) if causal else None
    ours, theirs = block(x), layer(x, src_mask=mask, is_causal=causal)
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad((z * y).sum(), x)[0] for z in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_mask_matches_pytorch(causal, rng):
    block = random_(Block(8, 2, causal=causal), rng)
    layer = peer(block, 8, 2, activation="gelu")
    x = torch.randn(2, 4, 8, generator=rng)
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    forbidden = torch.ones(4, 4, dtype=torch.bool).triu(1) if causal else None
    expected = layer(x, src_mask=forbidden, src_key_padding_mask=~mask)
    assert torch.allclose(block(x, mask)[mask], expected[mask], atol=1e-5, rtol=1e-5)
    assert torch.allclose(Encoder(0, 8, 2)(x, mask), x)


def test_masked_tokens_do_not_matter_and_an_empty_row_is_refused(rng):
    encoder = random_(Encoder(2, 8, 2, norm="pre"), rng)
    x = torch.randn(1, 5, 8, generator=rng)
    mask = torch.tensor([[True, True, True, False, False]])
    changed = x.clone()
    changed[:, 3:] = 7.0
    assert torch.allclose(encoder(x, mask)[:, :3], encoder(changed, mask)[:, :3], atol=1e-6)
    assert torch.allclose(encoder(x, mask)[:, :3], encoder(x[:, :3]), atol=1e-5)
    with pytest.raises(ValueError, match="mask must leave every token at least one token to attend to"):
        encoder(x, torch.zeros(1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask must leave every token"):
        SelfAttention(8, 2, causal=True)(x, torch.tensor([[False, True, True, True, True]]))


@pytest.mark.parametrize("norm", ["post", "pre", "none"])
def test_a_causal_encoder_does_not_see_the_future(norm, rng):
    encoder = random_(Encoder(2, 8, 4, norm=norm, causal=True), rng, 0.2)
    x = torch.randn(1, 6, 8, generator=rng, requires_grad=True)
    (gradient,) = torch.autograd.grad(encoder(x)[0, 2].sum() + encoder(x)[0, 2, 0] * 3, x)
    assert gradient[0, 3:].abs().max() == 0 and (gradient[0, :3].abs().amax(1) > 0).all()


def test_attention_of_one_head_written_out(rng):
    attention = random_(SelfAttention(6, 1), rng)
    x = torch.randn(1, 4, 6, generator=rng)
    q, k, v = attention.query(x)[0], attention.key(x)[0], attention.value(x)[0]
    expected = attention.out(torch.softmax(q @ k.T / math.sqrt(6), 1) @ v)
    assert torch.allclose(attention(x)[0], expected, atol=1e-6)


def test_tokens_have_no_order_without_a_mask(rng):
    encoder = random_(Encoder(2, 8, 2), rng)
    x = torch.randn(1, 5, 8, generator=rng)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.allclose(encoder(x[:, order]), encoder(x)[:, order], atol=1e-5)


def test_none_is_the_plain_sum_and_zero_branches_the_identity(rng):
    block = random_(Block(8, 2, norm="none"), rng)
    x = torch.randn(2, 3, 8, generator=rng)
    middle = x + block.attention(x)
    assert torch.allclose(block(x), middle + block.feedforward(middle), atol=1e-6)
    silent = initialize_(Encoder(3, 8, 2, norm="none"), nn.init.zeros_)
    assert torch.equal(silent(x), x)
    assert torch.equal(Encoder(0, 8, 2)(x), x)


def test_feedforward_ratio_and_activation(rng):
    network = random_(FeedForward(3, ratio=5, activation=torch.sin), rng)
    assert network.up.weight.shape == (15, 3)
    x = torch.randn(2, 2, 3, generator=rng)
    assert torch.allclose(network(x), torch.sin(x @ network.up.weight.T + network.up.bias) @ network.down.weight.T + network.down.bias)
    assert Encoder(1, 4, 2, ratio=2).blocks[0].feedforward.up.weight.shape == (8, 4)


def test_half_precision_normalizes_with_statistics_in_float32(rng):
    block = initialize_(Block(64, 4), lambda w: w.normal_(0, 0.02, generator=rng)).to(torch.bfloat16)
    x = 100 + torch.randn(1, 3, 64, generator=rng)  # in bfloat16, a running sum of 64 numbers near 100 would be off by 16
    y = block(x.to(torch.bfloat16)).float()
    assert torch.isfinite(y).all() and y.mean(-1).abs().max() < 0.01 and y.var(-1, unbiased=False).sub(1).abs().max() < 0.02


def test_refusals():
    for width, heads in ((6, 4), (0, 1), (4, 0)):
        with pytest.raises(ValueError, match=rf"heads must divide width, got width={width}, heads={heads}"):
            Block(width, heads)
    with pytest.raises(ValueError, match=r"norm must be one of \('post', 'pre', 'none'\), got 'sandwich'"):
        inspect.unwrap(Block.__init__)(nn.Module.__new__(Block), 8, 2, norm="sandwich")
    with pytest.raises(ValueError, match="depth must be at least 0, got -1"):
        Encoder(-1, 8, 2)
    with pytest.raises(ValueError, match=r"x must hold at least 2 tokens, got shape \(1, 4\)"):
        mean_cosine(torch.ones(1, 4))


def test_initialize_reaches_every_matrix_once(rng):
    model = nn.Sequential(nn.Embedding(5, 8), random_(Encoder(2, 8, 2, norm="pre"), rng), nn.LayerNorm(8, elementwise_affine=False))
    filled = []
    assert initialize_(model, lambda w: filled.append(w.fill_(0.5))) is model
    assert len(filled) == 1 + 2 * 6 and {id(w) for w in filled} == {id(p) for p in model.parameters() if p.ndim == 2}
    for name, parameter in model.named_parameters():
        expected = 0.5 if parameter.ndim == 2 else 0.0 if name.endswith("bias") else 1.0
        assert (parameter == expected).all(), name
        assert parameter.requires_grad and parameter.grad is None
    assert initialize_(nn.Linear(3, 3, bias=False), nn.init.ones_).weight.sum() == 9


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.integers(1, 5), st.integers(0, 10**6))
def test_mean_cosine_matches_all_pairs_and_ignores_lengths(tokens, width, seed):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(2, tokens, width, dtype=torch.float64, generator=rng)
    cosines = nn.functional.cosine_similarity(x[:, :, None], x[:, None], dim=-1)
    expected = (cosines.sum((1, 2)) - tokens) / (tokens * (tokens - 1))
    assert torch.allclose(mean_cosine(x), expected, atol=1e-12)
    assert torch.allclose(mean_cosine(x * torch.rand(2, tokens, 1, generator=rng).double().add(0.1)), expected, atol=1e-12)


def test_mean_cosine_at_the_extremes():
    assert mean_cosine(torch.ones(3, 4)).item() == pytest.approx(1)
    assert mean_cosine(torch.eye(3)).item() == 0
    assert mean_cosine(torch.tensor([[1.0, 0], [-1, 0]])).item() == -1
    assert mean_cosine(torch.tensor([[1.0, 0], [1, 0], [0, 0]])).item() == pytest.approx(2 / 6)  # the zero vector counts as orthogonal


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_probe_reads_what_a_hand_written_pass_sees(norm, rng):
    encoder = random_(Encoder(2, 8, 2, norm=norm), rng)
    x, cotangent = torch.randn(2, 4, 8, generator=rng), torch.randn(2, 4, 8, generator=rng)
    seen = probe(encoder, x, cotangent)
    z, stream, branches = x.clone().requires_grad_(), [], []
    stream.append(z)
    for block in encoder.blocks:
        for normalize, branch in zip(block.norms, (block.attention, block.feedforward), strict=True):
            added = branch(normalize(z)) if norm == "pre" else branch(z)
            z = z + added if norm == "pre" else normalize(z + added)
            branches.append(added)
            stream.append(z)
    gradients = torch.autograd.grad((encoder.final(z) * cotangent).sum(), stream)
    for values, expected in ((seen.branch, branches), (seen.stream, stream), (seen.gradient, gradients)):
        assert torch.allclose(values, torch.stack([e.square().mean() for e in expected]), rtol=1e-4)
    assert torch.allclose(seen.cosine, torch.stack([mean_cosine(s).mean() for s in stream]), atol=1e-5)
    assert torch.allclose(seen.gradient_cosine, torch.stack([mean_cosine(g).mean() for g in gradients]), atol=1e-5)
    overlap = torch.stack([nn.functional.cosine_similarity(s, x, dim=-1).mean() for s in stream])
    assert torch.allclose(seen.overlap, overlap, atol=1e-5) and seen.overlap[0].item() == pytest.approx(1)
    assert not any(value.requires_grad for value in seen)


def test_probe_gradient_matches_finite_differences(rng):
    encoder = random_(Encoder(1, 4, 2), rng).double()
    x, cotangent, direction = (torch.randn(1, 3, 4, dtype=torch.float64, generator=rng) for _ in range(3))
    with capture(None, "stream", detach=False) as seen:
        output = encoder(x.clone().requires_grad_())
    (gradient,) = torch.autograd.grad((output * cotangent).sum(), seen["stream"][0])
    step = 1e-6
    difference = ((encoder(x + step * direction) - encoder(x - step * direction)) * cotangent).sum() / (2 * step)
    assert difference.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-6)
    assert probe(encoder, x, cotangent).gradient[0].item() == pytest.approx(gradient.square().mean().item(), rel=1e-12)


def test_probe_leaves_no_trace(rng):
    encoder = random_(Encoder(1, 4, 2), rng)
    x = torch.randn(1, 3, 4, generator=rng)
    before = encoder(x)
    probe(encoder, x, torch.ones(1, 3, 4))
    assert torch.equal(encoder(x), before) and x.grad is None
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_only_a_pre_encoder_normalizes_once_more_at_the_end(rng):
    x = torch.randn(1, 4, 8, generator=rng)
    for norm in ("pre", "post", "none"):
        encoder = random_(Encoder(2, 8, 2, norm=norm), rng)
        with capture(None, "stream") as seen:
            output = encoder(x)
        last = seen["stream"][-1]
        expected = nn.functional.layer_norm(last, (8,), encoder.final.weight, encoder.final.bias) if norm == "pre" else last
        assert torch.allclose(output, expected, atol=1e-6)
        assert len(seen["stream"]) == 5 and torch.equal(seen["stream"][0], x)


def test_measurement_and_prediction_have_the_same_fields():
    assert Probe._fields == Signal._fields
