"""What an agreement study says: size against agreement, figures, and a summary made of the numbers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segformer_spark.agreement.correlation import KINDS, correlate, exact_p
from segformer_spark.agreement.figures import draw_overview, draw_sizes
from segformer_spark.agreement.result import ModelAgreement
from segformer_spark.files.atomic import write_csv, write_text
from segformer_spark.run.console import logger

Row = dict[str, Any]
_LEVEL = 0.05
_COLUMNS = (
    *("rank", "model", "parameters", "maximum", "threshold", "p of the maximum", "95 % interval", "pairs"),
    "published",
)
Reference = Mapping[str, Mapping[str, float]]


def write_findings(results: Sequence[ModelAgreement], reference: Reference, folder: Path) -> Row:
    """correlation_vs_parameters.csv, the figures and summary.md; returns what is said about size."""
    sizes = against_size([r.parameters for r in results], {k: [r.maxima[k].value for r in results] for k in KINDS})
    against = [
        {"maximum": name, **{k: None if v is None else round(v, 6) for k, v in one.items()}}
        for name, one in sizes.items()
    ]
    write_csv(folder / "correlation_vs_parameters.csv", list(against[0]), against)
    size_lines = {name: describe_size(one) for name, one in sizes.items()}
    for name, line in size_lines.items():
        logger.info("parameters against %s: %s", name, line)
    draw_sizes(results, size_lines, reference, folder / "correlation_vs_parameters.png")
    draw_overview(results, size_lines, reference, folder / "agreement.png")
    write_text(folder / "summary.md", "\n".join(summary(results, reference, size_lines)) + "\n")
    return sizes


def against_size(parameters: Sequence[int], maxima: Mapping[str, Sequence[float | None]]) -> Row:
    """Correlation of parameters with maxima over models: r and rho, their p by the t distribution and, for few models,
    exact ones; null where undefined."""
    out: Row = {}
    for maximum_of, values in maxima.items():
        pairs = [(float(count), value) for count, value in zip(parameters, values, strict=True) if value is not None]
        counts, known = [count for count, _ in pairs], [value for _, value in pairs]
        r, rho = correlate("pearson", counts, known), correlate("spearman", counts, known)
        exact = {
            f"{name}_exact_p": exact_p(kind, counts, known) for name, kind in (("r", "pearson"), ("rho", "spearman"))
        }
        found = {"r": r.value, "r_p": r.p, "rho": rho.value, "rho_p": rho.p}
        out[f"max_{maximum_of}"] = {**found, **exact, "n": len(pairs)}
    return out


def describe_size(row: Row) -> str:
    """One line for the log and the figure; undefined coefficients are named."""
    if row["r"] is None or row["rho"] is None:
        return f"undefined (n {row['n']})"

    def p_of(name: str) -> str:
        exact = row[f"{name}_exact_p"]
        return f"p {row[f'{name}_p']:.2f}" + ("" if exact is None else f", exact {exact:.2f}")

    return f"r {row['r']:.3f} ({p_of('r')}), rho {row['rho']:.3f} ({p_of('rho')}), n {row['n']}"


def summary(results: Sequence[ModelAgreement], reference: Reference, size_lines: Mapping[str, str]) -> Iterator[str]:
    """A ranking per kind of correlation, the maxima beyond chance, and size: no more than the numbers say."""
    yield "# Agreement with human ratings"
    for kind in KINDS:
        known = sorted(
            (r for r in results if r.maxima[kind].value is not None), key=lambda r: -(r.maxima[kind].value or 0)
        )
        yield from ("", f"## Ranking by the highest {kind} correlation", "")
        yield f"| {' | '.join(_COLUMNS)} |"
        yield "|---" * len(_COLUMNS) + "|"
        for rank, one in enumerate(known, 1):
            best, published = one.maxima[kind], reference.get(one.name, {}).get(f"max_{kind}")
            interval = "" if best.low is None or best.high is None else f"{best.low:.3f} to {best.high:.3f}"
            yield (
                f"| {rank} | {one.name} | {one.parameters:,} | {best.value:.3f} | {best.threshold:g} | "
                f"{'' if best.p is None else f'{best.p:.4f}'} | {interval} | {one.num_items} | "
                f"{'' if published is None else f'{published:.3f}'} |"
            )
        undefined = [one.name for one in results if one not in known]
        if undefined:
            yield f"\nUndefined for {', '.join(undefined)}: a decision that never changes, or fewer than three pairs."
        tested = {one.name: p for one in known if (p := one.maxima[kind].p) is not None}
        named = ", ".join(name for name, p in tested.items() if p < _LEVEL) or "none"
        yield (
            f"\nMaxima that permuted ratings reach in less than {100 * _LEVEL:g} % of cases: {named}, of {len(tested)} "
            "models (not adjusted for their number)."
        )
    yield from ("", "## Size", "")
    for name, line in size_lines.items():
        yield f"- parameters against {name}: {line}"
