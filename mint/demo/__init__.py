"""The embedded default: a table of real syndromes and the synthetic cohort drawn from it."""
