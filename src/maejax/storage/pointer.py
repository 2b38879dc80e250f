"""Pointers of git-lfs: what a clone holds in place of a large file."""


def pointer(head: bytes) -> str:
    """Describe a pointer of git-lfs, recognised by its first bytes, in a sentence; empty for any other file."""
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a pointer of git-lfs, not the file itself; fetch it with `git lfs pull`"
    return ""
