"""Evaluation of an encoder: frozen features, nearest neighbours, probes, pictures and the report."""
