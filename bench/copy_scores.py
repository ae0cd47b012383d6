"""How well a set of copies is found: ours beside three baselines on the same files, in tables and rows."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from copies import SEVERITIES, SPLITS, Entry, read_manifest
from torch import Tensor

from vsim_fast.encode import load_encoder
from vsim_fast.encode.base import Encoder
from vsim_fast.evaluation import Evaluation, Pairs, Truth, evaluate, roc_auc
from vsim_fast.pipeline import encode_video
from vsim_fast.video import Sampling, open_video

OURS_NAME, OURS = "vsim_fast", ("content", "order", "coverage", "score")
BASELINES = ("thumbnails", "phash_bag", "pooled_cosine")
ALPHAS = tuple(k / 10 for k in range(11))
SKETCH_FPS = 2
PLACES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of a video's time, where its thumbnails are taken."""
HASH_BITS = 10
"""Most bits in which hashes of the same picture differ."""
Pair = tuple[str, str]


@dataclass
class Scores:
    """Columns of scores over one list of pairs; higher is more alike, NaN where there is none."""

    pairs: list[Pair]
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    """Seconds of each way of scoring: features (decoding included), pairs."""

    def of(self, name: str) -> dict[Pair, float]:
        """Without NaN: what was not scored is below all that was."""
        values = self.columns[name]
        values = np.where(np.isnan(values), np.nanmin(values, initial=0) - 1, values)
        return dict(zip(self.pairs, values.tolist(), strict=True))


def wanted_pairs(entries: Sequence[Entry]) -> list[Pair]:
    """Every query with every reference, each probe with its own reference, the two that share their middle."""
    refs = [e.file for e in entries if e.role == "ref"]
    pairs = [(e.file, ref) for e in entries if e.role == "query" for ref in refs]
    for e in entries:
        if e.role == "probe" and e.family != "middle_b":
            pairs.append((e.file, partner(e)))
    return pairs


def partner(entry: Entry) -> str:
    """What a file is compared with: the reference of its base, or the other video with the same middle."""
    return entry.file.replace("middle_a", "middle_b") if entry.family == "middle_a" else f"refs/{entry.base}.mp4"


# Baselines


@dataclass(frozen=True)
class Sketch:
    """What the baselines know of a video."""

    thumbnails: Tensor
    """float32 [5, 1024], grey, each less its mean and of length 1: absolute differences find fewer copies."""
    hashes: Tensor
    """bool [N, 64], one per second."""
    pooled: Tensor
    """float32 [D] of length 1, mean over patches and frames."""


def sketch(path: Path, encoder: Encoder) -> Sketch:
    grey, pooled = [], []
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.preprocess.mean, encoder.preprocess.std))
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    source = dict(device=encoder.device, batch_size=encoder.batch_size)
    with (
        open_video(path, Sampling(fps=SKETCH_FPS), **source) as reader,
        closing(encode_video(reader, encoder)) as batches,
        torch.inference_mode(),
    ):
        for batch in batches:
            pictures = (batch.pixels.float().cpu() * std + mean).mul(luma).sum(1, keepdim=True)
            grey.append(F.interpolate(pictures, (32, 32), mode="bilinear", antialias=True)[:, 0])
            pooled.append(batch.features.patches.float().mean(1).cpu())
    grey, pooled = torch.cat(grey), torch.cat(pooled).mean(0)  # [T, 32, 32], [D]
    at = [min(int(place * len(grey)), len(grey) - 1) for place in PLACES]
    thumbnails = grey[at].flatten(1)
    thumbnails = F.normalize(thumbnails - thumbnails.mean(1, keepdim=True), dim=1)
    return Sketch(thumbnails, dct_hashes(grey[::SKETCH_FPS]), F.normalize(pooled, dim=0))


def dct_hashes(grey: Tensor) -> Tensor:
    """[T, 32, 32] -> bool [T, 64]: which of the lowest 8 x 8 cosine coefficients lie above their median."""
    n = torch.arange(32.0)
    cosines = torch.cos(torch.pi / 32 * (n + 0.5) * torch.arange(8.0)[:, None])  # [8, 32]
    low = (cosines @ grey @ cosines.T).flatten(1)
    return low > low.median(1, keepdim=True).values


def baseline_scores(a: Sketch, b: Sketch) -> Iterator[float]:
    """In the order of BASELINES."""
    yield float((a.thumbnails * b.thumbnails).sum(1).mean())
    yield float(((a.hashes[:, None] ^ b.hashes).sum(2).amin(1) <= HASH_BITS).float().mean())
    yield float(a.pooled @ b.pooled)


def score_baselines(directory: Path, scores: Scores) -> None:
    encoder = load_encoder("builtin", device="cpu")
    start = time.perf_counter()
    files = sorted({file for pair in scores.pairs for file in pair})
    sketches = {}
    for k, file in enumerate(files):
        sketches[file] = sketch(directory / file, encoder)
        if k % 50 == 0:
            print(f"baselines: {k} of {len(files)} files", file=sys.stderr)
    features = time.perf_counter() - start
    rows = [list(baseline_scores(sketches[a], sketches[b])) for a, b in scores.pairs]
    pairs = time.perf_counter() - start - features
    for name, column in zip(BASELINES, np.array(rows).T, strict=True):
        scores.columns[name] = column
        scores.stages[name] = {"features": features, "pairs": pairs / len(BASELINES)}


# Ours


def run_dedup(directory: Path, entries: Sequence[Entry], out: Path) -> tuple[list[Path], dict[str, float]]:
    """The tables of pairs that `vsim dedup` writes; seconds of the first, all queries against all references."""
    from vsim_fast.deduplication import dedup

    def paths(*roles: str) -> list[Path]:
        return [directory / e.file for e in entries if e.role in roles or e.family in roles]

    probes = [path for path in paths("probe") if path not in paths("middle_b")]
    start = time.perf_counter()
    result = dedup(paths("query"), against=paths("ref"), min_score=0, output_dir=out / "queries")
    seconds = time.perf_counter() - start
    dedup(probes, against=paths("ref", "middle_b"), min_score=0, output_dir=out / "probes")
    pairs = result.timings.get("pairs", 0)
    return [out / name / "pairs.csv" for name in ("queries", "probes")], {"features": seconds - pairs, "pairs": pairs}


def read_scores(directory: Path, tables: Sequence[Path], scores: Scores) -> list[str]:
    """Adds the columns of pairs.csv files, whose ids are paths of the set's files; their names."""
    rows: dict[Pair, dict[str, str]] = {}
    for table in tables:
        with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            for row in csv.DictReader(file):
                rows[set_id(directory, row["query_id"]), set_id(directory, row["ref_id"])] = row
    texts = ("query_id", "ref_id", "orientation", "verdict")
    names = [name for name in next(iter(rows.values())) if name not in texts]
    missing = sum(pair not in rows for pair in scores.pairs)
    if missing:
        print(f"{missing} of {len(scores.pairs)} pairs are not listed: they rank last", file=sys.stderr)
    for name in names:
        values = (rows.get(pair, {}).get(name) or "nan" for pair in scores.pairs)
        scores.columns[name] = np.array([float(value) for value in values])
    for alpha in ALPHAS if {"content", "order"} <= set(names) else ():
        content, order = (np.nan_to_num(scores.columns[name]) for name in ("content", "order"))
        scores.columns[f"{alpha:.1f} content + {1 - alpha:.1f} order"] = alpha * content + (1 - alpha) * order
    return names


def set_id(directory: Path, path: str) -> str:
    return Path(path).absolute().relative_to(directory.absolute()).as_posix()


# Figures


def ranked(entries: Sequence[Entry], scores: Scores, name: str, split: str) -> Evaluation:
    """All queries of a split against all references."""
    queries = [e for e in entries if e.role == "query" and split in ("all", e.split)]
    refs = [e.file for e in entries if e.role == "ref"]
    score = scores.of(name)
    pairs = [(e.file, ref) for e in queries for ref in refs]
    return evaluate(
        Pairs(
            query_id=[a for a, _ in pairs], ref_id=[b for _, b in pairs], score=np.array([score[p] for p in pairs]),
            source=name,
        ),
        Truth(
            query_id=[e.file for e in queries], ref_id=[partner(e) if e.shared else "" for e in queries],
            base=[e.base for e in queries], family=[e.family for e in queries], severity=[e.severity for e in queries],
        ),
        bootstrap=0,
    )  # fmt: skip


def figures(result: Evaluation) -> dict[str, float]:
    """The totals of a ranking."""
    values = {"uAP": result.totals["uAP"].value, "mAP": result.totals["mAP"].value}
    found = {(g.family, g.severity): g for g in result.groups}
    values["R@1%"] = result.totals["recall_at_false_share"].value
    for severity in SEVERITIES:
        values[f"R@1% {severity}"] = found[None, severity].measures["recall_at_false_share"].value
    for family in ("later", "unrelated"):
        if (family, None) in found:
            values[f"{family} above"] = found[family, None].measures["false_passing"].value
    return values


def order_tests(entries: Sequence[Entry], split: str) -> dict[str, tuple[list[Pair], list[Pair]]]:
    """Name -> pairs that must score high, pairs that must score low."""
    entries = [e for e in entries if split in ("all", e.split)]

    def pairs(*families: str) -> list[Pair]:
        return [(e.file, partner(e)) for e in entries if e.family in families]

    copies = {(e.file, partner(e)): e for e in entries if e.shared}
    mild = [pair for pair, e in copies.items() if e.severity == "mild"]
    whole = [pair for pair, e in copies.items() if e.family != "insert"]
    return {
        "original / reversed": (pairs("same"), pairs("reversed")),
        "mild / reversed": (mild, pairs("reversed")),
        "copies / reversed": (list(copies), pairs("reversed")),
        "original / shuffled": (pairs("same"), pairs("shuffled")),
        "mild / shuffled": (mild, pairs("shuffled")),
        "mild / shared middle": (mild, pairs("middle_a")),
        "copies but insert / shared middle": (whole, pairs("middle_a")),
        "copies / shared middle": (list(copies), pairs("middle_a")),
        "original / later": (pairs("same"), pairs("later")),
        "copies / later": (list(copies), pairs("later")),
    }


def aucs(entries: Sequence[Entry], scores: Scores, name: str, split: str) -> dict[str, float]:
    score = scores.of(name)
    return {
        test: roc_auc([score[p] for p in high], [score[p] for p in low]) if high and low else math.nan
        for test, (high, low) in order_tests(entries, split).items()
    }


def print_table(title: str, rows: dict[str, dict[str, float | None]]) -> None:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    print(f"\n{title}\n\n| | " + " | ".join(columns) + " |\n|---" + "|---:" * len(columns) + "|")
    for name, row in rows.items():
        cells = ("–" if (value := row.get(c)) is None or math.isnan(value) else f"{value:.3f}" for c in columns)
        print(f"| {name} | " + " | ".join(cells) + " |")


def report(entries: Sequence[Entry], scores: Scores, column: str) -> None:
    splits = [s for s in (*SPLITS, "all") if s == "all" or any(e.split == s for e in entries)]
    for split in splits:
        rows = {name: figures(ranked(entries, scores, name, split)) for name in scores.columns}
        print_table(f"Copies among all pairs, {split} (R: recall where 1 % of the false pairs pass)", rows)
    for split in splits:
        rows = {name: aucs(entries, scores, name, split) for name in scores.columns}
        print_table(f"AUC of what must score high over what must not, {split}", rows)
    families: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys((*BASELINES, column, "score")):
        if name in scores.columns:
            for group in ranked(entries, scores, name, "all").groups:
                if group.family and group.severity in SEVERITIES:
                    row = families.setdefault(f"{group.family} {group.severity}", {})
                    row[f"R@1% {name}"] = group.measures["recall_at_false_share"].value
                    row[f"uAP {name}"] = group.measures["uAP"].value
    print_table("Families, all", families)
    print_table("Seconds", scores.stages)


def record(entries: Sequence[Entry], scores: Scores, rows: Path) -> None:
    """A row for each way of scoring."""
    from conftest import Recorder

    recorder = Recorder(rows)
    queries, refs = (sum(e.role == role for e in entries) for role in ("query", "ref"))
    for name, stages in scores.stages.items():
        for column in [c for c in OURS if c in scores.columns] if name == OURS_NAME else [name]:
            quality = figures(ranked(entries, scores, column, "all")) | aucs(entries, scores, column, "all")
            provider = name if name == column else f"{name}:{column}"
            recorder.add(
                [sum(stages.values())], op="find copies", provider=provider, dtype="float32",
                shape=f"{queries}x{refs}", baseline="", stages=stages, note="synthetic set of bench/copies.py",
                quality={k: round(v, 4) for k, v in quality.items() if v is not None and not math.isnan(v)},
            )  # fmt: skip
    print(f"rows appended to {recorder.path}")


def evaluate_set(directory: Path, *, rows: Path | None, column: str, tables: Sequence[Path]) -> None:
    """Prints all tables. `tables`: pairs.csv files to judge instead of running ours."""
    entries = read_manifest(directory)
    if not entries:
        raise SystemExit(f"{directory}: no manifest.json; make the set with `build` first")
    scores = Scores(wanted_pairs(entries))
    with TemporaryDirectory(prefix="vsim-copies-") as out:
        stages = None
        if not tables:
            tables, stages = run_dedup(directory, entries, Path(out))
        read_scores(directory, tables, scores)
    if stages:
        scores.stages[OURS_NAME] = stages
    score_baselines(directory, scores)
    report(entries, scores, column)
    if rows:
        record(entries, scores, rows)
