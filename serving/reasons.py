"""Why an item is in a list; see `features.reasons`, which evaluations use too."""

from features.reasons import reasons

__all__ = ["reasons"]
