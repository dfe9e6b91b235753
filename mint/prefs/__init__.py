"""Preferences: upstream models that rank diagnoses, and the pairs made from their rankings."""
