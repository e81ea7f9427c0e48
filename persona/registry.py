"""Registries, from names to classes: losses, augmentations, datasets, backbones and others.

The classes of a registry come from three places:

1. A class in a module of the registry's package. Its name is read from the module's source. The
   module is imported when the name is first looked up, so listing names needs no torch.
2. An entry point of another package, in the registry's group, under the registered name.
3. A class that a program or notebook defines. Its class statement registers it.

    [project.entry-points."persona.losses"]
    huber = "my_package.losses:Huber"

This module imports none of the packages that it names until a name is looked up.
"""

from __future__ import annotations

import ast
import importlib
import logging
import pkgutil
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from persona.errors import PersonaError, unknown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

log = logging.getLogger(__name__)

T = TypeVar("T")


class Registry(Generic[T]):
    """The named classes of one kind. Iterating gives the sorted names and imports nothing."""

    def __init__(
        self,
        kind: str,
        package: str,
        group: str,
        *,
        attribute: str = "name",
        families: Registry[T] | None = None,
    ) -> None:
        """Creates a registry. Names are looked up later.

        Args:
            kind: the kind of its classes in messages, as "loss".
            package: package of Persona's own classes. A module may hold several.
            group: group of the entry points with which other packages add classes.
            attribute: the class attribute that holds the registered name.
            families: classes that stand for many names each: `timm` for every `timm:NAME`.
        """
        self.kind, self.package, self.group, self.attribute = kind, package, group, attribute
        self.families = families
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T) -> None:
        """Registers an item. A base class calls this from `__init_subclass__`.

        Raises:
            PersonaError: one of Persona's own classes has that name.
        """
        module = getattr(item, "__module__", "")
        # Persona's own classes are not compared: reading the sources of all of them takes time.
        own = module.startswith(f"{self.package}.")
        if not own and name in self.built_in:
            raise PersonaError(
                f"{self.kind} {name!r} of {module} has the name of one of Persona's own: "
                "choose another"
            )
        self._items[name] = item

    def __iter__(self) -> Iterator[str]:
        families = [f"{family}:NAME" for family in self.families or ()]
        return iter(sorted({*self._items, *self.built_in, *self._entry_points, *families}))

    def __contains__(self, name: object) -> bool:
        own = name in self._items or name in self.built_in or name in self._entry_points
        return own or self._family_of(name) is not None

    def _family_of(self, name: object) -> str | None:
        """The family in a name like `timm:resnet18`. None means that it has none."""
        family, colon, member = name.partition(":") if isinstance(name, str) else ("", "", "")
        known = self.families is not None and family in self.families
        return family if known and colon and member else None

    def find(self, name: str, *, called: str = "", where: str = "") -> T:
        """Looks up a name and imports its module if needed.

        Args:
            name: the registered name.
            called: the kind in the error message, if not the registry's.
            where: the place that the error message names.

        Raises:
            PersonaError: the name is unknown (the message gives the nearest one), or the package
                that adds it is broken.
        """
        if name not in self:
            raise unknown(called or self.kind, name, self, where=where)
        family = self._family_of(name)
        if self.families is not None and family is not None:
            return self.families.find(family)
        if name not in self._items:
            if name in self.built_in:
                importlib.import_module(self.built_in[name])
            else:
                self._load_entry_point(self._entry_points[name])
        return self._items[name]

    def get(self, name: str) -> T | None:
        """Looks up a name. None means that nothing has that name.

        Raises:
            PersonaError: the package that adds the name is broken.
        """
        return self.find(name) if name in self else None

    def load_all(self) -> dict[str, T]:
        """Imports everything, by name. What a broken package adds is left out with a warning."""
        found = {}
        for name in self:
            try:
                found[name] = self.find(name)
            except PersonaError as error:
                if name not in self._entry_points:
                    raise
                log.warning("warning: %s", error)
        return found

    @cached_property
    def built_in(self) -> dict[str, str]:
        """The names of Persona's own classes, each with its module."""
        spec = find_spec(self.package)
        assert spec is not None
        found = {}
        for module in pkgutil.iter_modules(spec.submodule_search_locations):
            place = module.module_finder.find_spec(module.name, None)
            loader: Any = place.loader if place is not None else None
            for name in _declared(loader.get_source(module.name), self.attribute):
                found[name] = f"{self.package}.{module.name}"
        return found

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        from importlib.metadata import entry_points

        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            if point.name in self.built_in or point.name in found:
                log.warning(
                    "warning: the %s %r of package %s is left out: %s has one of that name",
                    *(self.kind, point.name, _package_of(point)),
                    _package_of(found[point.name]) if point.name in found else "Persona",
                )
            else:
                found[point.name] = point
        return found

    def _load_entry_point(self, point: EntryPoint) -> None:
        package = _package_of(point)
        try:
            point.load()
        except Exception as error:  # importing another package's module may raise anything
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise PersonaError(
                f"the {self.kind} {point.name!r} of package {package} cannot be loaded "
                f"({reason}): mend or remove {package}"
            ) from error
        if point.name not in self._items:
            raise PersonaError(
                f"{point.value} of package {package} defines no {self.kind} called "
                f"{point.name!r}: mend or remove {package}"
            )


def _declared(source: str, attribute: str) -> list[str]:
    """The names that the classes of a module declare, as `name = "lfw"`, without running it."""
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return [
        line.value.value
        for line in (line for node in classes for line in node.body)
        if isinstance(line, ast.Assign | ast.AnnAssign)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
        and line.value.value
        and attribute in {getattr(target, "id", "") for target in _targets(line)}
    ]


def _targets(line: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return line.targets if isinstance(line, ast.Assign) else [line.target]


def _package_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


LOSSES: Registry[Any] = Registry("loss", "persona.training.losses", "persona.losses")
AUGMENTATIONS: Registry[Any] = Registry(
    "augmentation", "persona.data.augmentations", "persona.augmentations"
)
METHODS: Registry[Any] = Registry("method", "persona.learning.methods", "persona.methods")
BACKBONE_FAMILIES: Registry[Any] = Registry(
    "family of backbones",
    "persona.models.backbones",
    "persona.backbone_families",
    attribute="family",
)
BACKBONES: Registry[Any] = Registry(
    "backbone", "persona.models.backbones", "persona.backbones", families=BACKBONE_FAMILIES
)
PROTOCOLS: Registry[Any] = Registry("measure", "persona.evaluation.protocols", "persona.protocols")
TRACKERS: Registry[Any] = Registry("tracker", "persona.training.trackers", "persona.trackers")
EXPORTS: Registry[Any] = Registry("format", "persona.deploy.exports", "persona.exports")
DATASETS: Registry[Any] = Registry("dataset", "persona.data.raw", "persona.datasets")
DATASET_KINDS: Registry[Any] = Registry(
    "kind of dataset", "persona.data.raw", "persona.dataset_kinds", attribute="kind"
)
LIVENESS: Registry[Any] = Registry("liveness check", "persona.gallery.liveness", "persona.liveness")
