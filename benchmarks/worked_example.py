"""The tables of the worked example, for docs/compare.md: python benchmarks/worked_example.py report.json."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METRICS = ("NDCG@10", "Recall@10", "Recall@50")
GROUPS = (("items", "head"), ("items", "torso"), ("items", "tail"), ("history", "0"))
GUARDS = ("Catalogue coverage", "Exposure Gini", "Scoring (ms a user)")


def cell(value: float | None, sign: str = "") -> str:
    """Four digits without the leading 0, as the docs write numbers; a dash for none."""
    if value is None:
        return "–"
    return f"{value:{sign}.4f}".replace("0.", ".", 1).replace("-", "−")


def p_value(value: float | None) -> str:
    """Two digits of a p-value."""
    if value is None:
        return ""
    return "<.0001" if value < 0.0001 else f"{value:.2g}".replace("0.", ".", 1)


def effect(name: str, row: dict[str, Any], *rest: str) -> str:
    """A row of a table: both arms, the difference and its interval."""
    interval = f"{cell(row['diff'], '+')} ({cell(row['low'], '+')} to {cell(row['high'], '+')})"
    return f"| {' | '.join([name, cell(row['a']), cell(row['b']), interval, *rest])} |"


def tables(report: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown."""
    header = report["header"]
    yield f"**{report['verdict']}** by rule {report['rule']}: {report['reason']}\n"
    yield f"{header['users']:,} users, {header['labels']:,} labels, {header['test_start']} to {header['test_end']}.\n"
    for number in report["numbers"]:
        yield f"- {number['label']}: {number['value']}"
    yield "\n| | without text | with text | difference, 95% interval | p | Holm p |\n|---|---|---|---|---|---|"
    for row in report["relevance"]:
        if row["metric"] in METRICS:
            yield effect(row["metric"], row["effect"], p_value(row["effect"]["p"]), p_value(row["p_holm"]))
    if report["candidate_recall"]:
        yield effect("candidate recall", report["candidate_recall"], p_value(report["candidate_recall"]["p"]), "")
    for row in report["segments"]:
        if (row["kind"], row["name"]) in GROUPS and row["effect"]:
            yield effect(f"NDCG@10, {row['kind']}: {row['name']}", row["effect"], p_value(row["effect"]["p"]), "")
    for row in report["guardrails"]:
        if row["metric"] in GUARDS:
            yield effect(row["metric"], row, "", "")
    yield "\n| run | labels | without text | with text | difference, 95% interval | n |\n|---|---|---|---|---|---|"
    for run in report["stability"]["runs"]:
        if run["kind"] != "part":
            row = run["effect"]
            yield effect(f"{run['name']} | {run['start'][:10]} to {run['end'][5:10]}", row, f"{row['n']:,}")
    overlap, following = report["overlap"], report["next_step"]
    yield f"\nJaccard {overlap['jaccard']:.2f}, rank-biased overlap {overlap['rbo']:.2f}, same lists {overlap['same']:.1%}."
    yield f"Detectable: {cell(report['relevance'][0]['effect']['detectable'])}."
    yield f"Online, users in each arm for the smallest lift worth it: {following['for_min_lift']:,.0f}."
    for limit in report["limits"]:
        yield f"- {limit}"


if __name__ == "__main__":
    print("\n".join(tables(json.loads(Path(sys.argv[1]).read_text()))))
