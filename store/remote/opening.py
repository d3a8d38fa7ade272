"""The store of an address."""

from pathlib import Path

from .folder import Folder
from .store import Store, is_remote


def open_store(url: str | Path) -> Store:
    """The store at a folder or URL; LakeError for an address that nobody can open."""
    if not is_remote(url):
        return Folder(url)
    from .hub import Hub
    from .objects import BUCKETS, Bucket, Web  # a local lake needs no client
    from .other import Other

    scheme = str(url).partition("://")[0].lower()
    if scheme in ("http", "https"):
        return Web(str(url))
    kind = Bucket if scheme in BUCKETS else Hub if scheme == "hf" else Other
    return kind(str(url))
