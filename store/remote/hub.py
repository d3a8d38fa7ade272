"""The Hugging Face hub: a dataset is read as any lake, and written in commits by a transfer alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.errors import LakeError
from .other import Other

TOGETHER = 500  # files in a commit: the hub is slow with many small commits, and with very large ones
ABOUT = (".gitattributes", "README.md")  # files of a dataset that are none of a lake's


class Hub(Other):
    """A dataset of the hub (hf://datasets/OWNER/NAME, also @REVISION and a folder in it)."""

    def __init__(self, url: str):
        if not url.removeprefix("hf:").strip("/"):
            raise LakeError("lake hf://", expected="hf://datasets/OWNER/NAME", found="no name")
        super().__init__(url)
        self.writable = False  # but inside `together`
        self._waiting: dict[str, Any] = {}  # path in the repository -> what happens to it
        self._place: Any = None  # owner, name, revision, once something is written
        self._lock = threading.Lock()

    def empty(self) -> bool:
        """Whether there is no file at all but those about the dataset, which the hub makes itself."""
        folders, files = self.list("")
        return not {name for name in files if name not in ABOUT} and not any(self.find(folder) for folder in folders)

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Collect what is written, and commit it in this order, `TOGETHER` files at a time, the last at the end."""
        try:
            place = self.fs.resolve_path(self._base)
        except FileNotFoundError as error:
            raise LakeError(
                f"{self}: no such dataset or revision, or none that this token may see",
                repair="`hf repo create OWNER/NAME --repo-type dataset` makes one; HF_TOKEN holds a token with write access",
            ) from error
        self.writable, self._place = True, place
        try:
            yield
            self._try("", lambda: self._commit(what))
        finally:
            self.writable, self._waiting = False, {}

    def _put(self, name: str, source: bytes | Path, new: bool) -> bool:
        from huggingface_hub import CommitOperationAdd

        if new and self.fs.exists(self._path(name)):
            return False
        content = source if isinstance(source, bytes) else str(source)
        self._add(CommitOperationAdd(path_in_repo=self._inside(name), path_or_fileobj=content), name)
        return True

    def _delete(self, name: str) -> None:
        from huggingface_hub import CommitOperationDelete

        folder = self.fs.info(self._path(name))["type"] == "directory"
        self._add(CommitOperationDelete(path_in_repo=self._inside(name), is_folder=folder), name)

    def _inside(self, name: str) -> str:
        """The path of a file in the repository."""
        return str(self.fs.resolve_path(self._path(name)).path_in_repo)

    def _add(self, operation: Any, name: str) -> None:
        with self._lock:
            self._waiting[operation.path_in_repo] = operation
            if len(self._waiting) >= TOGETHER:
                self._commit(name)

    def _commit(self, what: str) -> None:
        from huggingface_hub.utils import disable_progress_bars

        if self._waiting:
            disable_progress_bars()  # the transfer has its own
            self.fs._api.create_commit(
                self._place.repo_id,
                list(self._waiting.values()),
                commit_message=f"actlake: {what}",
                repo_type=self._place.repo_type,
                revision=self._place.revision,
            )
            self._waiting = {}
            self.fs.invalidate_cache()
