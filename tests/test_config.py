from __future__ import annotations

from pathlib import Path

import pytest

from persona.config import DistillConfig, load_config, save_config
from persona.errors import PersonaError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_defaults_are_the_reference_recipe() -> None:
    config = load_config(None, {})
    assert config == DistillConfig()
    assert (config.student, config.teacher) == ("mobilenet_v3_small", "facenet-vggface2")
    assert (config.train_set, config.test_set) == ("vggface2", "lfw")
    assert (config.loss.soft_weight, config.loss.hard_weight) == (0.9, 0.1)
    assert (config.optim.lr, config.optim.schedule) == (0.001, "multistep")


def test_later_wins(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("epochs: 3\nloss: {temperature: 2}\nbatch_size: 16\n")
    config = load_config(
        path, {"epochs": 9, "optim.lr": 0.1}, base={"batch_size": 8, "mixed_precision": "bf16"}
    )
    assert (config.epochs, config.batch_size, config.mixed_precision) == (9, 16, "bf16")
    assert (config.loss.temperature, config.loss.soft_weight, config.optim.lr) == (2.0, 0.9, 0.1)


def test_a_resolved_config_reads_back(tmp_path: Path) -> None:
    config = load_config(None, {"loss.temperature": 7, "mixed_precision": "fp16", "seed": 3})
    save_config(tmp_path / "c.yaml", config)
    assert load_config(tmp_path / "c.yaml", {}) == config
    save_config(tmp_path / "d.yaml", DistillConfig())  # has `mixed_precision: 'no'`
    assert load_config(tmp_path / "d.yaml", {}) == DistillConfig()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_named_recipes_are_valid(path: Path) -> None:
    if "processes" in path.name:
        assert "num_processes: 2" in path.read_text()  # started by tests/training/test_distill.py
    else:
        assert load_config(path, {}).student in path.name


def test_there_is_a_recipe_for_each_student() -> None:
    assert {"mobilenet_v3_small.yaml", "mobilenet_v3_large.yaml"} <= {p.name for p in CONFIGS}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "unknown key 'epoch'.*did you mean 'epochs'"),
        ("loss: {temprature: 3}", r"unknown key 'loss\.temprature'.*'loss\.temperature'"),
        ("epochs: many", "epochs in .*: expected int, found 'many'"),
        ("epochs: true", "expected int, found True"),
        ("loss: 3", "loss in .*: expected a mapping"),
        ("- 1", "must be a mapping"),
        ("a: b: c", r"not valid YAML \(line 1\)"),
        ("epochs: -1", "epochs -1: choose 1 to"),
        ("seed: -1", "seed -1: choose 0 to"),
        ("mixed_precision: fp8", "unknown mixed_precision 'fp8'"),
        ("tracker: tensorboard", "unknown tracker 'tensorboard'"),
        ("optim: {schedule: cosine}", "unknown schedule 'cosine'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(PersonaError, match=message):
        load_config(path, {})
