"""The formats that students are exported to, one a file. `base` says what a format is."""

from persona.deploy.exports.base import Exported
from persona.deploy.graph import ExportOptions

__all__ = ["ExportOptions", "Exported"]
