"""The table of runs as Markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmvit.errors import UserError
from mmvit.leaderboard.published import reported
from mmvit.leaderboard.runs import SCORES, Run


def records(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The table as plain values, one dict a run: what is measured, and under ``published`` what the authors report.

    Measured ``gflops`` count a multiply-add as two operations; most authors count it as one.
    """
    rows = []
    for run in runs:
        found = reported(run)
        rows.append(
            dict(
                task=run.task,
                model=run.model,
                method=run.method,
                backbone=run.backbone,
                dataset=run.dataset,
                data=run.data,
                images=run.images,
                **{key: None if value is None else round(value, 4) for key, value in run.scores.items()},
                params_m=None if run.parameters is None else run.parameters / 1e6,
                gflops=None if run.flops is None else run.flops / 1e9,
                latency_ms=None if run.latency is None else run.latency * 1e3,
                input_size=run.input_size,
                device=run.device,
                flags=list(run.flags),
                config=run.config,
                config_hash=run.config_hash,
                checkpoint=run.checkpoint,
                sha256=run.sha256,
                file=run.file.as_posix(),
                published=[dict(**one.scores, params_m=one.params_m, gflops=one.flops_g, setting=one.setting) for one in found],
            )
        )
    return rows


def markdown(runs: Sequence[Run]) -> str:
    """The table in Markdown. Published figures stand in columns of their own; notes below say what they belong to."""
    notes: list[str] = []
    rows = []
    for record in records(runs):
        published = record["published"][0] if record["published"] else {}
        mark = ""
        if published:
            notes += [published["setting"]] if published["setting"] not in notes else []
            mark = f" ({notes.index(published['setting']) + 1})"
        cells = {"model": f"`{record['model']}`" + "".join(f", {flag}" for flag in record["flags"])}
        cells["data (images)"] = f"{record['dataset']} ({'?' if record['images'] is None else record['images']})"
        for key, (_, title) in SCORES.items():
            digits = 2 if key == "miou" else 1
            cells[title] = "" if record[key] is None else f"{record[key]:.{digits}f}"
            reference = published.get(key) if record[key] is not None else None
            cells[f"{title}, published"] = "" if reference is None else f"{reference:g}{mark}"
        cells |= _costs(record, published)
        cells["measured at"] = ", ".join(word for word in (record["input_size"], record["device"]) if word)
        cells["config"] = _with_hash(record["config"], record["config_hash"])
        cells["checkpoint"] = _with_hash(record["checkpoint"] and Path(record["checkpoint"]).name, record["sha256"])
        rows.append(cells)
    titles = [title for title in (rows[0] if rows else {}) if any(row[title] for row in rows)]
    lines = [titles, ["---"] * len(titles), *([row[title] for title in titles] for row in rows)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    legend = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))
    return "\n\n".join(part for part in (table, "Published figures are the authors':", legend) if part) if notes else table


def _costs(record: dict[str, Any], published: dict[str, Any]) -> dict[str, str]:
    numbers = {
        "parameters (M)": (record["params_m"], ".2f"),
        "published parameters (M)": (published.get("params_m"), "g"),
        "GFLOPs": (record["gflops"], ".1f"),
        "latency (ms)": (record["latency_ms"], ".1f"),
    }
    return {title: "" if value is None else f"{value:{style}}" for title, (value, style) in numbers.items()}


def _with_hash(name: str | None, digest: str | None) -> str:
    return " ".join(part for part in (name, digest and f"`{digest[:8]}`") if part)


def as_csv(runs: Sequence[Run]) -> str:
    """The table as comma-separated values; of several published figures the likeliest, in columns ``published_...``."""
    text = io.StringIO()
    flat = []
    for record in records(runs):
        published = (record.pop("published") or [{}])[0]
        record["flags"] = "; ".join(record["flags"])
        keys = (*SCORES, "params_m", "gflops", "setting")
        flat.append(record | {f"published_{key}": published.get(key) for key in keys})
    writer = csv.DictWriter(text, flat[0] if flat else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def write(runs: Sequence[Run], out: str | os.PathLike[str]) -> list[Path]:
    """Write ``OUT.md``, ``OUT.json`` and ``OUT.csv`` (``leaderboard.*`` in `out` if it is a folder); returns their paths."""
    stem = Path(out)
    if stem.is_dir():
        stem /= "leaderboard"
    elif stem.suffix in (".md", ".json", ".csv"):
        stem = stem.with_suffix("")
    texts = {".md": markdown(runs) + "\n", ".json": json.dumps(records(runs), indent=1) + "\n", ".csv": as_csv(runs)}
    paths = [stem.with_name(stem.name + suffix) for suffix in texts]
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts.values()):
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {stem}.* ({error.strerror}): choose another place with --out") from error
    return paths
