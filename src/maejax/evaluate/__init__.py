"""Judging an encoder: frozen features, nearest neighbours, linear probes, pictures and the report."""
