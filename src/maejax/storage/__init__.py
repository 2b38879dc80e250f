"""Bytes at an address: http, buckets, commands; and the local mirror of a bucket."""
