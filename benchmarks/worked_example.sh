#!/usr/bin/env bash
# The worked example of docs/compare.md: is the text worth its place on online-retail? Run from the repository's root.
# Ten trainings, about an hour on two cores; more settings may follow, such as: --set text.epochs=0
set -euo pipefail
export PYTHONPATH=.
out=$PWD/out/worked-example
config=(-c benchmarks/configs/online-retail.toml --set "serving.output=$out" --set "mlflow.tracking_uri=sqlite:///$out/mlflow.db" "$@")
as_of=(--as-of 2011-11-02T13:37:00Z)
# texts made of no column are empty, and EASE is then pulled towards nothing
without_text=(--set 'text.fields=[]' --set text.epochs=0 --set cf.ease_text_share=0)

rm -rf "$out" && mkdir -p "$out"
.venv/bin/recsys train "${config[@]}" "${as_of[@]}" "${without_text[@]}" # version 1, champion
.venv/bin/recsys train "${config[@]}" "${as_of[@]}"                      # version 2, challenger
# 10 HOLD and 20 REJECT are answers, not failures
.venv/bin/recsys compare champion challenger "${config[@]}" --rerun -o "$out/report" || test $? -le 20
.venv/bin/python benchmarks/worked_example.py "$out/report/report.json" | tee "$out/tables.md"
