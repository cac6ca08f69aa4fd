#!/usr/bin/env bash
# A night on each real data set; the evaluation tables of RESULTS.md. Run from the repository's root.
set -u
night() { .venv/bin/recsys nightly -c "benchmarks/configs/$1.toml" --as-of "$2"; }
mkdir -p out
night amazon-scientific 2000-02-21
night online-retail 2011-11-02T13:37:00Z
night movies 2018-09-25
