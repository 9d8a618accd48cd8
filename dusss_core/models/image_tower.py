"""From a picture to its feature maps and its embedding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dusss_core.errors import UserError
from dusss_core.losses.similarity import Embedding
from dusss_core.models.cells import PictureCells, resample
from dusss_core.models.heads import EmbeddingHead


class ImageFeatures(NamedTuple):
    """What the vision-language model knows of B pictures."""

    embedding: Embedding
    """Semantic embedding and Gaussian, B x D each."""
    levels: list[Tensor]
    """Feature maps from fine to coarse; the last holds the patch features."""
    cells: Tensor | None
    """B x d x cells x cells: the embedding by its places; None where it has none."""


class ImageTower(nn.Module):
    """A timm encoder and its embedding head.

    Args:
        name: timm model that supports `features_only`.
        in_channels: channels of the picture.
        size: height and width of the picture (some models fix it when they are built).
        patch_stride: pixels per patch; coarser feature maps of the encoder are not built.
        dim: D.
        cells: cells along a side of an embedding that keeps places; 0: the mean of the patch features.
        cell_dim: d, numbers of a cell.
        gradient: factor on the gradient that goes from the cells to the encoder.
        all_levels: cells see all feature maps of the encoder, not the coarsest alone.
        watching: as of EmbeddingHead.

    Raises:
        UserError: timm does not know the name, or the model has no feature maps.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        size: int,
        patch_stride: int,
        dim: int,
        cells: int = 0,
        cell_dim: int = 16,
        *,
        gradient: float = 1.0,
        all_levels: bool = False,
        watching: bool = False,
    ):
        super().__init__()
        self.encoder, self.strides, self.channels = build_encoder(
            name, in_channels, size, coarsest=patch_stride, setting="vlm.image_encoder"
        )
        self.all_levels = all_levels
        seen = sum(self.channels) if all_levels else self.channels[-1]
        self.cells = PictureCells(seen, dim, cells, cell_dim, gradient, watching=watching) if cells else None
        if not cells:
            self.norm = nn.LayerNorm(self.channels[-1])
            self.head = EmbeddingHead(self.channels[-1], dim, watching=watching)

    def forward(self, image: Tensor) -> ImageFeatures:
        """Embed B normalised pictures, B x C x H x W."""
        levels = self.encoder(image)
        if self.cells is not None:
            seen = levels[-1]
            if self.all_levels:
                seen = torch.cat([resample(level.float(), self.cells.cells) for level in levels], dim=1)
            placed = self.cells(seen)
            return ImageFeatures(placed.embedding, levels, placed.cells)
        pooled = self.norm(levels[-1].mean(dim=(2, 3)))
        return ImageFeatures(self.head(pooled), levels, None)


def build_encoder(
    name: str, in_channels: int, size: int, *, coarsest: int, setting: str
) -> tuple[nn.Module, list[int], list[int]]:
    """A timm model that gives its feature maps from fine to coarse.

    Args:
        coarsest: largest stride that is used; maps beyond it are not built.
        setting: key of the study that holds `name`, for the text of an error.

    Returns:
        The model, and of each of its maps the pixels per cell and the channels.

    Raises:
        UserError: timm does not know the name, or the model has no feature maps.
    """
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise UserError(
            f"{setting}: timm has no model '{name}'",
            f"use one that it has, such as {', '.join(near) or 'resnet18'}",
        )
    # plain transformers fix the picture's size when they are built; convolutional ones take no such argument
    for extra in ({"img_size": size}, {}):
        try:
            probe = timm.create_model(name, features_only=True, in_chans=in_channels, **extra)
            break
        except TypeError:
            continue
        except (RuntimeError, AttributeError) as error:
            raise UserError(f"{setting}: '{name}' has no feature maps ({error})", "use another timm model") from None
    strides = probe.feature_info.reduction()
    limit = max((s for s in strides if s <= coarsest), default=min(strides))
    # of several maps with one stride (plain transformers) the last is kept
    keep = [max(i for i, s in enumerate(strides) if s == stride) for stride in sorted(set(strides)) if stride <= limit]
    # by their own numbers: plain transformers give the maps of their last blocks, not of their first
    chosen = tuple(probe.feature_info.out_indices[i] for i in keep)
    encoder = timm.create_model(name, features_only=True, in_chans=in_channels, out_indices=chosen, **extra)
    _drop_unused_stages(encoder)
    return encoder, [strides[i] for i in keep], encoder.feature_info.channels()


def _drop_unused_stages(encoder: nn.Module) -> None:
    """timm's EfficientNets and MobileNets run, and would here send, the stages after the last map that is asked for:
    three quarters of their weights at a stride of 16."""
    stages = [info["stage"] for info in encoder.feature_info.get_dicts() if "stage" in info]
    if stages and isinstance(getattr(encoder, "blocks", None), nn.Sequential):
        encoder.blocks = encoder.blocks[: max(stages)]
