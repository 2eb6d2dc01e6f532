"""Text-to-video policies behind one interface, `base.VideoPolicy`."""

from worldr1.models.base import VideoPolicy

__all__ = ["VideoPolicy"]
