"""README's speed tables, one per machine, made from the rows in bench/results.

    python bench/readme_table.py [--check] [--rows bench/results] [--readme README.md]

Rewrites what stands between the two marks. `--check` writes nothing and ends with 1 where README differs from the rows.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from vsim_fast.benchmark import Machine, Row, describe, digits, encoding_share, peer_row, read_rows

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- speed: written by bench/readme_table.py -->", "<!-- end of speed -->"


BASELINE = ""
"""The peer that a row itself names."""


@dataclass(frozen=True)
class Ours:
    """One line: the newest row of the first of these providers that has one, beside its peers in the same run."""

    providers: tuple[str, ...]
    detail: str = ""
    """What sets this line apart from the others of its work."""
    peers: tuple[str, ...] = (BASELINE,)
    """Those without a row are left out; no line without any, unless it is the baseline that the row may not have."""
    slowest: bool = False
    """Only the slowest of the peers."""
    dtype: str | None = None


@dataclass(frozen=True)
class Work:
    """The lines about one thing, again for each shape that it was timed with."""

    words: str
    """{N} stands for the size of axis N in the row's shape, {model} for the ViT in it, {shape} for all, {dtype}."""
    op: str
    ours: tuple[Ours, ...]
    shape: str = ".*"
    """A regular expression."""
    error: str = ""
    """What the error is of."""


DEFAULT = tuple(f"vsim_fast:{name}" for name in ("cuda", "triton", "cpp", "torch", "reference"))
"""Backends in the order in which a call takes them."""
PEERS = BASELINE, "torch compiled"
OURS = (Ours(DEFAULT, peers=PEERS),)
CORES = Ours(("vsim_fast:cpp",), "one core"), Ours(("vsim_fast:cpp, 2 threads",), "two cores", ("vsim_fast:cpp",))
PIXELS = Ours(("vsim_fast:triton",), peers=PEERS), Ours(("vsim_fast:torch",), "rounding to 8 bits as PIL does", PEERS)
PRECISIONS = tuple(Ours(("vsim_fast",), dtype, dtype=dtype) for dtype in ("float32", "bfloat16", "float16"))
PAIRS = *PRECISIONS, Ours(("vsim_fast, encoder loaded",), "encoder loaded")
WAYS = tuple(
    Ours((name,), name)
    for name in (
        "eager", "eager, unfused attention", "eager bfloat16", "compiled", "compiled fp32", "graphs", "compiled+graphs",
        "eager float8", "compiled float8",
    )
)  # fmt: skip
ROOFS = "decode alone", "encode alone"
ENCODE, EMBED = (Ours((f"vsim_fast:{name}",), peers=ROOFS, slowest=True) for name in ("encode_videos", "embed"))
RESIZE, DISTANCES, LEVELS = "another resize", "of distances in the hundreds", "a level of 255 is 0.017"

WORKS = (
    Work("`vsim analyze`, {T} frames, {model} at {S} px", "analyze", PRECISIONS, error=RESIZE),
    Work("`vsim pair --visualize`, {N} pairs, {model} at {S} px", "pairs with pictures", PAIRS, error=RESIZE),
    Work("`vsim pair` without pictures, {N} pairs, {model} at {S} px", "pairs", PAIRS, error=RESIZE),
    Work("`vsim pair --video`, {T} frames at {S} px, `builtin`", "video against a copy", (Ours(("vsim_fast",)),)),
    Work("file to features, {T} frames, {model} at {S} px, {dtype}", "file to features", (Ours(("engine",)),)),
    Work("encoding alone, {T} frames, {model} at {S} px", "encode", WAYS, error="of patch cosines"),
    Work("decoding alone, {T} frames", "decode", tuple(Ours((f"{n} readers",), f"{n} at a time") for n in (1, 8))),
    Work("`encode_videos`, {shape}", "batch of videos", (ENCODE,)),
    Work("`embed`, {shape}", "batch of videos", (EMBED,)),
    Work("`embed`, {shape}, all done before", "nothing to do", (Ours(("vsim_fast:embed",)),)),
    Work("`position_similarity`, {T} × {P} × {D}, {dtype}", "position_similarity", OURS, r".*\d"),
    Work("`intra_frame_similarity`, {T} × {P} × {D}, {dtype}", "intra_frame_similarity", OURS, r".*\d"),
    Work('`intra_frame_similarity(reduce="stats")`, the same', "intra_frame_similarity", OURS, ".*-stats"),
    Work("`frame_similarity`, {T} × {P} × {D}, {dtype}", "frame_similarity", OURS, r".*\d"),
    Work("`best_match`, {B} pairs of {P} × {D}, {dtype}", "best_match", OURS),
    Work("`nv12_to_pixels`, {B} frames {W} × {H} → {S}², {dtype}", "nv12_to_pixels", PIXELS, error=LEVELS),
    Work("`top_k`, queries {Q}, vectors {N} × {D}, {dtype}, best {k}", "top_k", OURS),
    Work("`best_cosines`, {N} × {Ka} tokens and {M} × {Kb}, {D} numbers", "best_cosines", CORES),
    Work("`attention`, {B} × {H} heads of {N} × {d}, {dtype}", "attention", CORES),
    Work("`derivatives`, {B} videos of {T} × {D}, {S} windows", "derivatives", OURS),
    Work(
        "`dtw_pairwise`, {N} × {T} × {D}, all pairs", "dtw_pairwise", (Ours(("vsim_fast:cuda",)), *CORES),
        r"N\d{1,3}-T\d+-D\d+", DISTANCES,
    ),
    Work(
        "`dtw_pairwise`, {N} × {T} × {D}, all pairs", "dtw_pairwise", (Ours(("vsim_fast:cuda",)),),
        r"N\d{4,}-T\d+-D\d+", DISTANCES + ", against the C++ core",
    ),
    Work("`dtw_pairwise`, {N} × {T} × {D}, band of {R}", "dtw_pairwise", CORES, r".*-R\d+", DISTANCES),
    Work("`dtw`, one pair of {T} × {D}", "dtw", (Ours(("vsim_fast:cpp",)),), error=DISTANCES),
    Work("all pairs of {N} videos for copies, encoded before", "score pairs of copies", (Ours(("vsim_fast",)),)),
)  # fmt: skip

NAMES = {
    "straightforward": "[straightforward script](bench/straightforward.py)",
    "original": "[VFI-Similarity's flow](bench/original_pairs.py)",
    "faiss flat, matrix products": "FAISS flat by matrix products, float32",
    "vsim_fast:cpp": "one core of ours",
    "decode alone": "decoding alone",
    "decode roof": "decoding alone",
    "encode alone": "encoding alone",
    "encoder roof": "encoding alone",
}
"""Peers whose provider does not say enough."""

NO_GPU = """
No GPU row exists yet: the Triton kernels and the CUDA sources compile for sm_80 and sm_90 without spills, the Triton
kernels pass under Triton's interpreter, CUDA time warping on an emulated grid of threads, and the NVDEC adapter passes
against a model of the decoder that recycles its buffers. `bench/gpu.sh correctness` builds and tests everything on
a GPU, `bench/gpu.sh timings` times it: two calls of ten minutes each."""


def duration(ms: float) -> str:
    scale, unit = (1e3, "µs") if ms < 1 else (1, "ms") if ms < 1000 else (1e-3, "s")
    return f"{digits(ms * scale)} {unit}"


def in_words(words: str, row: Row) -> str:
    axes = dict(re.findall(r"(?:^|-)([A-Za-z]+)(\d+)(?=-|$)", row.shape))
    vit = r"(?:timm:)?vit_(\w)[a-z]*_patch(\d+)\w*(?:@random)?"
    model, shape = re.search(vit, row.shape), re.sub(vit, lambda m: f"ViT-{m[1].upper()}/{m[2]}", row.shape)
    sizes = {axis: f"{int(size):,}" if int(size) >= 10_000 else size for axis, size in axes.items()}
    return words.format(model=model and f"ViT-{model[1].upper()}/{model[2]}", shape=shape, dtype=row.dtype, **sizes)


def choose(ours: Ours, rows: list[Row]) -> tuple[Row, list[Row]] | None:
    """(row, its peers) of a line among `rows`, all of one op and shape."""
    for provider in ours.providers:
        mine = [row for row in rows if row.provider == provider and ours.dtype in (None, row.dtype)]
        if not mine:
            continue
        row = mine[-1]
        names = [(row.baseline if name == BASELINE else name) for name in ours.peers]
        peers = [peer for name in names if name and (peer := peer_row(row, name, rows))]
        if ours.slowest:
            peers = sorted(peers, key=lambda peer: peer.p50_ms)[-1:]
        return (row, peers) if peers or BASELINE in ours.peers else None
    return None


def rate(row: Row) -> str:
    text = "–" if row.rate is None else f"{digits(row.rate)} {row.unit}"
    if row.of_ceiling is not None:
        return f"{text}, {row.of_ceiling:.0%}"
    encoding = encoding_share(row)
    return text if encoding is None else f"{text}, {encoding:.0%} encoding"


def error(value: float | None, of: str) -> str:
    if value is None:
        return "–"
    text = digits(value, 2) if value >= 0.01 or value == 0 else f"{value:.1e}".replace("e-0", "e-")
    return f"{text} ({of})" if of else text


def line(words: str, error_of: str, row: Row, peers: list[Row], link: str) -> str:
    names = [f"{NAMES.get(peer.provider, peer.provider)}, {duration(peer.p50_ms)}" for peer in peers]
    ratios = [peer.p50_ms / row.p50_ms for peer in peers]
    return "| " + " | ".join((
        words, "; ".join(names) or "–", duration(row.p50_ms),
        "; ".join(f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.1f}×" for ratio in ratios) or "–", rate(row),
        error(row.max_error, error_of), f"[{row.machine.commit[:7]}]({link})" + r"\*" * row.machine.dirty,
    )) + " |"  # fmt: skip


def machine_lines(rows: list[Row], links: dict[int, str]) -> list[str]:
    """The table's lines from the rows of one machine."""
    lines = []
    for work in WORKS:
        about = [row for row in rows if row.op == work.op and re.fullmatch(work.shape, row.shape)]
        for shape in dict.fromkeys(row.shape for row in about):
            same = [row for row in about if row.shape == shape]
            found = [(ours.detail, *chosen) for ours in work.ours if (chosen := choose(ours, same))]
            for n, (detail, row, peers) in enumerate(found):
                words = "the same" if n else in_words(work.words, row)
                lines.append(line(f"{words}, {detail}" if detail else words, work.error, row, peers, links[id(row)]))
    return lines


def speed_section(results: Path, beside: Path) -> str:
    """What stands between the marks of a README in the folder `beside`."""
    rows, links = [], {}
    for file in sorted(results.glob("*.jsonl")):
        for number, row in enumerate(read_rows(file), 1):
            rows.append(row)
            links[id(row)] = f"{os.path.relpath(file, beside)}#L{number}"
    machines: dict[Machine, list[Row]] = {}
    for row in rows:
        machines.setdefault(replace(row.machine, commit="", dirty=False), []).append(row)
    parts = []
    for machine in sorted(machines, key=lambda one: (one.device != "cuda", one.name)):
        if lines := machine_lines(machines[machine], links):
            head = ["| work | peers | ours | ratio | rate | largest error | row |", "|---|---|---:|---:|---|---|---|"]
            parts.append("\n".join([f"\n{describe(machine)}:\n", *head, *lines]))
    text = "\n".join(parts)
    if r"\*" in text:
        text += "\n\n\\* measured with changes that were not committed."
    if not any(machine.device == "cuda" for machine in machines):
        text += "\n" + NO_GPU
    return text + "\n\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--rows", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    given = parser.parse_args(arguments)
    before = given.readme.read_text()
    start, end = (before.find(mark) for mark in (BEGIN, END))
    if not 0 <= start < end:
        parser.error(f"{given.readme} must hold {BEGIN!r} and, after it, {END!r}")
    after = before[:start] + BEGIN + "\n" + speed_section(given.rows, given.readme.parent) + before[end:]
    if after == before:
        return 0
    if given.check:
        print(f"{given.readme} differs from the rows: run python bench/readme_table.py", file=sys.stderr)
        return 1
    given.readme.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
