"""What is raised for bytes that are no payload."""

from __future__ import annotations


class PayloadError(ValueError):
    """The bytes are not a payload; the text says what is wrong with them."""
