"""GBDL's networks: a generative model of image and mask with one latent vector a slice, and a Bayesian U-Net.

Slices lie across the last axis, z, which no pooling shortens. Widths as in GBDL's code at width 16.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sscl.nets.unet import UNetDecoder, UNetEncoder

WITHIN_SLICES = (2, 2, 1)
"""Pooling and upsampling."""
LATENT_STAGES = (1, 2, 4, 8, 8)
"""64-128-256-512-512 filters."""
BAYESIAN_STAGES = (2, 4, 6, 12, 24)
"""32-64-96-192-384 filters."""
GRID = 4
"""Each slice's coarsest features go through GRID x GRID values on their way to the latent and back, whatever their size
(the code has crops of one size).
"""


@dataclass(frozen=True)
class SliceGaussians:
    """A Gaussian for each slice: N(mean, A^2), A = v v' + spread I, a full covariance with two eigenvalues."""

    mean: Float[Tensor, "b z d"]
    v: Float[Tensor, "b z d"]
    spread: float

    def draw(self) -> Float[Tensor, "b z d"]:
        """mean + A eps, eps from N(0, I), each slice for itself."""
        eps = torch.randn_like(self.mean)
        return self.mean + self.spread * eps + self.v * (self.v * eps).sum(-1, keepdim=True)

    def kl_of_slices(self) -> Float[Tensor, " b"]:
        """Sum of KL(N_i || N(0, I)) over the slices i: that of independent slices."""
        d, a = self.mean.shape[-1], self.spread
        along = a + self.v.square().sum(-1)  # the eigenvalue of A along v; all others are a
        trace = (d - 1) * a**2 + along.square()
        logdet = 2 * ((d - 1) * torch.tensor(a).log() + along.log())
        return 0.5 * (trace + self.mean.square().sum(-1) - d - logdet).sum(-1)

    def kl_of_product(self) -> Float[Tensor, " b"]:
        """KL(N || N(0, I)) of the one Gaussian N that the product of the slices' densities is proportional to: its
        precision is the sum of theirs, its mean is weighted by them.
        """
        with torch.autocast(self.mean.device.type, enabled=False):  # a determinant wants float32
            (slices, d), a = self.mean.shape[1:], self.spread
            squared = self.v.square().sum(-1, keepdim=True)
            # A^-2 = I / a^2 - g v v', by its eigenvalues 1 / a^2 and 1 / (a + v'v)^2
            g = (2 * a + squared) / (a * (a + squared)).square()
            eye = torch.eye(d, device=self.mean.device)
            precision = slices / a**2 * eye - (g * self.v).mT @ self.v
            weighted = (self.mean / a**2 - g * self.v * (self.v * self.mean).sum(-1, keepdim=True)).sum(1)
            # rounding may leave no positive eigenvalue where all v are long and parallel
            root = torch.linalg.cholesky(precision + 1e-6 * slices / a**2 * eye)
            covariance = torch.cholesky_inverse(root)
            mean = (covariance @ weighted.unsqueeze(-1)).squeeze(-1)
            logdet = -2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
            return 0.5 * (trace + mean.square().sum(-1) - d - logdet)


class LatentModel(nn.Module):
    """P(X, Y, Z) = P(Z) P(X | Z) P(Y | X, Z) with its Q(Z | X): image X, mask Y, latents Z "b z d".

    factor: filters of the first stage per unit of width.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int, factor: int = 4, spread: float = 10.0) -> None:
        super().__init__()
        widths, d = [factor * width * stage for stage in LATENT_STAGES], 16 * width
        self.image_encoder = UNetEncoder(in_channels, widths, WITHIN_SLICES)
        self.to_latent = nn.Linear(widths[-1] * GRID**2, 2 * d)
        self.from_latent = nn.Linear(d, widths[-1] * GRID**2)
        self.image_decoder = UNetDecoder(widths, WITHIN_SLICES, skips=False)
        self.image_head = nn.Conv3d(widths[0], in_channels, 1)
        self.mask_encoder = UNetEncoder(in_channels, widths, WITHIN_SLICES)
        self.mask_decoder = UNetDecoder(widths, WITHIN_SLICES, extra=d)
        self.mask_head = nn.Conv3d(widths[0], num_classes, 1)
        self.spread = spread

    def infer(self, images: Float[Tensor, "b c x y z"]) -> SliceGaussians:
        """Q(Z | X)."""
        coarsest = self.image_encoder(images)[-1]
        grid = functional.adaptive_avg_pool3d(coarsest, (GRID, GRID, coarsest.shape[-1]))
        mean, v = self.to_latent(grid.permute(0, 4, 1, 2, 3).flatten(2)).float().chunk(2, -1)
        return SliceGaussians(mean, v, self.spread)

    def reconstruct(self, latents: Float[Tensor, "b z d"], size: torch.Size) -> Float[Tensor, "b c x y z"]:
        """P(X | Z), within -1 and 1. size: the images' x, y, z."""
        grid = self.from_latent(latents).unflatten(2, (-1, GRID, GRID)).permute(0, 2, 3, 4, 1)
        coarsest = functional.interpolate(grid, (size[0] // 16, size[1] // 16, size[2]), mode="trilinear")
        return self.image_head(self.image_decoder([coarsest])[-1]).tanh()

    def features(self, images: Float[Tensor, "b c x y z"]) -> list[Tensor]:
        """What `segment` has to know of X, the same for every Z."""
        return self.mask_encoder(images)

    def segment(self, features: list[Tensor], latents: Float[Tensor, "b z d"]) -> Float[Tensor, "b classes x y z"]:
        """P(Y | X, Z): logits. Each position of a slice gets the slice's Z."""
        *finer, coarsest = features
        z = latents.mT[:, :, None, None].expand(-1, -1, *coarsest.shape[2:4], -1)
        return self.mask_head(self.mask_decoder([*finer, torch.cat([coarsest, z.to(coarsest.dtype)], 1)])[-1])


class BayesianUNet(nn.Module):
    """A U-Net with channel dropout after each stage of its decoder, never off: each pass is a network drawn from many
    (Monte Carlo dropout).
    """

    def __init__(self, in_channels: int, num_classes: int, width: int, dropout: float = 0.3) -> None:
        super().__init__()
        widths = [width * stage for stage in BAYESIAN_STAGES]
        self.encoder = UNetEncoder(in_channels, widths, WITHIN_SLICES)
        self.decoder = UNetDecoder(widths, WITHIN_SLICES)
        self.head = nn.Conv3d(widths[0], num_classes, 1)
        self.dropout = dropout

    def forward(self, images: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b classes x y z"]:
        """Logits of a network drawn for each image."""
        dropped = self.decoder(self.encoder(images), lambda _, x: functional.dropout3d(x, self.dropout))
        return self.head(dropped[-1])

    def mean(self, images: Float[Tensor, "b c x y z"], passes: int) -> Float[Tensor, "b classes x y z"]:
        """Mean softmax of `passes` networks: always the same ones, so that no image hangs on its company."""
        generator, features = torch.Generator().manual_seed(0), self.encoder(images)

        def drop(level: int, x: Tensor) -> Tensor:
            kept = torch.rand(1, x.shape[1], 1, 1, 1, generator=generator) >= self.dropout
            return x * kept.to(x) / (1 - self.dropout)

        count = passes if self.dropout else 1  # without dropout all are the same
        drawn = [self.head(self.decoder(features, drop)[-1]).softmax(1) for _ in range(count)]
        return torch.stack(drawn).mean(0)
