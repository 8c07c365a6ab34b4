"""Both methods move every parameter, and go on from their state as if nothing had happened."""

import pytest
import torch

from blsgan.models import build_generator
from blsgan.training.config import OptimiserConfig
from blsgan.training.optimisers import (
    Muon,
    Optimisers,
    optimiser_state,
    orthogonalised,
    restore_optimiser,
)

SMALL = {"widths": [8, 8, 8, 8], "blocks": [1, 1, 1, 1]}


def network():
    torch.manual_seed(3)
    return build_generator("lite", SMALL).to(memory_format=torch.channels_last)


def give_gradients(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_every_parameter_is_moved(method):
    module = network()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    give_gradients(module, 1)
    Optimisers(module, OptimiserConfig(method=method)).step(1.0)
    for old, (name, new) in zip(before, module.named_parameters(), strict=True):
        assert not torch.equal(old, new), name


def test_muon_moves_a_convolution_by_a_matrix_of_equal_singular_values():
    module = network()
    weight = module.encoder[0][0].first.weight
    old = weight.detach().clone()
    give_gradients(module, 1)
    config = OptimiserConfig(method="muon", muon_learning_rate=0.01, weight_decay=0.0)
    Optimisers(module, config).step(1.0)
    move = (weight.detach() - old).permute(0, 2, 3, 1).flatten(1)
    values = torch.linalg.svdvals(move)
    # The iteration brings them between about 0.7 and 1.2 of the mean; a gradient's spread is wider.
    assert float(values.max() / values.min()) < 2
    # 0.2 sqrt(max(out, h w in)) times an orthogonal matrix: entries of AdamW's usual size.
    assert float(move.square().mean().sqrt()) == pytest.approx(0.01 * 0.2, rel=0.3)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_muon_is_torchs(bfloat16):
    generator = torch.Generator().manual_seed(5)
    shapes = [(6, 40), (40, 6), (6, 40), (8, 8)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(m.clone()) for m in start] for _ in range(2))
    steps = (
        Muon([{"params": ours, "lr": 0.02}], weight_decay=0.1, bfloat16=bfloat16),
        torch.optim.Muon(
            theirs,
            lr=0.02,
            weight_decay=0.1,
            momentum=0.95,
            nesterov=True,
            adjust_lr_fn="match_rms_adamw",
        ),
    )
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimiser in steps:
            optimiser.step()
    for one, other, first in zip(ours, theirs, start, strict=True):
        moved = (other.detach() - first).abs().max()
        assert (one.detach() - other.detach()).abs().max() < 0.03 * moved  # bfloat16 is that coarse
    # Checkpoints of earlier versions hold torch's state.
    restore_optimiser(steps[0], optimiser_state(steps[1]))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            steps[0].state[one]["momentum_buffer"], steps[1].state[other]["momentum_buffer"]
        )


def test_matrices_are_orthogonalised_each_by_itself():
    scale = torch.tensor([1e-6, 1.0, 1e4])[:, None, None]
    several = scale * torch.randn(3, 12, 30, generator=torch.Generator().manual_seed(1))
    together = orthogonalised(several)
    for one, result in zip(several, together, strict=True):
        torch.testing.assert_close(orthogonalised(one[None])[0], result, rtol=1e-4, atol=1e-5)
        left, _, right = torch.linalg.svd(one, full_matrices=False)
        values = torch.diag(left.T @ result @ right.T)
        assert ((values > 0.6) & (values < 1.3)).all()
    assert (orthogonalised(torch.zeros(1, 3, 5)) == 0).all()


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_state_goes_on_bit_for_bit(method):
    config = OptimiserConfig(method=method)
    straight, stopped = network(), network()
    first, second = Optimisers(straight, config), Optimisers(stopped, config)
    for seed in (1, 2):
        for module, optimisers in ((straight, first), (stopped, second)):
            give_gradients(module, seed)
            optimisers.step(0.5)
    resumed = Optimisers(stopped, config)
    resumed.restore({key: value.clone() for key, value in second.state().items()})
    for module, optimisers in ((straight, first), (stopped, resumed)):
        give_gradients(module, 3)
        optimisers.step(0.25)
    for a, b in zip(straight.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(a, b)
