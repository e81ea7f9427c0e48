"""The files for real machines: each of their commands exists, and their programs take them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving import ColourGallery, form, photo, serving
from test_proxy import NAMES, PROXIES, browse, nginx
from typer.main import get_command

from persona.cli.serve import serve_command
from persona.serve.door import read_networks

PLACE = Path(__file__).parents[2] / "configs" / "serve"
COMPOSE: Any = yaml.safe_load((PLACE / "compose.yaml").read_text())


def options() -> set[str]:
    """The options of `persona serve`."""
    import typer

    app = typer.Typer()
    app.command()(serve_command)
    return {name for parameter in get_command(app).params for name in parameter.opts}


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "persona.service"])
def test_every_option_is_one_of_the_command(name: str) -> None:
    text = "\n".join(
        line for line in (PLACE / name).read_text().splitlines() if not line.startswith("#")
    )
    if name == "compose.yaml":
        text = " ".join(COMPOSE["services"]["persona"]["command"])
    elif name == "persona.service":
        text = "".join(line for line in text.splitlines(keepends=True) if "ExecStart" in line)
    else:
        text = text[text.index("ENTRYPOINT") :]
    given = set(re.findall(r"--[a-z-]+", text))
    assert given and given <= options()


def test_the_services_fit_together() -> None:
    services, secrets = COMPOSE["services"], COMPOSE["secrets"]
    for service in services.values():
        for secret in service.get("secrets", []):
            assert secret in secrets
        assert not {*service.get("depends_on", {})} - {*services}
        assert "ports" not in service or service["ports"] == ["443:443"]
    (proxy,) = (o for o in services["persona"]["command"] if o.startswith("--proxy="))
    subnet = COMPOSE["networks"]["inside"]["ipam"]["config"][0]["subnet"]
    assert read_networks("--proxy", [proxy.partition("=")[2]]) == read_networks("--proxy", [subnet])
    assert services["persona"]["read_only"] and services["persona"]["cap_drop"] == ["ALL"]


def test_the_secrets_of_persona_can_be_read_by_its_user() -> None:
    for service in COMPOSE["services"].values():  # of a file, compose ignores uid and mode
        assert all(isinstance(secret, str) for secret in service.get("secrets", []))
    (user,) = re.findall(r"useradd .*--uid (\d+)", (PLACE / "Dockerfile").read_text())
    files = " ".join(COMPOSE["services"]["persona"]["secrets"])
    assert files == "token pgpass"
    told = f"#   sudo chown {user} {files} && sudo chmod 0400 {files}\n"
    assert told in (PLACE / "compose.yaml").read_text()


def test_the_image_serves_as_nobody_in_particular() -> None:
    steps = (PLACE / "Dockerfile").read_text()
    user, command = steps.index("\nUSER persona"), steps.index("\nENTRYPOINT")
    assert user < command and "HEALTHCHECK" in steps and "\nVOLUME /data" in steps
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", steps, re.MULTILINE)
    root = PLACE.parents[1]
    for path in " ".join(copied).split():
        assert (root / path).exists()


def test_nginx_takes_its_configuration_and_hides_the_numbers(tmp_path: Path) -> None:
    text = (PLACE / "nginx.conf").read_text()
    headers = "\n".join(re.findall(r"proxy_set_header .+;|proxy_request_buffering .+;", text))
    hidden = re.findall(r"location = /metrics \{.+?\}", text)
    assert len(hidden) == 1
    with (
        serving(ColourGallery(), names=NAMES, proxies=PROXIES) as behind,
        nginx(tmp_path, behind, f"{headers}\n}}\n{hidden[0]}\nlocation /unused {{") as port,
    ):
        assert browse(tmp_path, port, "/api/recognise", form(("photo", photo())))[0] == 200
        assert browse(tmp_path, port, "/metrics")[0] == 404


def test_a_large_machine_may_have_its_threads() -> None:
    """TasksMax counts threads, and three pools have one for each core."""
    (most,) = re.findall(r"^TasksMax=(\d+)$", (PLACE / "persona.service").read_text(), re.MULTILINE)
    assert int(most) > 3 * 128 + 32


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyse = shutil.which("systemd-analyze")
    if analyse is None:
        pytest.skip("no systemd-analyze")
    text = (PLACE / "persona.service").read_text()
    (tmp_path / "persona.service").write_text(text.replace("/opt/persona/bin/persona", "/bin/true"))
    command = [analyse, "verify", str(tmp_path / "persona.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = done.stderr.replace(str(tmp_path), "")
    assert done.returncode == 0 and "persona.service" not in told, told
