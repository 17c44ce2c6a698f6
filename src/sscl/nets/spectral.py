"""SSCL's spectral encoder (sec. 3.3, Fig. 3): five Fourier blocks where the V-Net has convolutions.

After fast Fourier convolution (Chi et al., NeurIPS 2020), but in 3-D and with the activation before the normalisation,
as SSCL's text has it. 700,800 parameters at width 16, 1 channel.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sscl.nets.vnet import STAGES, down

AXES = (-3, -2, -1)


class FourierBlock(nn.Module):
    """FFT, 1x1x1 convolution over real and imaginary parts, activation, normalisation, inverse FFT (Fig. 3b)."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        fft: Literal["one_sided", "full"] = "one_sided",
        activation_first: bool = True,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2 * channels_in, 2 * channels_out, 1)
        self.norm = nn.BatchNorm3d(2 * channels_out)
        self.fft, self.activation_first = fft, activation_first
        self.residual = residual and channels_in == channels_out

    def forward(self, x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b d x y z"]:
        """Same size, `channels_out` channels. In float32 also under autocast: half-precision FFTs want powers of two,
        and the spectrum's mean is some thousand times its typical coefficient.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            transform = torch.fft.rfftn if self.fft == "one_sided" else torch.fft.fftn
            spectrum = transform(x, dim=AXES, norm="ortho")
            parts = self.conv(torch.cat([spectrum.real, spectrum.imag], dim=1))
            if self.activation_first:
                parts = self.norm(functional.relu(parts, inplace=True))
            else:
                parts = functional.relu(self.norm(parts), inplace=True)
            real, imaginary = parts.chunk(2, dim=1)
            spectrum = torch.complex(real, imaginary)
            if self.fft == "one_sided":
                # without the size, 7 x 7 x 5 would come back as 7 x 7 x 4
                out = torch.fft.irfftn(spectrum, s=x.shape[-3:], dim=AXES, norm="ortho")
            else:
                # after convolution and activation the spectrum is no longer that of a real signal
                out = torch.fft.ifftn(spectrum, dim=AXES, norm="ortho").real
            return out + x if self.residual else out


class SpectralEncoder(nn.Module):
    """Image to spectral features of the bottleneck's size; down-sampling as in the spatial encoder."""

    def __init__(
        self,
        in_channels: int = 1,
        width: int = 16,
        fft: Literal["one_sided", "full"] = "one_sided",
        activation_first: bool = True,
        residual: bool = False,
        local_branch: bool = False,
        stages: tuple[int, ...] = (1, 1, 1, 1, 1),
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(len(STAGES))]
        self.stages = nn.ModuleList()
        self.local = nn.ModuleList()
        for level, channels in enumerate(widths):
            source = in_channels if level == 0 else channels
            blocks = [
                FourierBlock(source if index == 0 else channels, channels, fft, activation_first, residual)
                for index in range(stages[level])
            ]
            self.stages.append(nn.Sequential(*blocks))
            if local_branch:
                self.local.append(nn.Conv3d(source, channels, 3, padding=1))
        self.downs = nn.ModuleList(down(channels) for channels in widths[:-1])

    def forward(self, images: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b d x5 y5 z5"]:
        """F_spe: 16 * width channels, size / 16."""
        x = images
        for level, stage in enumerate(self.stages):
            if level:
                x = self.downs[level - 1](x)
            x = stage(x) + self.local[level](x) if len(self.local) else stage(x)
        return x
