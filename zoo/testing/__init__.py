"""Conformance tests for what others write: :func:`check_family` for a prior, :func:`check_model` for a generative program.

Both raise ``AssertionError`` with one sentence that says what is wrong, and return nothing.
"""

from zoo.testing.families import check_family
from zoo.testing.programs import check_model

__all__ = ["check_family", "check_model"]
