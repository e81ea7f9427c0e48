"""Pulls models from the Hugging Face hub with huggingface_hub. It does not import torch.

A pull downloads the card, the class list and the weights that the card names, each up to a size
limit, into a temporary folder. The model is imported once it is complete. See also deploy/hub.py.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from persona.download import open_url, read_blocks
from persona.errors import PersonaError
from persona.extras import missing
from persona.files import LARGEST_JSON, folder_lock, scratch_folder
from persona.models.cards import CARD, CLASSES, Card, is_stored, read_card, stored_card
from persona.models.manage import check_name, import_model

PREFIX = "hf://"
MAX_BYTES = 500_000_000
"""Largest weights file of a pulled model, in bytes. A student has a few MB."""
MAX_CLASSES_BYTES = 50_000_000
"""Largest class list of a pulled model, in bytes."""


def parse_repository(url: str) -> str:
    """Returns `OWNER/NAME` of `hf://OWNER/NAME`.

    Raises:
        PersonaError: the URL has another form.
    """
    name = url.removeprefix(PREFIX)
    part = r"[A-Za-z0-9][\w.-]{0,95}"
    if not url.startswith(PREFIX) or not re.fullmatch(f"{part}/{part}", name):
        raise PersonaError(f"{url[:100]!r}: expected hf://OWNER/NAME")
    return name


def pull(repository: str, name: str | None, models: Path) -> Card:
    """Downloads a model into the store.

    Raises:
        PersonaError: the repository does not exist or is not permitted, the network fails, or the
            model is not one of Persona's, damaged or too large.
    """
    api = open_hub()
    check_name(name or repository.partition("/")[2], models)
    with scratch_folder(models, "pull") as scratch:
        try:
            with explained(repository):
                _fetch(api, repository, CARD, scratch, LARGEST_JSON)
                found = read_card(scratch)
                if found.bytes > MAX_BYTES:
                    raise _too_large(repository, found.weights, MAX_BYTES)
                _fetch(api, repository, CLASSES, scratch, MAX_CLASSES_BYTES)
                _fetch(api, repository, found.weights, scratch, found.bytes)
            return import_model(scratch, name or repository.partition("/")[2], models)
        except PersonaError as error:
            raise PersonaError(str(error).replace(str(scratch), PREFIX + repository)) from None


def pull_once(repository: str, models: Path) -> Card:
    """Returns the model of a repository. It is downloaded unless the store has it under its NAME.

    Any number of processes may call it at once: one downloads, and the others wait for it.

    Raises:
        PersonaError: `pull` fails, or another model in the store has that name.
    """
    name = repository.partition("/")[2]
    with _one_at_a_time(name, models):
        if is_stored(name, models):
            stored = stored_card(name, models)
            api = open_hub()  # first: it says what to install, and `explained` imports it
            with scratch_folder(models, "pull") as scratch, explained(repository):
                _fetch(api, repository, CARD, scratch, LARGEST_JSON)
                if read_card(scratch).weights_sha256 == stored.weights_sha256:
                    return stored
        return pull(repository, None, models)


@contextlib.contextmanager
def _one_at_a_time(name: str, models: Path) -> Iterator[None]:
    """Makes processes that need the model of that name look for it and pull it in turn."""
    lock = models / f".pull-{name}"
    with folder_lock(lock, doing="pulling into", wait=True):
        try:
            yield
        finally:
            shutil.rmtree(lock, ignore_errors=True)


def _fetch(api: Any, repository: str, name: str, folder: Path, limit: int) -> None:
    """Downloads a file. Its bytes are counted, because the size that a hub states may be wrong.

    Raises:
        PersonaError: the file has more than `limit` bytes.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url, login = (
        hf_hub_url(repository, name, endpoint=api.endpoint),
        build_hf_headers(token=api.token),
    )
    came = 0
    with open_url(url, login=login) as answer, (folder / name).open("wb") as file:
        for data in read_blocks(answer, whole=True):
            came += len(data)
            if came > limit:
                raise _too_large(repository, name, limit)
            file.write(data)


def _too_large(repository: str, name: str, limit: int) -> PersonaError:
    return PersonaError(
        f"{PREFIX}{repository}: {name} is over {limit:,} bytes: no student is so large, or its "
        "card says less"
    )


def open_hub() -> Any:
    """Opens the hub's client with the login of the user.

    Raises:
        PersonaError: huggingface_hub is not installed, or HF_HUB_OFFLINE is set.
    """
    try:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils import disable_progress_bars, logging
    except ImportError:
        raise missing("the hub needs huggingface_hub", "hub") from None
    if constants.HF_HUB_OFFLINE:
        raise PersonaError("HF_HUB_OFFLINE is set: unset it to reach the hub")
    disable_progress_bars()
    logging.set_verbosity_error()  # `explained` reports errors in one line
    return HfApi()


@contextlib.contextmanager
def explained(repository: str) -> Iterator[None]:
    """Turns errors of the hub and the network into a PersonaError of one line, without the request.

    Raises:
        PersonaError: the transfer failed.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError:
        raise PersonaError("no login at the hub: run `hf auth login`, or set HF_TOKEN") from None
    except (HfHubHTTPError, urllib.error.HTTPError) as error:
        answer: Any = getattr(error, "response", None) or error
        code = int(getattr(answer, "status_code", 0) or getattr(answer, "code", 0))
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        if answer.headers.get("X-Error-Code") == "EntryNotFound":
            name = urlsplit(str(answer.url)).path.rpartition("/")[2]
            raise PersonaError(
                f"{PREFIX}{repository} holds no model of Persona's: no {name}"
            ) from None
        what = {
            401: "it asks for a login: run `hf auth login`, or set HF_TOKEN",
            403: "your login may not do that there",
            404: "there is no such repository, or your login may not see it",
        }.get(code, "the hub has trouble: try again later")
        raise PersonaError(f"hf://{repository}: {what} ({code})") from None
    except PersonaError:
        raise
    except Exception as error:  # httpx, OSError or the hub's own errors, depending on its version
        raise PersonaError(
            f"hf://{repository}: the transfer failed ({type(error).__name__}): check the network "
            "and run it again"
        ) from None
