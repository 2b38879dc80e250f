"""Bytes at an address: read, spooled to a local file, mirrored to a local folder."""
