"""Results that leave a run: a stage's model as a folder that transformers or PEFT read, with a model card."""

from pit.export.errors import ExportError
from pit.export.folder import Form, export

__all__ = ["ExportError", "Form", "export"]
