"""Corpora as their authors distribute them, and how they become datasets."""
