"""Preference pairs: from rankings, from edited answers, from published files; corrupted images."""
