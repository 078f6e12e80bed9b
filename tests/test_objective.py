"""The objective of one pass equals its definition: values, gradients in float64, rounding no worse in short types."""

import pytest
import torch
from torch.autograd.functional import hessian

from fastmem.learn import objective
from fastmem.learn.objective import losses_and_gradient, plain

N, V = 13, 97
TARGETS = torch.arange(N) * 7 % V


def logits(dtype=torch.float64, scale=3.0, shift=0.3):
    """(now, untouched), which differ a little."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(N, V, generator=generator, dtype=torch.float64) * scale
    now = base + shift * torch.randn(N, V, generator=generator, dtype=torch.float64)
    return now.to(dtype), base.to(dtype)


def by_autograd(now, base, kl_weight):
    """(cross entropy, KL, gradient) of the definition, summed over the positions, in the type of `now`."""
    now = now.clone().requires_grad_()
    loss, cross_entropy, kl = plain(now, base, TARGETS, kl_weight)
    (gradient,) = torch.autograd.grad(loss * N, now)
    return cross_entropy.detach() * N, kl.detach() * N, gradient


@pytest.fixture(params=[1, 4 * V, 10**6], ids=["row by row", "four rows", "all at once"])
def block(request, monkeypatch):
    """Blocks of one, four and all rows."""
    monkeypatch.setitem(objective.BLOCK_NUMBERS, "cpu", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("kl_weight", [0.0, 0.1, 1.0, 30.0])
def test_equals_the_definition_in_float64(kl_weight):
    now, base = logits()
    cross_entropy, kl, gradient = losses_and_gradient(now, base, TARGETS, kl_weight)
    expected = by_autograd(now, base, kl_weight)
    for found, wanted in zip((cross_entropy.sum(), kl.sum(), gradient), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert gradient.dtype == torch.float64


def test_the_definition_is_the_loss_of_the_paper():
    """Written out once more, token by token."""
    now, base = logits()
    q, p = now.softmax(-1), base.softmax(-1)
    loss, cross_entropy, kl = plain(now, base, TARGETS, 0.3)
    wanted = sum(-q[i, TARGETS[i]].log() for i in range(N)) / N
    apart = sum((p[i, v] * (p[i, v] / q[i, v]).log()) for i in range(N) for v in range(V)) / N
    torch.testing.assert_close(cross_entropy, wanted)
    torch.testing.assert_close(kl, apart)
    torch.testing.assert_close(loss, wanted + 0.3 * apart)


def test_the_definition_is_convex_in_the_logits():
    """A sign turned round in the KL, or its two sides exchanged, would not be."""
    now, base = (t[:2, :9] for t in logits())
    matrix = hessian(lambda z: plain(z, base, torch.tensor([1, 4]), 1.0)[0], now).reshape(18, 18)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_no_worse_than_that_of_the_plain_way(dtype):
    """Truth: float64 from the same rounded logits. Bound: the definition's own error, run in float32, then rounded."""
    now, base = logits(dtype)
    true = by_autograd(now.double(), base.double(), 0.3)
    rough = by_autograd(now.float(), base.float(), 0.3)
    cross_entropy, kl, gradient = losses_and_gradient(now, base, TARGETS, 0.3)
    assert gradient.dtype == dtype
    assert cross_entropy.dtype == kl.dtype == torch.float32
    for found, plainly, truth in zip((cross_entropy.sum(), kl.sum()), rough, true, strict=False):
        assert (found - truth).abs() <= (plainly - truth).abs() + 4e-6 * truth.abs()
    ours, plains = ((g.double() - true[2]).abs().max() for g in (gradient, rough[2].to(dtype)))
    assert ours <= plains + 1e-6


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_may_take_the_place_of_the_logits(dtype):
    now, base = logits(dtype)
    kept = base.clone()
    expected = losses_and_gradient(now, base, TARGETS, 0.3)
    cross_entropy, kl, gradient = losses_and_gradient(now, base, TARGETS, 0.3, out=now)
    assert gradient is now
    assert torch.equal(base, kept)
    for found, wanted in zip((cross_entropy, kl, gradient), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_kl_is_zero_where_nothing_has_changed(dtype):
    now, _ = logits(dtype, scale=20)
    assert not losses_and_gradient(now, now, TARGETS, 0.3)[1].any()


def test_extreme_logits_stay_finite():
    now = torch.tensor([[80.0, -90.0, 0.0], [-1e4, 1e4, 0.0]])
    base = torch.tensor([[-90.0, 80.0, 0.0], [0.0, 0.0, 0.0]])
    cross_entropy, kl, gradient = losses_and_gradient(now, base, torch.tensor([1, 1]), 0.3)
    assert cross_entropy.tolist() == pytest.approx([170.0, 0.0])
    assert kl[0].item() == pytest.approx(170.0)
    assert gradient.isfinite().all()


def test_equals_ligers_fused_loss_where_it_is_installed():
    chunked = pytest.importorskip("liger_kernel.chunked_loss", reason="liger_kernel is not installed")
    generator = torch.Generator().manual_seed(0)
    states, base_states = (torch.randn(N, 16, generator=generator, requires_grad=not i) for i in range(2))
    head = torch.randn(V, 16, generator=generator)
    fused = chunked.LigerFusedLinearJSDLoss(weight_hard_loss=0.5, weight_soft_loss=0.5, beta=0.0, compiled=False)
    loss = fused(states, head, base_states, head, TARGETS)
    (wanted,) = torch.autograd.grad(loss, states)
    _, _, gradient = losses_and_gradient(states.detach() @ head.T, base_states @ head.T, TARGETS, 1.0)
    torch.testing.assert_close(gradient @ head / N / 2, wanted, rtol=1e-4, atol=1e-5)
