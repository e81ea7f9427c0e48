"""Models from the Hugging Face hub, through huggingface_hub. No torch. See also deploy/hub.py.

A pull asks for the card and for the two files that it names, no more of any than it may have, in a
folder of its own, and takes the model in when it is whole.
"""

from __future__ import annotations

import contextlib
import re
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from persona.download import open_url, read_blocks
from persona.errors import PersonaError
from persona.extras import missing
from persona.files import LARGEST_JSON, scratch_folder
from persona.models.cards import CARD, CLASSES, Card, is_stored, read_card, stored_card
from persona.models.manage import check_name, import_model

PREFIX = "hf://"
MAX_BYTES = 500_000_000
"""Of a pulled model's weights: a student has a few MB."""
MAX_CLASSES_BYTES = 50_000_000


def parse_repository(url: str) -> str:
    """`hf://OWNER/NAME` to `OWNER/NAME`.

    Raises:
        PersonaError: it is something else.
    """
    name = url.removeprefix(PREFIX)
    part = r"[A-Za-z0-9][\w.-]{0,95}"
    if not url.startswith(PREFIX) or not re.fullmatch(f"{part}/{part}", name):
        raise PersonaError(f"{url[:100]!r}: expected hf://OWNER/NAME")
    return name


def pull(repository: str, name: str | None, models: Path) -> Card:
    """Downloads a model into the store.

    Raises:
        PersonaError: not there, no permission, no network, no model of Persona's, or damaged.
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
    """The model of a repository, which is downloaded unless the store has it under its NAME.

    Raises:
        PersonaError: see `pull`; or another model is called so here.
    """
    name = repository.partition("/")[2]
    if is_stored(name, models):
        stored = stored_card(name, models)
        with scratch_folder(models, "pull") as scratch, explained(repository):
            _fetch(open_hub(), repository, CARD, scratch, LARGEST_JSON)
            if read_card(scratch).weights_sha256 == stored.weights_sha256:
                return stored
    return pull(repository, None, models)


def _fetch(api: Any, repository: str, name: str, folder: Path, limit: int) -> None:
    """Brings a file here; what a hub says of its size is not believed.

    Raises:
        PersonaError: it has over `limit` bytes.
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
    """The hub's client, as the user is logged in.

    Raises:
        PersonaError: the package is missing, or told to stay off line.
    """
    try:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils import disable_progress_bars, logging
    except ImportError:
        raise missing("the hub needs huggingface_hub", "hub") from None
    if constants.HF_HUB_OFFLINE:
        raise PersonaError("HF_HUB_OFFLINE is set: unset it to reach the hub")
    disable_progress_bars()
    logging.set_verbosity_error()  # what is wrong is said below, in one line
    return HfApi()


@contextlib.contextmanager
def explained(repository: str) -> Iterator[None]:
    """The hub's and the network's errors as one line, without what was sent."""
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
    except Exception as error:  # httpx, OSError and the hub's own, by version
        raise PersonaError(
            f"hf://{repository}: the transfer failed ({type(error).__name__}): check the network "
            "and run it again"
        ) from None
