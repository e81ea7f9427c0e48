"""The JSON API and the page, as an ASGI application on an open gallery.

    GET  /api/health                             whether the server runs; its gallery is not asked
    GET  /api/people                             the enrolled people, the threshold and the limits
    POST /api/recognise  photo                   recognises the faces of a photo
    POST /api/enroll     name, photo..., accept  enrols a person
    POST /api/forget     name                    removes a person
    POST /api/faces, photos, rename, merge, split   see persona/serve/people
    POST /api/templates                          what is stored of a person, with share_templates
    /api/groups                                  groups of unknown faces, see persona/serve/groups
    /api/unknown                                 who came back, see persona/serve/unknown
    GET  /metrics                                counts and times of requests, for Prometheus
    GET  /openapi.json                           the whole API

Requests post forms (`curl -F photo=@me.jpg URL/api/recognise`). Every answer is JSON; an error is
`{"error": one line}`. An error about some of the photos lists them, and one that the user can
decide names its `doubt`. Names are never part of a URL.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from importlib import resources
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from persona import __version__
from persona.errors import PersonaError, SkipPhoto
from persona.gallery import (
    DoubtError,
    DuplicateError,
    Enrolled,
    Gallery,
    NoPhotoError,
    TwoPeopleError,
)
from persona.gallery.photos import LookedAt, look_at
from persona.gallery.store import (
    NobodyError,
    OtherNetworkError,
    ReadOnlyError,
    TakenError,
    UnavailableError,
)
from persona.serve import people as people_of
from persona.serve.door import Networks, client_of
from persona.serve.gate import Busy, Claim, Gate, TooSlow
from persona.serve.groups import ChangedGroup, GroupsAnswer, OpenGroups
from persona.serve.guard import EscapedJSON, Guard, Tell, problem
from persona.serve.metrics import CONTENT_TYPE_LATEST, METRICS, OTHER, Metrics
from persona.serve.unknown import ForgottenFaces, UnknownAnswer, Unknowns
from persona.serve.uploads import FORM, PHOTO, Form, Limits, read_form

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/look.js": ("look.js", "text/javascript"),
    "/enrol.js": ("enrol.js", "text/javascript"),
    "/people.js": ("people.js", "text/javascript"),
    "/groups.js": ("groups.js", "text/javascript"),
    "/unknown.js": ("unknown.js", "text/javascript"),
}
T = TypeVar("T")
NO_PHOTO = f"no {PHOTO} in the form: send one"
DOUBTS = {kind.kind: kind for kind in (TwoPeopleError, DuplicateError)}
TAKEN = "taken"
"""Doubt of a rename to a name that somebody has. Merging the two settles it."""
REFUSED = re.compile(r"photo (\d+)(?:: (.+))?", re.DOTALL)
UNLIKE = "unlike the others"


class Health(BaseModel):
    """The state of the server."""

    status: str


class PersonRow(BaseModel):
    """A person who is enrolled."""

    name: str
    photos: int
    created: str
    """UTC time of the first enrolment, in ISO 8601."""


class Bounds(BaseModel):
    """Limits of a request: bytes per photo and per request, photos, and pixels per photo."""

    photo_bytes: int
    request_bytes: int
    photos: int
    pixels: int


class Shares(BaseModel):
    """What another gallery must know to import from this one."""

    digest: str
    """Digest of the network that made the templates."""
    align: dict[str, str | int]
    """Alignment of the crops."""


class PeopleAnswer(BaseModel):
    """The enrolled people, the network, the threshold and the limits of a request."""

    network: str
    match: str
    threshold: float
    threshold_source: str
    """Text that says on what the threshold was chosen."""
    people: list[PersonRow]
    limits: Bounds
    groups: bool
    """Whether there are groups of unknown faces to name."""
    keeps_crops: bool
    """Whether the faces of new photos are kept, so that they can be shown."""
    keeps_unknown_hours: float | None
    """How long the faces of unknown people are kept. None means that they are not."""
    liveness: bool
    """Whether a liveness check is asked. Without one, a picture is recognised like the person."""
    shares: Shares | None
    """Network and alignment, where the gallery may be imported into another one. None means that it
    shares no templates."""


class FaceAnswer(BaseModel):
    """A face in a photo. An unknown face has no name."""

    box: tuple[float, float, float, float]
    """Box (x, y, width, height) in px of the upright photo."""
    name: str | None
    nearest: str | None
    score: float | None
    refused: str | None


class Recognised(BaseModel):
    """The faces of a photo."""

    width: int
    height: int
    threshold: float
    faces: list[FaceAnswer]


class RefusedPhoto(BaseModel):
    """A photo that was not enrolled."""

    photo: int
    """Its place in the request, from 1 on."""
    reason: str


class EnrolledPhotos(BaseModel):
    """Result of an enrolment. A refused photo is listed with its reason."""

    name: str
    added: int
    refused: list[str]
    photos: list[RefusedPhoto]
    """The refused photos again, by their number."""
    already: int
    """Number of photos that were enrolled before or given twice."""
    looks_like: str | None
    similarity: float | None


class Forgotten(BaseModel):
    """Result of removing a person: the number of templates that were removed."""

    name: str
    templates: int


class Problem(BaseModel):
    """An error in one line: what is wrong, where it is, and what to do."""

    error: str
    doubt: str | None = None
    """What the user can decide: two-people, duplicate (see `accept`) or taken (a name)."""
    photos: list[RefusedPhoto] = []
    """The photos that the error is about, if it is about some of them."""


def build_app(
    gallery: Gallery,
    gate: Gate,
    *,
    network: str,
    match: str = "mean",
    limits: Limits | None = None,
    names: frozenset[str] = frozenset({"localhost"}),
    token: str | None = None,
    proxies: Networks = (),
    groups: OpenGroups | None = None,
    share_templates: bool = False,
    log: Tell | None = None,
) -> Guard:
    """Builds the ASGI application.

    Args:
        gallery: the gallery, which the gate's threads use. The caller closes it.
        gate: the queue and threads for requests. The caller closes it.
        network: name of the network, for `/api/people`.
        match: how a probe is compared with a person, for `/api/people`.
        limits: limits of a request. None means the defaults.
        names: host names that a request may give besides IP addresses.
        token: token that requests to the API must send. None means that they need none.
        proxies: addresses of proxies whose X-Forwarded headers are trusted.
        groups: groups of unknown faces to name. None means that there are none.
        share_templates: whether clients may copy templates and kept crops.
        log: called after each answer with its path, status and seconds. Paths that are not the
            API's are `other`.
    """
    limits = limits or Limits()
    app = FastAPI(
        title="Persona",
        version=__version__,
        description="A gallery of faces: enrol, recognise, forget.",
        docs_url=None,  # these pages load their scripts from elsewhere
        redoc_url=None,
        default_response_class=EscapedJSON,
        responses={"4XX": {"model": Problem}, "503": {"model": Problem}},
        exception_handlers=dict.fromkeys(EXPLAINED, _explain),
    )

    async def through(request: Request, photos: int | None, work: Callable[[Form, Claim], T]) -> T:
        client = "" if request.client is None else client_of(request.client.host)
        return await gate.run(partial(_read, request, limits, photos), work, client)

    @app.get("/api/health")
    async def health() -> Health:
        """Says that the server runs. The gallery is not asked: a rebuild may hold it for long."""
        return Health(status="ok")

    @app.get("/api/people")
    async def people(request: Request) -> PeopleAnswer:
        """Lists the enrolled people, with the network, the threshold and the limits."""

        def work(_: Form, __: Claim) -> PeopleAnswer:
            gallery.renew_threshold()
            return PeopleAnswer(
                network=network,
                match=match,
                threshold=gallery.threshold,
                threshold_source=gallery.calibration.source,
                people=[PersonRow(**dataclasses.asdict(one)) for one in gallery.people()],
                limits=Bounds(**{name: getattr(limits, name) for name in Bounds.model_fields}),
                groups=groups is not None,
                keeps_crops=gallery.keep_crops,
                keeps_unknown_hours=None if gallery.unknown is None else gallery.unknown.hours,
                liveness=gallery.liveness is not None,
                shares=Shares(digest=gallery.eyes.named.digest, align=gallery.eyes.align.facts)
                if share_templates
                else None,
            )

        return await through(request, None, work)

    @app.post("/api/recognise", openapi_extra=_body({PHOTO: _FILE}, PHOTO))
    async def recognise(request: Request) -> Recognised:
        """Recognises every face of a photo."""

        def work(form: Form, claim: Claim) -> Recognised:
            photo = look_at(_only(form.photos), limits.pixels)
            faces = [
                FaceAnswer(**{**dataclasses.asdict(seen), "box": photo.whole(seen.box)})
                for seen in gallery.recognise(photo.pixels, shrink=photo.shrink, claim=claim)
            ]
            width, height = photo.size
            return Recognised(width=width, height=height, threshold=gallery.threshold, faces=faces)

        return await through(request, 1, work)

    fields = {
        **{"name": _TEXT, "accept": _TEXT, "force": _TEXT},
        PHOTO: {"type": "array", "items": _FILE},
    }

    @app.post("/api/enroll", openapi_extra=_body(fields, "name", PHOTO))
    async def enroll(request: Request) -> EnrolledPhotos:
        """Enrols a person with up to `limits.photos` photos.

        `accept` names doubts in spite of which to enrol, with commas between them: two-people,
        duplicate. `force` accepts both.
        """

        def work(form: Form, claim: Claim) -> EnrolledPhotos:
            name = people_of.text_of(form, "name")
            if not form.photos:
                raise PersonaError(NO_PHOTO)
            # A generator, so that only one decoded photo is in memory at a time.
            photos = (_decoded(data, limits.pixels) for data in form.photos)
            enrolled = gallery.enroll(name, photos, accept=_accepted(form), claim=claim)
            return _enrolled(enrolled)

        return await through(request, limits.photos, work)

    @app.post("/api/forget", openapi_extra=_body({"name": _TEXT}, "name"))
    async def forget(request: Request) -> Forgotten:
        """Removes a person with all templates and crops."""

        def work(form: Form, claim: Claim) -> Forgotten:
            name = people_of.text_of(form, "name")
            claim()
            return Forgotten(name=name, templates=gallery.forget(name))

        return await through(request, 0, work)

    _add_people(app, gallery, through)
    if share_templates:
        _add_templates(app, gallery, through)
    if groups is not None:
        _add_groups(app, gallery, groups, through)
    if gallery.unknown is not None and gallery.unknown.hours is not None:
        _add_unknown(app, Unknowns(gallery, gallery.unknown), through)
    for path, (file, kind) in PAGE.items():
        content = (resources.files("persona.serve") / file).read_bytes()
        answer = partial(Response, content, media_type=f"{kind}; charset=utf-8")
        app.add_api_route(path, _constant(answer), include_in_schema=False)
    paths = {METRICS, *(route.path for route in app.routes if isinstance(route, APIRoute))}
    metrics = Metrics(paths, taken=lambda: gate.taken, places=gate.places)
    numbers = partial(_numbers, metrics)
    app.add_api_route(METRICS, _constant(numbers), include_in_schema=False)

    def tell(path: str, status: int, seconds: float) -> None:
        metrics.add(path, status, seconds)
        if log is not None:
            log(path if path in paths else OTHER, status, seconds)

    return Guard(app, names=names, token=token, proxies=proxies, tell=tell)


Through = Callable[[Request, int | None, Callable[[Form, Claim], Any]], Awaitable[Any]]


def _add_people(app: FastAPI, gallery: Gallery, through: Through) -> None:
    """Adds what shows and changes the people."""

    @app.post("/api/faces", openapi_extra=_body({"names": _TEXT}, "names"))
    async def faces(request: Request) -> people_of.FacesAnswer:
        """Shows a face of each of some people; `names` is a JSON list."""

        def work(form: Form, _: Claim) -> people_of.FacesAnswer:
            return people_of.list_faces(gallery, form)

        answer: people_of.FacesAnswer = await through(request, 0, work)
        return answer

    fields = {"name": _TEXT, "first": _TEXT, "count": _TEXT}

    @app.post("/api/photos", openapi_extra=_body(fields, "name"))
    async def photos(request: Request) -> people_of.PhotosAnswer:
        """Lists photos of a person."""

        def work(form: Form, _: Claim) -> people_of.PhotosAnswer:
            return people_of.list_photos(gallery, form)

        answer: people_of.PhotosAnswer = await through(request, 0, work)
        return answer

    async def change(request: Request, work: Change) -> people_of.MovedPhotos:
        moved: people_of.MovedPhotos = await through(request, 0, partial(work, gallery))
        return moved

    @app.post("/api/rename", openapi_extra=_body({"name": _TEXT, "to": _TEXT}, "name", "to"))
    async def rename(request: Request) -> people_of.MovedPhotos:
        """Gives a person another name, which nobody has."""
        return await change(request, people_of.rename)

    fields = {"name": _TEXT, "into": _TEXT, "photos": _TEXT, "force": _TEXT}

    @app.post("/api/merge", openapi_extra=_body(fields, "name", "into"))
    async def merge(request: Request) -> people_of.MovedPhotos:
        """Moves all or some photos of a person to somebody who is enrolled.

        `photos` are numbers with commas between them; `force` does not compare the two.
        """
        return await change(request, people_of.merge)

    fields = {"name": _TEXT, "photos": _TEXT, "to": _TEXT}

    @app.post("/api/split", openapi_extra=_body(fields, *fields))
    async def split(request: Request) -> people_of.MovedPhotos:
        """Moves some photos of a person to a new one."""
        return await change(request, people_of.split)


Change = Callable[[Gallery, Form, Claim], people_of.MovedPhotos]


def _add_templates(app: FastAPI, gallery: Gallery, through: Through) -> None:
    """Adds what another gallery is imported from."""
    fields = {"name": _TEXT, "first": _TEXT, "count": _TEXT}

    @app.post("/api/templates", openapi_extra=_body(fields, "name"))
    async def templates(request: Request) -> people_of.SharedPhotos:
        """Lists templates and kept crops of a person."""

        def work(form: Form, _: Claim) -> people_of.SharedPhotos:
            return people_of.list_templates(gallery, form)

        answer: people_of.SharedPhotos = await through(request, 0, work)
        return answer


def _add_groups(app: FastAPI, gallery: Gallery, groups: OpenGroups, through: Through) -> None:
    """Adds what shows and changes the groups of unknown faces."""

    @app.get("/api/groups")
    async def list_groups(
        request: Request, first: int = 0, count: int = 20, named: bool = False
    ) -> GroupsAnswer:
        """Lists some groups, the largest first; `named` lists those with a name alone."""

        def work(_: Form, __: Claim) -> GroupsAnswer:
            return groups.shown(first, count, named=named)

        answer: GroupsAnswer = await through(request, None, work)
        return answer

    @app.post("/api/groups/name", openapi_extra=_body({"group": _TEXT, "name": _TEXT}, "group"))
    async def name_group(request: Request) -> ChangedGroup:
        """Names a group; a blank takes its name away."""
        changed: ChangedGroup = await through(request, 0, groups.name)
        return changed

    @app.post("/api/groups/merge", openapi_extra=_body({"group": _TEXT, "into": _TEXT}, "group"))
    async def merge_groups(request: Request) -> ChangedGroup:
        """Moves all faces of a group into another one."""
        changed: ChangedGroup = await through(request, 0, groups.merge)
        return changed

    @app.post("/api/groups/split", openapi_extra=_body({"group": _TEXT, "faces": _TEXT}, "group"))
    async def split_group(request: Request) -> ChangedGroup:
        """Moves some faces of a group into a new one."""
        changed: ChangedGroup = await through(request, 0, groups.split)
        return changed

    @app.post("/api/groups/enroll", openapi_extra=_body({"group": _TEXT, "force": _TEXT}, "group"))
    async def enroll_named(request: Request) -> EnrolledPhotos:
        """Enrols the faces of a named group; `force` enrols in spite of a doubt."""

        def work(form: Form, claim: Claim) -> EnrolledPhotos:
            force = form.fields.get("force", "").lower() in people_of.YES
            return _enrolled(groups.enroll(gallery, form, claim, force=force))

        answer: EnrolledPhotos = await through(request, 0, work)
        return answer


def _add_unknown(app: FastAPI, unknowns: Unknowns, through: Through) -> None:
    """Adds what proposes unknown people who came back."""

    @app.get("/api/unknown")
    async def list_unknown(request: Request) -> UnknownAnswer:
        """Lists the unknown people who came back."""

        def work(_: Form, __: Claim) -> UnknownAnswer:
            return unknowns.shown()

        answer: UnknownAnswer = await through(request, None, work)
        return answer

    fields = {"person": _TEXT, "name": _TEXT, "accept": _TEXT, "force": _TEXT}

    @app.post("/api/unknown/enroll", openapi_extra=_body(fields, "person", "name"))
    async def enroll_unknown(request: Request) -> EnrolledPhotos:
        """Enrols an unknown person under a name; `accept` and `force` as for `/api/enroll`."""

        def work(form: Form, claim: Claim) -> EnrolledPhotos:
            return _enrolled(unknowns.enroll(form, claim, _accepted(form)))

        answer: EnrolledPhotos = await through(request, 0, work)
        return answer

    @app.post("/api/unknown/forget", openapi_extra=_body({"person": _TEXT}, "person"))
    async def forget_unknown(request: Request) -> ForgottenFaces:
        """Deletes the kept faces of an unknown person."""
        answer: ForgottenFaces = await through(request, 0, unknowns.forget)
        return answer


_TEXT = {"type": "string"}
_FILE = {"type": "string", "format": "binary"}


def _body(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """Returns OpenAPI's description of a form."""
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"requestBody": {"required": True, "content": {FORM: {"schema": schema}}}}


def _numbers(metrics: Metrics) -> Response:
    return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _constant(answer: Callable[[], Response]) -> Callable[[], Any]:
    async def route() -> Response:
        return answer()

    return route


async def _read(request: Request, limits: Limits, photos: int | None) -> Form:
    """Reads a form with up to `photos` photos. None means a GET, which has no form."""
    return Form({}, []) if photos is None else await read_form(request, limits, photos=photos)


def _only(photos: list[bytes]) -> bytes:
    if not photos:
        raise PersonaError(NO_PHOTO)
    return photos[0]


def _decoded(data: bytes, max_pixels: int) -> LookedAt | SkipPhoto:
    """Decodes a photo, or returns the reason why it cannot be read."""
    try:
        return look_at(data, max_pixels)
    except SkipPhoto as reason:
        return reason


def _accepted(form: Form) -> tuple[type[DoubtError], ...]:
    """Returns the doubts in spite of which a form enrols."""
    if form.fields.get("force", "").lower() in people_of.YES:
        return (DoubtError,)
    kinds = [kind.strip() for kind in form.fields.get("accept", "").split(",") if kind.strip()]
    unknown = [kind for kind in kinds if kind not in DOUBTS]
    if unknown:
        raise PersonaError(f"accept holds an unknown doubt: send {' or '.join(DOUBTS)}")
    return tuple(DOUBTS[kind] for kind in kinds)


def _enrolled(enrolled: Enrolled) -> EnrolledPhotos:
    return EnrolledPhotos(
        **dataclasses.asdict(enrolled), photos=_refused(enrolled.refused, "refused")
    )


def _refused(lines: Iterable[str], reason: str) -> list[RefusedPhoto]:
    """Returns the photos of lines such as `photo 3: no face`.

    Args:
        lines: the lines. Those of a group of faces name files and no numbers, and are left out.
        reason: the reason where a line gives none.
    """
    found = map(REFUSED.fullmatch, lines)
    return [RefusedPhoto(photo=int(one[1]), reason=one[2] or reason) for one in found if one]


EXPLAINED = (
    *(HTTPException, RequestValidationError, PersonaError, SkipPhoto, Busy, TooSlow),
    Exception,
)


async def _explain(_: Request, error: Exception) -> Response:
    """Answers an error with its HTTP status and one line."""
    match error:
        case HTTPException():
            answer = problem(error.status_code, error.detail)
            answer.headers.update(error.headers or {})
        case RequestValidationError():
            wrong = error.errors()[0]  # with what was sent, which is not sent back
            answer = problem(422, f"{wrong['loc'][-1]} cannot be read: {wrong['msg']}")
        case NobodyError():
            answer = problem(404, "there is nobody of that name: see /api/people")
        case OtherNetworkError():
            answer = problem(409, "the gallery is another network's now: start persona serve anew")
        case ReadOnlyError():
            answer = problem(403, str(error))
        case DoubtError():
            doubt = str(error).rpartition(";")[0]  # what follows is the command's remedy
            remedy = (
                "leave them out, or send force=1 if it is one person"
                if isinstance(error, TwoPeopleError)
                else "enroll the photos under that name, or send force=1 if they are two people"
            )
            unlike = [one.model_dump() for one in _refused(error.labels, UNLIKE)]
            answer = problem(409, f"{doubt}; {remedy}", doubt=error.kind, photos=unlike)
        case TakenError():
            line = "somebody has that name already: choose another one, or merge the two"
            answer = problem(409, line, doubt=TAKEN)
        case Busy() | UnavailableError():
            answer = problem(503, _why_later(error))
            answer.headers["Retry-After"] = str(RETRY_AFTER_S)
        case NoPhotoError():
            refused = [one.model_dump() for one in _refused(error.refused, "refused")]
            answer = problem(422, str(error), photos=refused)
        case PersonaError() | SkipPhoto():
            answer = problem(422, str(error))
        case TooSlow():
            answer = problem(408, str(error))
        case _:
            answer = problem(500, "a fault of the program: its log says where")
    return answer


def _why_later(error: Busy | UnavailableError) -> str:
    if isinstance(error, Busy):
        return "too many requests wait already: try again soon"
    logger.warning("%s", error)  # clients need not know where a database is
    return "the gallery does not work at the moment: try again soon; the server's log says why"
