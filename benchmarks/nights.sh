#!/usr/bin/env bash
# The evaluation of each real data set on its test window; the tables of RESULTS.md. Run from the repository's root.
set -u
evaluate() { .venv/bin/recsys evaluate -c "benchmarks/configs/$1.toml" --as-of "$2" "${@:3}"; }
mkdir -p out
evaluate amazon-scientific 2000-02-21
evaluate online-retail 2011-12-10
evaluate online-retail 2011-12-10 --set rules.exclude_seen=false
evaluate movies 2018-09-25
