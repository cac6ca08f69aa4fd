"""The offline A/B report: statistics, decision rule, page."""
