"""The KL-regularised autoencoder that carries pictures to latents and back."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn

from ldm.config.neutral import WEIGHTS, takes_only
from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.distributions import DiagonalGaussianDistribution

# What the original's `ddconfig` may say besides, where it changes nothing.
NEUTRAL: Final = {
    "resamp_with_conv": True,
    "tanh_out": False,
    "give_pre_end": False,
    "use_linear_attn": False,
}


class AutoencoderKL(nn.Module):
    """The first stage of latent diffusion.

    `ddconfig` describes encoder and decoder, `embed_dim` is the number of latent channels. `lossconfig` and
    those after it belong to the original's training and are accepted so that its configs load; weights come
    with the model's checkpoint, never from a `ckpt_path`.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        embed_dim: int,
        lossconfig: Mapping[str, Any] | None = None,
        monitor: str | None = None,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        ema_decay: float | None = None,
        learn_logvar: bool = False,
    ):
        super().__init__()
        takes_only(self, None, WEIGHTS, ckpt_path=ckpt_path)
        options = dict(ddconfig)
        for name, neutral in NEUTRAL.items():
            takes_only(self, neutral, **{name: options.pop(name, neutral)})
        out_ch, in_channels = options.pop("out_ch"), options.pop("in_channels")
        double_z = options.pop("double_z", True)
        self.encoder = Encoder(in_channels=in_channels, double_z=double_z, **options)
        self.decoder = Decoder(out_ch=out_ch, **options)
        moments = (2 if double_z else 1) * options["z_channels"]
        self.quant_conv = nn.Conv2d(moments, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, options["z_channels"], 1)
        self.downsampling = 2 ** (len(options["ch_mult"]) - 1)

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """The posterior of pictures x in [-1, 1], (B, 3, H, W); its latents are (B, embed_dim, H/f, W/f)."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Pictures, near [-1, 1], of latents z, (B, embed_dim, h, w) to (B, 3, fh, fw)."""
        return self.decoder(self.post_quant_conv(z))

    def forward(
        self, x: Tensor, sample_posterior: bool = True
    ) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """Reconstruction and posterior of pictures x, (B, 3, H, W)."""
        posterior = self.encode(x)
        return self.decode(posterior.sample() if sample_posterior else posterior.mode()), posterior
