"""Stages that fit: towers, ranker, evaluation; each puts the parts of `recsys` and `features` in order."""
