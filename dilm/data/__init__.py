"""Labelled texts: read, cut, sampled, and written with control tokens."""
