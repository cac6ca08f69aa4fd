"""Batch scoring, audit, publication, the nightly job and the offline A/B report."""
