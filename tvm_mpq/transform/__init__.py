"""Relax → Relax passes, one a file; ``pipeline`` shows all of them in order."""
