"""The frequency-domain network is the plain one: values and gradients, to float32 rounding."""

import copy

import pytest
import torch
from torch import nn

from client_app.fast import convolutions
from client_app.fast.convolutions import FEWEST, FastConvolutions, accelerate
from client_app.fast.spectral import from_spectrum, to_spectrum, transforms
from task.models import build_model


@pytest.fixture(autouse=True)
def _kernels_for_steps_of_any_size(monkeypatch):
    """What is compared with the layers here are the kernels, not the layers that stand in for them."""
    monkeypatch.setattr(convolutions, "FEWEST", 1)


def _plain(kernel_size: int, classes: int = 10) -> nn.Sequential:
    model = build_model(
        "cnn",
        num_classes=classes,
        options={"kernel_size": kernel_size},
        generator=torch.Generator().manual_seed(0),
    )
    assert isinstance(model, nn.Sequential)
    return model


def _pair(kernel_size: int) -> tuple[nn.Sequential, nn.Sequential]:
    plain = _plain(kernel_size)
    return plain, nn.Sequential(*accelerate(list(copy.deepcopy(plain))))


@pytest.mark.parametrize(("size", "kernel_size"), [(14, 5), (14, 3), (8, 1), (10, 7)])
def test_the_transform_and_its_inverse(size, kernel_size):
    """Each kept frequency is that of torch.fft, and transforming back gives the map."""
    maps = torch.randn(size, size, 3, 2, generator=torch.Generator().manual_seed(1))
    matrices = transforms(size, kernel_size)
    spectrum = to_spectrum(maps, matrices)
    assert torch.allclose(from_spectrum(spectrum, matrices), maps, atol=1e-5)
    period = matrices.rows.shape[0]
    assert period >= size + kernel_size // 2
    reference = torch.fft.fft2(maps, s=(period, period), dim=(0, 1))
    half = period // 2
    pairs = [(a, b) for a in range(1, half) for b in range(period)]
    pairs += [(a, b) for a in (0, half) for b in range(half + 1)]
    for place, (a, b) in enumerate(pairs):
        assert torch.allclose(spectrum[place, :3], reference[a, b].real, atol=1e-4)
        assert torch.allclose(spectrum[place, 3:], reference[a, b].imag, atol=1e-4)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("batch", [1, 33, 64])
def test_values_and_gradients_are_those_of_the_plain_layers(kernel_size, batch):
    plain, fast = _pair(kernel_size)
    rng = torch.Generator().manual_seed(2)
    images = torch.randn(batch, 1, 28, 28, generator=rng)
    labels = torch.randint(0, 10, (batch,), generator=rng)
    assert isinstance(fast[0], FastConvolutions)
    for model in (plain, fast):
        nn.functional.cross_entropy(model(images), labels).backward()
    assert torch.allclose(plain(images), fast(images), atol=1e-5)
    for mine, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        scale = float(theirs.grad.abs().max())
        assert float((mine.grad - theirs.grad).abs().max()) < 2e-5 * scale + 1e-9


def test_ties_in_a_pool_send_the_gradient_to_one_place_only():
    """A constant background makes all four values equal, as on MNIST; the plain layers take the first."""
    plain, fast = _pair(5)
    images = torch.zeros(4, 1, 28, 28)
    images[:, :, 10:14, 10:14] = 1.0
    for model in (plain, fast):
        model(images).square().sum().backward()
    for mine, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        scale = float(theirs.grad.abs().max())
        assert float((mine.grad - theirs.grad).abs().max()) < 1e-4 * scale


def test_only_gradients_that_are_wanted_are_computed():
    _, fast = _pair(5)
    fast[0].first.requires_grad_(False)
    fast(torch.randn(5, 1, 28, 28)).sum().backward()
    gradients = {name: weights.grad for name, weights in fast.named_parameters()}
    assert gradients["0.first.weight"] is None
    assert gradients["0.second.weight"] is not None


@pytest.mark.parametrize(("batch", "same"), [(1, True), (FEWEST - 1, True), (FEWEST, False)])
def test_a_step_on_few_images_is_that_of_the_layers_bit_for_bit(monkeypatch, batch, same):
    monkeypatch.setattr(convolutions, "FEWEST", FEWEST)
    plain, fast = _pair(5)
    images = torch.randn(batch, 1, 28, 28, generator=torch.Generator().manual_seed(5))
    for model in (plain, fast):
        model(images).square().sum().backward()
    gradients = zip(fast.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(mine.grad, theirs.grad) for mine, theirs in gradients) == same


@pytest.mark.parametrize("learns", [True, False])
def test_without_gradients_the_kernels_are_used_for_any_number_of_images(monkeypatch, learns):
    """What is made of a sample without learning does not depend on how the samples are cut into batches."""
    monkeypatch.setattr(convolutions, "FEWEST", FEWEST)
    _, fast = _pair(5)
    images = torch.randn(FEWEST, 1, 28, 28, generator=torch.Generator().manual_seed(6))
    fast.requires_grad_(learns)
    with torch.no_grad():
        few = fast(images[:4])
    monkeypatch.setattr(convolutions, "FEWEST", 1)
    assert torch.equal(few, fast(images[:4]))


def test_the_batch_may_be_sliced_anywhere():
    """An image's features do not depend on those that go through beside it, beyond rounding."""
    _, fast = _pair(5)
    images = torch.randn(101, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.allclose(fast(images)[:7], fast(images[:7]), atol=1e-5)


def test_bfloat16_is_close_and_its_gradients_float32():
    plain = _plain(5)
    fast = nn.Sequential(*accelerate(list(copy.deepcopy(plain)), torch.bfloat16))
    images = torch.randn(40, 1, 28, 28, generator=torch.Generator().manual_seed(4))
    out, reference = fast(images), plain(images)
    assert float((out - reference).detach().norm() / reference.detach().norm()) < 0.03
    out.square().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in fast.parameters())


def test_other_networks_are_left_alone():
    for name in ("lenet5", "mlp"):
        layers = list(build_model(name, generator=torch.Generator().manual_seed(0)).children())
        assert accelerate(layers) == layers
    strided = [nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.MaxPool2d(2), nn.ReLU()]
    assert accelerate(strided) == strided
