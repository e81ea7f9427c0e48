"""Models to and from the Hugging Face hub, through huggingface_hub.

A push stages what may leave the house (persona/models/public.py) with a README, and uploads it in
one commit. A pull downloads into a folder of its own and takes the model in when it is whole.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from persona.deploy.model_card import model_card
from persona.errors import PersonaError
from persona.extras import missing
from persona.files import write_atomically
from persona.models.cards import CARD, CLASSES, Card
from persona.models.manage import check_name, import_model
from persona.models.public import publish_copy

PREFIX = "hf://"
FILES = re.compile(rf"{re.escape(CARD)}|{re.escape(CLASSES)}|weights-[\w-]+\.safetensors")
"""What a pull takes; nothing else that a repository holds is asked for, whatever its name."""
MAX_BYTES = 500_000_000
"""Of one file of a pulled model: a student has a few MB."""


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


def push(
    card: Card,
    models: Path,
    repository: str,
    *,
    licence: str,
    private: bool = True,
    with_classes: bool = False,
    onnx: bool = True,
) -> str:
    """Publishes a model; returns the address of its commit.

    Raises:
        PersonaError: no login, no permission, no network, or the hub's own trouble.
    """
    api = _api()
    with tempfile.TemporaryDirectory() as scratch:
        public = publish_copy(card, models, Path(scratch), with_classes=with_classes)
        folder = Path(scratch) / card.id
        write_atomically(folder / "README.md", model_card(public, licence).encode())
        if onnx:
            from persona.deploy.export import FACES, export_onnx
            from persona.deploy.faces import drawn_faces
            from persona.models.store import load_model

            student = load_model(public, Path(scratch))
            faces = drawn_faces(student.image_size, FACES)
            export_onnx(student, public, faces, folder / "model.onnx")
        with _explained(repository):
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=f"persona: {card.id}"
            )
    return str(commit.commit_url)


def pull(repository: str, name: str | None, models: Path) -> Card:
    """Downloads a model into the store.

    Raises:
        PersonaError: not there, no permission, no network, no model of Persona's, or damaged.
    """
    api = _api()
    check_name(name or repository.partition("/")[2], models)
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=models) as scratch:
        with _explained(repository):
            sizes = {f.path: getattr(f, "size", 0) or 0 for f in api.list_repo_tree(repository)}
            large = [path for path, size in sizes.items() if size > MAX_BYTES]
            if CARD not in sizes:
                raise PersonaError(f"{PREFIX}{repository} holds no model of Persona's: no {CARD}")
            if large:
                raise PersonaError(f"{repository} holds {large[0]} of over 500 MB: no student is")
            wanted = [path for path in sizes if FILES.fullmatch(path)]
            api.snapshot_download(repository, local_dir=scratch, allow_patterns=wanted)
        try:
            return import_model(Path(scratch), name or repository.partition("/")[2], models)
        except PersonaError as error:
            raise PersonaError(str(error).replace(scratch, PREFIX + repository)) from None


def _api() -> Any:
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars, logging
    except ImportError:
        raise missing("the hub needs huggingface_hub", "hub") from None
    disable_progress_bars()
    logging.set_verbosity_error()  # what is wrong is said below, in one line
    return HfApi()


@contextlib.contextmanager
def _explained(repository: str) -> Iterator[None]:
    """The hub's and the network's errors as one line, without what was sent."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError:
        raise PersonaError("no login at the hub: run `hf auth login`, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        code = int(getattr(getattr(error, "response", None), "status_code", 0))
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
