"""Students: the convolutions of a backbone (persona/models/backbones/) with FaceNet's head.

The default is the reference: MobileNetV3's convolutions, average pooling, Linear(-> 512, no bias),
batch norm. Options for faces:

- `pooling: depthwise`: a global depthwise convolution instead of the average, which weighs the
  corners of a face like its centre (Chen et al. 2018, MobileFaceNets, arXiv:1804.07573,
  section 3.1)
- `pooling: full`: a 1 x 1 convolution to 48 channels and a linear layer over all of their places,
  as in option E of ArcFace (Deng et al. 2019, arXiv:1801.07698, section 3.2.1). It has the most
  parameters of the three, and learns fastest from few faces.

Depthwise and full pooling fix the size of the crops. Further options:

- `embedding_size`: dimensions of the embedding, 512 by default

Shapes: B batch, C channel, H W pixels, E embedding, K identities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from persona.config import StudentConfig
from persona.errors import PersonaError, shown
from persona.models.backbones import Backbone, make_backbone
from persona.models.output import EMBEDDING_SIZE, ClassifierHead, FaceNetwork

BATCH_NORM_EPS = 0.001
"""Epsilon of batch norm, as in FaceNet's last_bn (facenet-pytorch 2.5.3,
models/inception_resnet_v1.py)."""
FULL_CHANNELS = 48
"""Channels of the maps before the linear layer of `pooling: full`. With MobileNetV3 small, maps of
7 x 7 and 128 dimensions the student has 1.26 million parameters."""


class Student(FaceNetwork):
    """A student: convolutions, pooling, Linear(-> E, no bias), batch norm, logits."""

    def __init__(
        self,
        config: StudentConfig,
        num_classes: int,
        *,
        head: str = "linear",
        image_size: int = 160,
    ) -> None:
        """Draws the weights at random. Seed torch first to make them reproducible.

        Args:
            config: the options of the student.
            num_classes: number of identities of the logits; 0 only with head `none`.
            head: kind of the last layer: `linear`, `cosine` or `none`.
            image_size: side of the crops in px. Only depthwise pooling and some backbones depend
                on it.

        Raises:
            PersonaError: the head has no identities, or the backbone cannot be built.
        """
        super().__init__()
        if head != "none" and num_classes < 1:
            raise PersonaError(f"a student of {num_classes} identities: it needs at least one")
        self.config = config
        self.num_classes = num_classes
        self.embedding_size = config.embedding_size or EMBEDDING_SIZE
        self.image_size = image_size
        self.backbone, channels = _backbone(config, image_size).build()
        self.channels = channels
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        if config.pooling == "depthwise":
            self.pool = _depthwise_pooling(channels, self.maps_side())
        self.last_linear: nn.Module
        if config.pooling == "full":  # its pooling is the linear layer
            self.pool = _full_pooling(channels, self.maps_side(), self.embedding_size)
            self.last_linear = nn.Identity()
        else:
            self.last_linear = nn.Linear(channels, self.embedding_size, bias=False)
        self.last_bn = nn.BatchNorm1d(self.embedding_size, eps=BATCH_NORM_EPS)
        self.logits = ClassifierHead(self.embedding_size, num_classes, head)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = config.norm_momentum

    def start(self, models: Path) -> None:
        """Loads the backbone's pretrained weights if its options ask for them.

        Raises:
            PersonaError: the weights cannot be had. The message says where to put the file by hand.
        """
        _backbone(self.config, self.image_size).start(self.backbone, models)

    def maps_side(self) -> int:
        """The side of the backbone's last maps in cells, measured with an empty crop.

        Raises:
            PersonaError: the backbone cannot take crops of this size, or does not give such maps.
        """
        name, size, was = self.config.architecture, self.image_size, self.backbone.training
        self.backbone.eval()  # so that batch norm's statistics do not change
        try:
            with torch.no_grad():
                maps = self.backbone(torch.zeros(1, 3, size, size))
        except PersonaError:
            raise
        except Exception as error:  # a network from elsewhere may raise anything
            reason = shown(f"{type(error).__name__}: {error}".partition("\n")[0])
            raise PersonaError(
                f"{name} fails on a crop of {size} px ({reason}): choose another --image-size or "
                "student"
            ) from None
        finally:
            self.backbone.train(was)
        shape = tuple(maps.shape) if isinstance(maps, Tensor) else ()
        if len(shape) != 4 or shape[1] != self.channels or shape[2] != shape[3] or not shape[3]:
            raise PersonaError(
                f"{name} gives {shape or type(maps).__name__} of a crop of {size} px, where maps "
                f"(1, {self.channels}, h, h) are wanted: mend its `build`, or choose another "
                "student"
            )
        return int(shape[3])

    def features(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        """Computes the embeddings before normalisation, (B, E)."""
        pooled = torch.flatten(self.pool(self.backbone(images_BCHW)), 1)
        features_BE: Tensor = self.last_bn(self.last_linear(pooled))
        return features_BE

    def classify(self, features_BE: Tensor) -> Tensor:
        """Computes the logits, (B, K), of features."""
        logits_BK: Tensor = self.logits(features_BE)
        return logits_BK

    def head(self) -> ClassifierHead:
        """The last layer."""
        return self.logits if self.num_classes else super().head()

    def resize_head(self, num_classes: int, kind: str | None = None) -> None:
        """Changes the number of identities of the logits. The first rows keep their weights.

        New rows are drawn at random, so seed torch first. If `kind` is None, the kind of head stays
        the same, and a student without a head gets a linear one. A head of another kind is drawn
        anew.
        """
        same = kind in {None, self.logits.kind}
        kind = kind or ("linear" if self.logits.kind == "none" else self.logits.kind)
        head = ClassifierHead(self.embedding_size, num_classes, kind)
        kept = min(num_classes, self.num_classes)
        if kept and same:
            with torch.no_grad():
                for new, old in zip(head.parameters(), self.logits.parameters(), strict=True):
                    new[:kept] = old[:kept]
        device = self.last_bn.weight.device
        self.logits, self.num_classes = head.to(device), num_classes

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keeps these rows of the last layer, in this order. Without any there are no logits."""
        head = ClassifierHead(self.embedding_size, len(rows), self.logits.kind if rows else "none")
        with torch.no_grad():
            for name, new in head.named_parameters():
                new.copy_(self.logits.get_parameter(name)[list(rows)])
        self.logits, self.num_classes = head.to(self.last_bn.weight.device), len(rows)


def without_head(student: Student) -> Student:
    """A copy of a student that gives embeddings alone."""
    config = replace(student.config, embedding_size=student.embedding_size)
    bare = Student(config, 0, head="none", image_size=student.image_size)
    kept = bare.state_dict().keys()
    bare.load_state_dict({n: v for n, v in student.state_dict().items() if n in kept})
    return bare


def _backbone(config: StudentConfig, image_size: int) -> Backbone:
    return make_backbone(config.architecture, config.backbone, image_size)


def _depthwise_pooling(channels: int, side: int) -> nn.Module:
    """Builds a depthwise convolution as large as the last feature map, with batch norm."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, side, groups=channels, bias=False),
        nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS),
    )


def _full_pooling(channels: int, side: int, embedding_size: int) -> nn.Module:
    """Builds a linear layer over all places of the last feature map, behind fewer channels.

    The linear layer is a convolution as large as the map, which every export format knows.
    """
    return nn.Sequential(
        nn.Conv2d(channels, FULL_CHANNELS, 1, bias=False),
        nn.BatchNorm2d(FULL_CHANNELS, eps=BATCH_NORM_EPS),
        nn.Conv2d(FULL_CHANNELS, embedding_size, side, bias=False),
    )


def count_parameters(network: nn.Module) -> int:
    """The number of parameters, without buffers."""
    return sum(parameter.numel() for parameter in network.parameters())
