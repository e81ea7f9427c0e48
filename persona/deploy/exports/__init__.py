"""The formats that students are exported to, one a file. `base` says what a format is."""

from persona.deploy.exports.base import EXPORTS, Exported, ExportFormat, FileFormat
from persona.deploy.graph import ExportOptions

__all__ = ["EXPORTS", "ExportFormat", "ExportOptions", "Exported", "FileFormat"]
