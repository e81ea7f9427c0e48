from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona.config import (
    DistillConfig,
    check_given_once,
    load_config,
    load_learn_config,
    save_config,
    to_dict,
)
from persona.errors import PersonaError
from persona.registry import BACKBONES

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_defaults_are_the_reference_recipe() -> None:
    config = load_config(None, {})
    assert config == DistillConfig()
    assert (config.student.architecture, config.teacher) == (
        "mobilenet_v3_small",
        "facenet-vggface2",
    )
    assert (config.train_set, config.test_set) == ("vggface2", "lfw")
    assert to_dict(config)["losses"] == {
        "soft_targets": {"weight": 0.9, "temperature": 4.0},
        "hard_labels": {"weight": 0.1},
    }
    assert (config.optim.lr, config.optim.schedule) == (0.001, "multistep")


def test_later_wins(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("epochs: 3\nlosses: {soft_targets: {temperature: 2}}\nbatch_size: 16\n")
    config = load_config(
        path, {"epochs": 9, "optim.lr": 0.1}, base={"batch_size": 8, "mixed_precision": "bf16"}
    )
    assert (config.epochs, config.batch_size, config.mixed_precision) == (9, 16, "bf16")
    assert config.optim.lr == 0.1
    # A list of losses is the whole list: hard labels are not added from the defaults.
    assert to_dict(config)["losses"] == {"soft_targets": {"weight": 1.0, "temperature": 2.0}}


def test_a_resolved_config_reads_back(tmp_path: Path) -> None:
    config = load_config(
        None, {"losses.soft_targets.temperature": 7, "mixed_precision": "fp16", "seed": 3}
    )
    save_config(tmp_path / "c.yaml", to_dict(config))
    assert load_config(tmp_path / "c.yaml", {}) == config
    save_config(tmp_path / "d.yaml", to_dict(DistillConfig()))  # has `mixed_precision: 'no'`
    assert load_config(tmp_path / "d.yaml", {}) == DistillConfig()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_named_recipes_are_valid(path: Path) -> None:
    if "processes" in path.name:
        assert "num_processes: 2" in path.read_text()  # started by tests/training/test_distill.py
    else:
        load_config(path, {})


def test_there_is_a_recipe_for_each_student() -> None:
    for student in BACKBONES.built_in:
        path = Path(__file__).parents[1] / "configs" / f"{student}.yaml"
        assert load_config(path, {}).student.architecture == student


def test_the_recipe_of_the_small_student_is_the_default_written_out() -> None:
    path = Path(__file__).parents[1] / "configs" / "mobilenet_v3_small.yaml"
    assert load_config(path, {}) == DistillConfig()


def test_without_a_teacher_hard_labels_count_in_full() -> None:
    assert to_dict(load_config(None, {"teacher": "none"}))["losses"] == {
        "hard_labels": {"weight": 1.0}
    }


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("optim: {lr: 1e-3, weight_decay: 0}\n")  # a string and an integer to YAML 1.1
    optim = load_config(path, {}).optim
    assert (optim.lr, optim.weight_decay) == (0.001, 0.0)


def test_a_merged_mapping_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("optim:\n  <<: {lr: 0.5, momentum: 0.5}\n  lr: 0.25\n")
    assert (load_config(path, {}).optim.lr, load_config(path, {}).optim.momentum) == (0.25, 0.5)


def test_numbers_of_numpy_are_written_as_plain_ones(tmp_path: Path) -> None:
    rate, name = np.linspace(0.25, 0.5, 2)[0], np.array(["lfw"])[0]
    config = load_config(None, {"optim.lr": rate, "test_set": name, "optim.clip_norm": np.int64(2)})
    save_config(tmp_path / "c.yaml", to_dict(config))
    assert load_config(tmp_path / "c.yaml", {}) == config
    assert (type(config.optim.lr), type(config.test_set)) == (float, str)


def test_a_term_without_options_has_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("losses:\n  arcface:\n  rkd_angle: {photos: 16}\n")
    losses = to_dict(load_config(path, {"losses.arcface.margin": 0.3}))["losses"]
    assert losses == {
        "arcface": {"weight": 1.0, "margin": 0.3, "scale": 64.0},
        "rkd_angle": {"weight": 1.0, "photos": 16},
    }


def test_a_group_and_a_value_of_it_both_count(tmp_path: Path) -> None:
    """Flags come first, whatever the order on the command line: `--lr 0.01 -o optim={…}`."""
    path = tmp_path / "c.yaml"
    path.write_text("optim: {clip_norm: 5}\n")
    group = {"schedule": "cosine"}
    given = {
        "student.architecture": "mobilenet_v3_large",
        "optim.lr": 0.01,
        "losses.soft_targets.temperature": 2,
        "student": {"width": 0.5},
        "optim": group,
        "losses": {"soft_targets": {"weight": 1}},
    }
    config = load_config(path, given)
    assert (config.student.architecture, to_dict(config.student)["width"]) == (
        "mobilenet_v3_large",
        0.5,
    )
    assert (config.optim.lr, config.optim.schedule) == (0.01, "cosine")
    assert config.optim.clip_norm == 0  # the group replaces that of the file
    term = to_dict(config)["losses"]["soft_targets"]
    assert (term["temperature"], term["weight"]) == (2, 1)
    assert group == {"schedule": "cosine"}  # the caller's own
    with pytest.raises(PersonaError, match=r"is of the loss soft_targets, which .* not have"):
        load_config(None, {"losses.soft_targets.temperature": 2, "losses": {"arcface": {}}})


def test_a_value_alone_and_in_its_group_is_refused() -> None:
    said = r"^optim\.lr is given twice, once in optim=\{…\}: leave one of them out$"
    with pytest.raises(PersonaError, match=said):
        check_given_once({"optim.lr": 0.1, "optim": {"lr": 0.2}})
    check_given_once({"optim.lr": 0.1, "optim": {"schedule": "cosine"}, "losses": {"arcface": {}}})


def test_learning_keeps_its_own_rate_beside_other_options_of_the_optimizer() -> None:
    given = {"student": "s", "on": "x", "method": "replay", "optim": {"optimizer": "adamw"}}
    optim = load_learn_config(given).optim
    assert (optim.optimizer, optim.lr, optim.schedule) == ("adamw", 0.0001, "constant")
    assert load_learn_config({**given, "optim.lr": 0.5}).optim.optimizer == "adamw"


@pytest.mark.parametrize("given", [{"optim.ema_decay": 0.999}, {"optim": {"ema_decay": 0.5}}])
def test_learning_refuses_the_ema_that_it_does_not_keep(given: dict[str, Any]) -> None:
    known = {"student": "s", "on": "set", "method": "finetune"}
    assert load_learn_config({**known, "optim.ema_decay": 0}).optim.ema_decay == 0
    with pytest.raises(PersonaError, match=r"keeps no EMA .* leave optim\.ema_decay out"):
        load_learn_config(known | given)


def test_a_wrong_name_may_be_the_files_or_the_command_lines(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("epochs: 3\n")
    with pytest.raises(PersonaError, match=r"'optim\.shedule' in .*yaml and the command line"):
        load_config(path, {"optim.shedule": "cosine"})
    with pytest.raises(PersonaError, match=r"'shedule' in the command line"):
        load_config(None, {"shedule": "cosine"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "unknown key 'epoch'.*did you mean 'epochs'"),
        ("losses: {soft_target: {}}", r"unknown key 'losses\.soft_target'.*'losses\.soft_targets'"),
        (
            "losses: {soft_targets: {temprature: 3}}",
            r"unknown key 'losses\.soft_targets\.temprature'.*'losses\.soft_targets\.temperature'",
        ),
        ("losses: {}", "names no loss"),
        ("losses: {arcface: {weight: 0}, triplet: {weight: 0}}", "arcface, triplet sum to 0"),
        ("losses: {soft_targets: {temperature: 0}}", "temperature 0.0: choose 0.01 to"),
        ("losses: {soft_targets: {temperature: -4}}", "temperature -4.0: choose 0.01 to"),
        ("losses: {arcface: {weight: .nan}}", "weight nan: choose"),
        ("losses: {adadistill: {penalty: arc}}", "unknown penalty 'arc'"),
        ("student: {width: 0.1}", "width 0.1: choose 0.35 to 1"),
        ("student: {architecture: resnet}", "unknown student 'resnet'"),
        ("student: {imagenet: true, width: 0.5}", "ImageNet weights are of width 1.0"),
        ("student: {first_stride: 3}", "first_stride 3: choose 1 to 2"),
        ("student: {last_stride: 0}", "last_stride 0: choose 1 to 2"),
        ("augment: {crop: 0.9}", "crop 0.9: choose 0 to 0.5"),
        ("targets: cached", "unknown targets 'cached'"),
        ("batch_size: 1", "batch_size 1: choose 2 to"),
        ("epochs: many", "epochs in .*: expected int, found 'many'"),
        ("epochs: true", "expected int, found True"),
        ("losses: 3", "losses in .*: expected a mapping"),
        ("- 1", "must be a mapping"),
        ("a: b: c", r"not valid YAML \(line 1\)"),
        ("epochs: -1", "epochs -1: choose 1 to"),
        ("seed: -1", "seed -1: choose 0 to"),
        ("mixed_precision: fp8", "unknown mixed_precision 'fp8'"),
        (
            "losses:\n  hard_labels: {weight: 1}\nseed: 1\nlosses:\n  arcface: {margin: 0.2}\n",
            r"not valid YAML \(line 4\): the key 'losses' stands twice: keep one of them",
        ),
        ("optim: {lr: 0.5, 'lr': 0.1}", r"\(line 1\): the key 'lr' stands twice"),
        ("tracker: wandbb", "unknown tracker 'wandbb'"),
        ("optim: {schedule: cosin}", "unknown schedule 'cosin'.*'cosine'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(PersonaError, match=message):
        load_config(path, {})


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS + "teacher: *j\n", r"\(line 2\): aliases are not read: write it out"),
        ("teacher: &a [*a]\n", "aliases are not read"),
        ("x: " + "[" * 30_000, "over 20 values inside each other"),
        ("x: " + "{a: " * 15_000, "over 20 values inside each other"),
        ("x: 1\n" * 20_000, "has over 65,536 characters"),
        ("- " * 30_000, "over 20 values inside each other"),
        ("epochs: 0x" + "f" * 60_000, "a very long number"),
        ("seed: " + "1:" * 30_000 + "1", "a very long number"),
        ("optim: {lr: " + "1:" * 30_000 + "1.5}", "a very long number"),
        ("epochs: 0x" + "f" * 90, "epochs [0-9.]{80}: choose 1 to 100000"),
        (f"teacher: [{'x' * 50_000}]", "expected str, found .{,120}$"),
        (f"? {'x' * 50_000}\n: 1", "unknown key '.{,120}"),
        ("0x" + "f" * 90 + ": 1", "unknown key '[0-9.]{80}'"),
        ("? [1, 2]\n: 1", "is not valid YAML"),
        ("!!int x: 1", "is not valid YAML"),
        ("a: !!timestamp x", "is not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is not valid YAML"),
        ("a: !!bool x", "is not valid YAML"),
        ("a: !!int ''", "is not valid YAML"),
        ("\x00", "is not valid YAML"),
    ],
)
def test_a_recipe_of_a_stranger_is_refused_in_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    began_s = time.process_time()
    with pytest.raises(PersonaError, match=message) as raised:
        load_config(path, {})
    assert time.process_time() - began_s < 1
    assert len(str(raised.value)) < 400 + len(str(path)) and "\n" not in str(raised.value)
    path.write_bytes(b"teacher: \xff\xfe")
    with pytest.raises(PersonaError, match="it is no UTF-8"):
        load_config(path, {})
