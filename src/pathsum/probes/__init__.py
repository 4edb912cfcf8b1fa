"""From samples and a model to a `tasks.Probe`: what goes in, what the output is taken for, and what is right."""

from .images import image_probe
from .text import text_probe

__all__ = ["image_probe", "text_probe"]
