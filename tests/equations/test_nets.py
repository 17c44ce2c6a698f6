"""Networks: sizes known from the literature, and the Fourier block against numpy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sscl.methods import method_class
from sscl.nets.spatial_spectral import SpatialSpectralVNet
from sscl.nets.spectral import FourierBlock, SpectralEncoder
from sscl.nets.vnet import Reconstructor, VNet, VNetEncoder
from sscl.stages.model import count_parameters


def size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


class TestParameters:
    def test_v_net(self) -> None:
        assert size(VNet()) == 9_448_866

    def test_spectral_encoder(self) -> None:
        assert size(SpectralEncoder()) == 700_800

    def test_student(self) -> None:
        assert size(SpatialSpectralVNet(1, 2, 16, 0.5, 0.5, SpectralEncoder())) == 10_149_666

    def test_reconstructor(self) -> None:
        assert size(Reconstructor()) == 9_448_849

    @pytest.mark.parametrize(("name", "expected"), [("sscl", 17_526_562), ("vnet", 9_448_866)])
    def test_what_the_test_phase_needs(self, name: str, expected: int) -> None:
        cls = method_class(name)
        assert count_parameters(cls(cls.Config(), 1, 2)) == expected

    def test_v_net_by_hand(self) -> None:
        # convolutions (with bias), batch norms (2 a channel), for width w: k input channels to n outputs
        def conv(k: int, n: int, voxels: int) -> int:
            return k * n * voxels + n

        w, total = [16, 32, 64, 128, 256], conv(1, 16, 27) + 2 * 16
        for level, count in enumerate((0, 2, 3, 3, 3)):
            total += count * (conv(w[level], w[level], 27) + 2 * w[level])
        for level, count in enumerate((1, 2, 3, 3)):
            total += conv(w[level], w[level + 1], 8) + 2 * w[level + 1]  # down
            total += conv(w[level + 1], w[level], 8) + 2 * w[level]  # up
            total += count * (conv(w[level], w[level], 27) + 2 * w[level])
        assert size(VNet()) == total + conv(16, 2, 1)


class TestShapes:
    @pytest.mark.parametrize(("channels", "classes", "width"), [(1, 2, 1), (3, 5, 2), (2, 4, 3)])
    def test_any_channels_classes_and_width(self, channels: int, classes: int, width: int) -> None:
        images = torch.randn(2, channels, 32, 16, 16)
        student = SpatialSpectralVNet(channels, classes, width, 0.5, 0.5, SpectralEncoder(channels, width))
        x_hat, f_c = Reconstructor(channels, width)(images)
        assert x_hat.shape == images.shape
        assert f_c.shape == (2, 16 * width, 2, 1, 1)
        assert student(images, f_c).shape == (2, classes, 32, 16, 16)
        assert VNet(channels, classes, width)(images).shape == (2, classes, 32, 16, 16)

    @torch.no_grad()
    def test_the_paper_s_patch_has_an_odd_bottleneck(self) -> None:
        images = torch.randn(1, 1, 112, 112, 80)
        f_spe = SpectralEncoder(1, 1)(images)
        x_hat, f_c = Reconstructor(1, 1)(images)
        assert f_spe.shape == f_c.shape == (1, 16, 7, 7, 5)
        assert x_hat.shape == images.shape

    def test_scales_of_the_encoder(self) -> None:
        features = VNetEncoder(1, 2)(torch.randn(2, 1, 32, 32, 16))
        assert [tuple(x.shape[1:]) for x in features] == [
            (2, 32, 32, 16), (4, 16, 16, 8), (8, 8, 8, 4), (16, 4, 4, 2), (32, 2, 2, 1),
        ]  # fmt: skip


def block_in_numpy(x: NDArray[np.float64], block: FourierBlock) -> NDArray[np.float64]:
    """Fig. 3b in double precision, with batch statistics: FFT, 1x1x1 convolution, activation, normalisation, IFFT."""
    weight = block.conv.weight.detach().double().numpy()[:, :, 0, 0, 0]
    assert block.conv.bias is not None
    bias = block.conv.bias.detach().double().numpy()
    axes = (2, 3, 4)
    spectrum = (np.fft.rfftn if block.fft == "one_sided" else np.fft.fftn)(x, axes=axes, norm="ortho")
    parts = np.concatenate([spectrum.real, spectrum.imag], axis=1)
    parts = np.einsum("oi,bixyz->boxyz", weight, parts) + bias[:, None, None, None]

    def normalise(a: NDArray[np.float64]) -> NDArray[np.float64]:
        mean, variance = (f(a, axis=(0, 2, 3, 4), keepdims=True) for f in (np.mean, np.var))
        return (a - mean) / np.sqrt(variance + 1e-5)

    parts = normalise(np.maximum(parts, 0)) if block.activation_first else np.maximum(normalise(parts), 0)
    real, imaginary = np.split(parts, 2, axis=1)
    spectrum = real + 1j * imaginary
    if block.fft == "one_sided":
        return np.fft.irfftn(spectrum, s=x.shape[2:], axes=axes, norm="ortho")
    return np.fft.ifftn(spectrum, axes=axes, norm="ortho").real


class TestFourierBlock:
    @pytest.mark.parametrize("shape", [(4, 6, 8), (7, 7, 5), (2, 2, 1)])
    @pytest.mark.parametrize("activation_first", [True, False])
    @pytest.mark.parametrize("fft", ["one_sided", "full"])
    def test_against_numpy(self, fft: str, activation_first: bool, shape: tuple[int, int, int]) -> None:
        torch.manual_seed(0)
        block = FourierBlock(2, 3, fft, activation_first)  # type: ignore[arg-type]
        x = torch.randn(2, 2, *shape)
        expected = block_in_numpy(x.double().numpy(), block)
        np.testing.assert_allclose(block(x).detach().numpy(), expected, atol=2e-5)

    def test_the_activation_comes_before_the_normalisation(self) -> None:
        """After normalisation last, each spectral channel has mean 0, so some coefficients are negative; a final
        activation leaves none."""
        torch.manual_seed(0)
        seen: list[Tensor] = []
        for first in (True, False):
            block = FourierBlock(1, 1, activation_first=first)
            spectrum = torch.fft.rfftn(block(torch.randn(2, 1, 8, 8, 8)), dim=(-3, -2, -1), norm="ortho")
            # the DC and Nyquist planes lose their imaginary part in a real signal: look at the others
            seen.append(torch.view_as_real(spectrum[..., 1:4]))
        assert seen[0].min() < -0.1
        assert seen[1].min() > -1e-5

    def test_residual_only_where_the_channels_agree(self) -> None:
        torch.manual_seed(0)
        x = torch.randn(2, 3, 4, 4, 4)
        plain, residual = FourierBlock(3, 3), FourierBlock(3, 3, residual=True)
        residual.load_state_dict(plain.state_dict())
        torch.testing.assert_close(residual(x) - x, plain(x))
        assert not FourierBlock(3, 4, residual=True).residual

    def test_float32_under_autocast(self) -> None:
        torch.manual_seed(0)
        block = FourierBlock(1, 2)
        x = torch.randn(2, 1, 7, 7, 5)
        expected = block(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert nn.functional.conv3d(x, torch.ones(1, 1, 1, 1, 1)).dtype == torch.bfloat16  # it is on
            out = block(x)
            rounded = block(x.bfloat16())
        assert out.dtype == rounded.dtype == torch.float32
        assert torch.equal(out, expected)


def gradient(module: nn.Module, out: Tensor) -> bool:
    """Whether any of the module's weights has a part in `out`."""
    weights = torch.autograd.grad(out.square().sum(), list(module.parameters()), retain_graph=True, allow_unused=True)
    return any(weight is not None and bool(weight.ne(0).any()) for weight in weights)


def test_without_skips_everything_passes_the_common_features() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 1, 32, 32, 16)
    for skips in (True, False):
        net = Reconstructor(1, 2, skips)
        features = net.encoder(images)
        cut = [*(torch.randn_like(x) for x in features[:-1]), features[-1]]
        same = torch.equal(net.decoder(features), net.decoder(cut))
        assert same is not skips
        blind = [*features[:-1], torch.zeros_like(features[-1])]
        assert not torch.equal(net.decoder(features), net.decoder(blind))


def test_student_is_the_v_net_without_spectral_and_common_features() -> None:
    torch.manual_seed(0)
    v_net, student = VNet(1, 2, 2), SpatialSpectralVNet(1, 2, 2, 0.5, 0.5, None)
    student.load_state_dict({k.replace("encoder.", "spatial.", 1): v for k, v in v_net.state_dict().items()})
    images = torch.randn(2, 1, 32, 32, 16)
    torch.manual_seed(1)
    expected = v_net(images)
    torch.manual_seed(1)
    assert torch.equal(student(images), expected)  # the dropout too


def test_features_are_added_at_the_bottleneck() -> None:
    """Equation 5 and sec. 3.2: F_spa + F_spe + F_c."""
    torch.manual_seed(0)
    spectral = SpectralEncoder(1, 2)
    student = SpatialSpectralVNet(1, 2, 2, 0.0, 0.0, spectral)
    images, f_c = torch.randn(2, 1, 32, 32, 16), torch.randn(2, 32, 2, 2, 1)
    seen: list[Tensor] = []
    student.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][-1]))
    student(images, f_c)
    torch.testing.assert_close(seen[0], student.spatial(images)[-1] + spectral(images) + f_c)


@pytest.mark.parametrize("kind", ["vnet", "student"])
def test_dropout_acts_on_whole_channels_at_the_bottleneck_and_before_the_head(kind: str) -> None:
    torch.manual_seed(0)
    net: nn.Module = VNet(1, 2, 4) if kind == "vnet" else SpatialSpectralVNet(1, 2, 4, 0.5, 0.5, SpectralEncoder(1, 4))
    places = {name: module for name, module in net.named_modules() if isinstance(module, nn.Dropout3d)}
    assert {name: module.p for name, module in places.items()} == {"dropout": 0.5, "decoder.dropout": 0.5}
    inputs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in places.items():
        module.register_forward_hook(lambda _, given, out, name=name: inputs.update({name: (given[0], out)}))
    net(torch.randn(2, 1, 32, 32, 16))
    assert inputs["dropout"][0].shape == (2, 64, 2, 2, 1)  # F_spa alone: before the spectral features are added
    assert inputs["decoder.dropout"][0].shape == (2, 4, 32, 32, 16)
    before, after = inputs["dropout"]
    kept = after.flatten(2).ne(0).any(2)
    assert 0 < kept.sum() < kept.numel()
    scale = torch.where(kept, 2.0, 0.0)[..., None, None, None]
    torch.testing.assert_close(after, before * scale)
    assert not [module for module in Reconstructor(1, 4).modules() if isinstance(module, nn.Dropout3d) and module.p]


def test_gradient_reaches_both_encoders() -> None:
    torch.manual_seed(0)
    student = SpatialSpectralVNet(1, 2, 2, 0.5, 0.5, SpectralEncoder(1, 2))
    out = student(torch.randn(2, 1, 32, 32, 16))
    assert gradient(student.spatial, out)
    assert student.spectral is not None
    assert gradient(student.spectral, out)
