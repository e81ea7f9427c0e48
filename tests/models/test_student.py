"""The face-specific options of a student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small

from persona.config import StudentConfig
from persona.errors import PersonaError
from persona.models.backbones.mobilenet_v3 import MobileNetV3Large, MobileNetV3Small
from persona.models.output import COSINE_SCALE, FaceNetwork, for_inference
from persona.models.student import Student, count_parameters

OPTIONS: list[dict[str, Any]] = [
    {},
    {"architecture": "mobilenet_v3_large"},
    {"width": 0.35},
    {"width": 0.5, "first_stride": 1},
    {"pooling": "depthwise"},
    {"pooling": "depthwise", "last_stride": 1},
    {"pooling": "full", "embedding_size": 128},
    {"architecture": "mobilenet_v3_large", "pooling": "depthwise", "last_stride": 1},
    {"pooling": "depthwise", "first_stride": 1, "activation": "prelu", "embedding_size": 128},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("image_size", [64, 112, 75])
def test_every_kind_gives_embeddings_of_its_size(options: dict[str, Any], image_size: int) -> None:
    student = Student(StudentConfig(**options), 5, image_size=image_size).eval()
    output = student(torch.randn(2, 3, image_size, image_size))
    size = options.get("embedding_size", 512)
    assert output.features.shape == (2, size) and output.logits.shape == (2, 5)
    assert student.embedding_size == size


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_folded_it_gives_the_same(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    student = Student(StudentConfig(**options), 5, image_size=64)
    images = torch.randn(8, 3, 64, 64)
    student.train()(images)  # statistics that are not 0 and 1
    folded = for_inference(student)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), student.eval()(images), rtol=1e-4, atol=1e-5)
    assert any(isinstance(m, nn.BatchNorm2d) for m in student.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


class Rectified(nn.BatchNorm2d):
    """A batch norm with an activation, as timm's BatchNormAct2d."""

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        return super().forward(maps_BCHW).relu()


class Reversed(nn.Sequential):
    def forward(self, maps_BCHW: Tensor) -> Tensor:
        convolution, norm = self
        return convolution(norm(maps_BCHW))  # type: ignore[no-any-return]


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda _, __, maps_BCHW: maps_BCHW.relu())
    return module


class Plain(FaceNetwork):
    num_classes, embedding_size = 0, 3

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def features(self, images_BCHW: Tensor, landmarks_B62: Tensor | None = None) -> Tensor:
        return self.layers(images_BCHW)  # type: ignore[no-any-return]


def convolution() -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (convolution(), Rectified(3)),
        lambda: (Reversed(convolution(), nn.BatchNorm2d(3)),),
        lambda: (convolution(), nn.BatchNorm2d(3, track_running_stats=False)),
        lambda: (nn.utils.parametrizations.weight_norm(convolution()), nn.BatchNorm2d(3)),
        lambda: (nn.utils.parametrizations.spectral_norm(convolution()), nn.BatchNorm2d(3)),
        lambda: (nn.utils.spectral_norm(convolution()), nn.BatchNorm2d(3)),
        lambda: (hooked(convolution()), nn.BatchNorm2d(3)),
        lambda: (convolution(), hooked(nn.BatchNorm2d(3))),
    ],
)
@pytest.mark.parametrize("with_another", [False, True])
def test_what_cannot_be_folded_stays(
    layers: Callable[[], tuple[nn.Module, ...]], with_another: bool
) -> None:
    torch.manual_seed(0)
    another = (convolution(), nn.BatchNorm2d(3)) if with_another else ()
    network = Plain(*layers(), *another)
    images = torch.randn(4, 3, 12, 12)
    network.train().features(images)  # statistics that are not 0 and 1
    folded = for_inference(network)
    with torch.no_grad():
        torch.testing.assert_close(folded.features(images), network.eval().features(images))


def test_width_makes_it_smaller_and_stride_makes_it_see_more() -> None:
    sizes = [count_parameters(Student(StudentConfig(width=w), 1)) for w in (0.35, 0.5, 0.75, 1.0)]
    assert sizes == sorted(sizes) and sizes[0] < 0.5 * sizes[-1]
    images = torch.randn(1, 3, 64, 64)
    maps = [
        Student(StudentConfig(first_stride=s), 1).eval().backbone(images).shape[-1] for s in (1, 2)
    ]
    assert maps == [4, 2]


@pytest.mark.parametrize("architecture", ["mobilenet_v3_small", "mobilenet_v3_large"])
def test_without_the_last_reduction_a_crop_keeps_more_places(architecture: str) -> None:
    images = torch.randn(1, 3, 112, 112)
    configs = [StudentConfig(architecture, last_stride=stride) for stride in (1, 2)]
    students = [Student(config, 1).eval() for config in configs]
    assert [student.backbone(images).shape[-1] for student in students] == [7, 4]
    assert len({count_parameters(student) for student in students}) == 1


def test_prelu_takes_the_place_of_every_activation_but_the_gates() -> None:
    plain, changed = (
        Student(StudentConfig(activation=name), 1).backbone for name in ("default", "prelu")
    )

    def count(network: nn.Module, *kinds: type[nn.Module]) -> int:
        return sum(isinstance(module, kinds) for module in network.modules())

    # Squeeze-and-excitation keeps its own ReLU and hard sigmoid.
    gates = count(plain, nn.Hardsigmoid)
    assert gates > 0 and count(changed, nn.Hardsigmoid) == count(changed, nn.ReLU) == gates
    assert count(changed, nn.Hardswish) == 0
    assert count(changed, nn.PReLU) == count(plain, nn.Hardswish, nn.ReLU) - gates


def test_depthwise_pooling_weighs_places() -> None:
    student = Student(StudentConfig(pooling="depthwise"), 1, image_size=64).eval()
    swapped = torch.randn(1, 576, 2, 2)
    pooled = student.pool(swapped)
    assert not torch.allclose(pooled, student.pool(swapped.flip(3)))
    average = Student(StudentConfig(), 1).pool
    torch.testing.assert_close(average(swapped), average(swapped.flip(3)))


def test_full_pooling_is_a_linear_layer_over_all_places() -> None:
    student = Student(StudentConfig(pooling="full", embedding_size=32), 1, image_size=64).eval()
    assert isinstance(student.pool, nn.Sequential)
    reduce, norm, weigh = student.pool
    assert isinstance(weigh, nn.Conv2d)
    maps = torch.randn(2, 576, 2, 2)
    expected = norm(reduce(maps)).flatten(1) @ weigh.weight.flatten(1).T
    torch.testing.assert_close(student.pool(maps).flatten(1), expected)
    assert student(torch.randn(2, 3, 64, 64)).embedding.shape == (2, 32)


def test_full_pooling_has_as_many_parameters_as_it_says() -> None:
    config = StudentConfig(pooling="full", embedding_size=128, last_stride=1)
    student = Student(config, 0, head="none", image_size=112)
    assert count_parameters(student) == 1_256_064


def test_a_cosine_head_gives_scaled_cosines_and_no_head_gives_none() -> None:
    student = Student(StudentConfig(), 4, head="cosine").eval()
    output = student(torch.randn(3, 3, 64, 64))
    centres = nn.functional.normalize(student.logits.weight, dim=1)
    torch.testing.assert_close(output.logits, COSINE_SCALE * output.embedding @ centres.T)
    none = Student(StudentConfig(), 0, head="none").eval()
    assert none(torch.randn(3, 3, 64, 64)).logits.shape == (3, 0)
    with pytest.raises(PersonaError, match="embeddings and no logits"):
        none.head()
    with pytest.raises(PersonaError, match="a student of 0 identities"):
        Student(StudentConfig(), 0)


def test_imagenet_weights_start_the_convolutions() -> None:
    torch.manual_seed(3)
    theirs = mobilenet_v3_small(weights=None)
    for activation in ("default", "prelu"):
        student = Student(StudentConfig(activation=activation), 2)
        small = MobileNetV3Small(student.config.backbone)
        small.load_imagenet(student.backbone, theirs.state_dict())
        for name, value in student.backbone.state_dict().items():
            if name in theirs.features.state_dict():
                assert torch.equal(value, theirs.features.state_dict()[name])
    with pytest.raises(PersonaError, match="not of mobilenet_v3_large"):
        large = MobileNetV3Large(StudentConfig("mobilenet_v3_large").backbone)
        large.load_imagenet(large.build()[0], dict(theirs.state_dict()))
    with pytest.raises(PersonaError, match="not of mobilenet_v3_small"):
        small.load_imagenet(small.build()[0], {})
