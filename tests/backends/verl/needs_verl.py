"""Imported by tests that are skipped where verl is not installed; asking for its version imports nothing of it."""

import importlib.metadata

import pytest

try:
    importlib.metadata.version("verl")
except importlib.metadata.PackageNotFoundError:
    pytest.skip("verl is not installed; see CONTRIBUTING.md", allow_module_level=True)
