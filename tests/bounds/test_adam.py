"""Adam against torch's own."""

from __future__ import annotations

import torch

from bounds.adam import Adam


def test_steps_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, generator=generator, dtype=torch.float64), torch.randn(5, generator=generator, dtype=torch.float64)]
    ours, theirs = [t.clone() for t in start], [t.clone().requires_grad_() for t in start]
    adam = Adam(ours, [0.1, 0.02])
    reference = torch.optim.Adam([{"params": [theirs[0]], "lr": 0.1}, {"params": [theirs[1]], "lr": 0.02}], maximize=True)
    for _ in range(20):
        gradients = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in start]
        for variable, gradient in zip(theirs, gradients, strict=True):
            variable.grad = gradient
        reference.step()
        for group in reference.param_groups:
            group["lr"] *= 0.9
        adam.rise(gradients, 0.9)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other.detach(), rtol=1e-9, atol=1e-12)


def test_a_variable_without_gradient_stays() -> None:
    variable = torch.ones(2)
    Adam([variable], [0.1]).rise([None])
    assert torch.equal(variable, torch.ones(2))


def test_ascent_goes_uphill() -> None:
    variable = torch.zeros(1)
    adam = Adam([variable], [0.1])
    for _ in range(200):
        adam.rise([-2 * (variable - 1)], 0.98)
    assert abs(float(variable) - 1) < 0.05
