"""Batches on disk: a plan made once, with a manifest that says from what, and trained from
anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chuk_lib.utils.lazy import exported

if TYPE_CHECKING:
    from chuk_lib.data.batches.builder import BuildResult, build
    from chuk_lib.data.batches.folder import BatchFolder, FolderPlan, is_batch_folder
    from chuk_lib.data.batches.manifest import BatchManifest, read_manifest
    from chuk_lib.data.batches.spec import BatchSpec

_WHERE = {
    "BatchFolder": "folder",
    "BatchManifest": "manifest",
    "BatchSpec": "spec",
    "BuildResult": "builder",
    "FolderPlan": "folder",
    "build": "builder",
    "is_batch_folder": "folder",
    "read_manifest": "manifest",
}

__all__ = [
    "BatchFolder",
    "BatchManifest",
    "BatchSpec",
    "BuildResult",
    "FolderPlan",
    "build",
    "is_batch_folder",
    "read_manifest",
]


def __getattr__(name: str) -> Any:
    return exported(__name__, _WHERE, name)
