"""Page: the report of a build as one HTML file that needs nothing else.

Top down: the verdict and its headline figures, accuracy against latency, what was rejected and why,
how answers changed, where the model runs, by which evidence each figure is known, and how to get
the same again. No script, no font, no address outside; every text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from edgekit_converters import plots
from edgekit_converters.evaluate import Evaluation
from edgekit_converters.page_style import STYLE
from edgekit_converters.plots import Axis, Point
from edgekit_converters.report import BundleReport, Details, VariantDetail, VariantReport
from edgekit_converters.thumbnails import thumbnail
from edgekit_converters.workshop import Workshop

_MANY_CLASSES = 14
_MEANING = {
    "executed": "ran here, on the machine it is for",
    "simulated": "the same engine ran it on another machine: arithmetic shown, speed not",
    "estimated": "computed by a model of the hardware",
    "linted": "checked against the engine's rules, not run",
}


def render(found: BundleReport, details: Details, *, workshop: Workshop) -> bytes:
    """The page for one bundle."""
    title = f"{found.name} {found.version} for {found.profile}"
    by_name = {detail.name: detail for detail in details.variants}
    sections = [
        _headline(found),
        _trade(found),
        _variants(found),
        _rejected(found),
        _latencies(details),
        *_answers(found, by_name, workshop),
        _operators(details),
        _evidence(found),
        _reproduce(found, details, workshop),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"{''.join(section for section in sections if section)}</main></body></html>\n"
    ).encode()


def _headline(found: BundleReport) -> str:
    gate = found.gate
    reasons = "".join(f"<p>{escape(reason)}</p>" for reason in gate.reasons)
    return (
        f'<header><p class="over">edgekit build report</p><h1>{escape(found.name)}'
        f" <small>{escape(found.version)}</small></h1><p>for <b>{escape(found.profile)}</b>,"
        f" measured on {escape(found.measured_on)}</p>"
        f'<p><span class="badge {gate.outcome}">gate {gate.outcome.replace("_", " ")}</span>'
        f' <code class="digest">{escape(found.digest or "")}</code></p>{reasons}</header>'
        f'<div class="cards">{"".join(_cards(found))}</div>'
    )


def _cards(found: BundleReport) -> Iterable[str]:
    best = found.variants[0]
    parent = next((v for v in found.variants if v.precision.startswith("fp")), best)
    if best.speedup is not None and best is not parent:
        low, high = best.speedup_quartiles or (best.speedup, best.speedup)
        yield _card(
            f"{best.speedup:.2f}x", "faster than float", f"middle half {low:.2f} to {high:.2f}"
        )
    elif best.latency_ms is None:
        yield _card("-", "speed-up", f"not measured: {best.evidence}")
    if best.latency_ms is not None:
        p50, p99 = best.latency_ms.p50, best.latency_ms.p99
        yield _card(f"{p50:.2f} ms", "latency p50", f"p99 {p99:.2f} ms, batch 1")
    if best.agreement is not None:
        interval = _interval(best.agreement_ci95)
        yield _card(f"{best.agreement:.1%}", "same answer as the source", interval)
    if best.metric is not None and best.metric.name != "agreement":
        metric = best.metric
        detail = f"float {metric.float_value:.3f}, {_interval(metric.ci95)}"
        yield _card(f"{metric.value:.3f}", metric.name, detail)
    ratio = f"float {parent.size_bytes / 1e6:.2f} MB" if best is not parent else "float"
    yield _card(f"{best.size_bytes / 1e6:.2f} MB", f"artefact {best.name}", ratio)


def _trade(found: BundleReport) -> str:
    """Accuracy against latency, relative to float, of what ships and of what does not."""
    points = []
    for variant in found.variants:
        if variant.speedup is not None and variant.agreement is not None:
            low, high = variant.agreement_ci95 or (None, None)
            style = "float" if variant.precision.startswith("fp") else "ship"
            points.append(
                Point(
                    x=1 / variant.speedup,
                    y=variant.agreement,
                    label=variant.name,
                    style=style,
                    low=low,
                    high=high,
                )
            )
    points += [
        Point(
            x=1 / lost.speedup,
            y=lost.agreement,
            # Pass and datatypes are the same for all; what differs comes last.
            label=lost.scheme.rpartition("/")[2],
            style="lost",
        )
        for lost in found.rejected
        if lost.speedup and lost.agreement is not None
    ]
    if len(points) < 2:
        return ""
    heights = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    drawing = plots.scatter(
        points,
        x=plots.around("latency, as a share of float", [p.x for p in points], low=0.0),
        y=plots.around("agreement with the source", heights),
        title="Agreement against latency",
        front=True,
    )
    text = (
        "Further left is faster, further up is closer to the source; bars are 95 % intervals."
        " Hollow points were rejected, the line joins what nothing beats."
    )
    return _section("Accuracy against latency", text, _figure(drawing))


def _variants(found: BundleReport) -> str:
    rows = [
        (
            f"<b>{escape(v.name)}</b>{'' if v.proven else ' <em>unproven</em>'}",
            f"{escape(v.engine)} ({escape(v.accelerator)})",
            escape(v.precision),
            f"{v.size_bytes / 1e6:.2f}",
            f"{v.latency_ms.p50:.2f} / {v.latency_ms.p99:.2f}" if v.latency_ms else "-",
            f"{v.speedup:.2f}x" if v.speedup else "-",
            _share(v.agreement),
            f"{v.metric.name} {v.metric.value:.3f}" if v.metric else "-",
            "-" if v.max_abs_error is None else f"{v.max_abs_error:.3g}",
            str(v.memory_mb),
        )
        for v in found.variants
    ]
    head = ("variant", "engine", "precision", "MB", "p50 / p99 ms", "speed-up", "agreement")
    table = _table((*head, "metric", "largest error", "memory MB, estimated"), rows)
    text = "The first is the default; a device may move along them from accurate to fast."
    return _section("Variants", text, table)


def _rejected(found: BundleReport) -> str:
    if not found.rejected:
        return ""
    rows = [
        (
            f"<code>{escape(lost.scheme)}</code>",
            escape(lost.engine or ""),
            escape(lost.reason),
            f"{lost.speedup:.2f}x" if lost.speedup else "-",
            _share(lost.agreement),
        )
        for lost in found.rejected
    ]
    table = _table(("scheme", "engine", "why it does not ship", "speed-up", "agreement"), rows)
    return _section("Rejected", "", table)


def _latencies(details: Details) -> str:
    timed = [detail for detail in details.variants if detail.timing is not None]
    if not timed:
        return ""
    rows = [
        (detail.name, [ms for block in detail.timing.blocks_ms for ms in block], _style(detail))
        for detail in timed
        if detail.timing is not None
    ]
    drawing = plots.strips(rows, label="milliseconds", title="Latency of each run")
    text = (
        "Every run at batch 1; artefacts took turns in short blocks, so that a busy moment of the"
        f" machine hits both. Load average {', '.join(f'{x:.1f}' for x in details.load_average)}."
    )
    return _section("Latency", text, _figure(drawing))


def _answers(
    found: BundleReport, by_name: dict[str, VariantDetail], workshop: Workshop
) -> Iterable[str]:
    """How the default variant's answers differ from the source's."""
    best = found.variants[0]
    evaluation = by_name[best.name].evaluation
    if evaluation is None:
        return
    if evaluation.max_abs_error == 0:
        text = f"{best.name} gives the source's own answers on {evaluation.samples} samples."
        yield _section("Answers", f"{text} Not one differs in any bit.", "")
        return
    drawings = []
    if evaluation.errors:
        drawings.append(
            _figure(
                plots.histogram(
                    evaluation.errors,
                    high=evaluation.max_abs_error or 1.0,
                    label="largest error of a sample",
                    title="Largest error of each sample",
                ),
                f"Outputs have a root mean square of {evaluation.scale:.3g}.",
            )
        )
    if evaluation.confidences:
        unit = Axis(label="source", low=0.0, high=1.0)
        drawing = plots.cloud(
            evaluation.confidences,
            x=unit,
            y=Axis(label=best.name, low=0.0, high=1.0),
            title="Confidence in the source's answer",
        )
        drawings.append(
            _figure(drawing, "Probability of the source's top answer, before and after.")
        )
    text = f"{best.name} against the source on {evaluation.samples} samples."
    yield _section("Answers", text, f'<div class="pair">{"".join(drawings)}</div>')
    yield _classes(evaluation, best, workshop)
    yield _worst(evaluation, workshop)


def _classes(evaluation: Evaluation, best: VariantReport, workshop: Workshop) -> str:
    if not evaluation.classes:
        return ""
    moved = [c for c in evaluation.classes if c.right != c.float_right]
    shown = sorted(moved, key=lambda c: (c.right - c.float_right, c.label))[:_MANY_CLASSES]
    text = f"{len(moved)} of {len(evaluation.classes)} classes have another share of right answers."
    if not shown:
        return _section("Classes", text, "")
    rows = [
        (f"{_class_name(c.label, workshop)} ({c.samples})", c.float_right, c.right) for c in shown
    ]
    rounded = [(name, round(a, 3), round(b, 3)) for name, a, b in rows]
    drawing = plots.bars(rounded, names=("source", best.name), title="Right answers by class")
    text += " Source above, artefact below; largest losses first"
    text += "." if len(shown) == len(moved) else f", {len(shown)} shown."
    return _section("Classes", text, _figure(drawing))


def _worst(evaluation: Evaluation, workshop: Workshop) -> str:
    samples = workshop.parts.evaluation
    if not evaluation.worst or samples is None:
        return ""
    cells = []
    for worst in evaluation.worst:
        picture = thumbnail(samples, worst.position)
        image = f'<img alt="" src="{picture}">' if picture else ""
        lines = [f"sample {worst.position}, error {worst.error:.3g}"]
        if worst.answer is not None and worst.float_answer is not None:
            same = worst.answer == worst.float_answer
            before = _class_name(worst.float_answer, workshop)
            after = _class_name(worst.answer, workshop)
            lines.append(before if same else f"{before} → {after}")
        if worst.label is not None:
            lines.append(f"labelled {_class_name(worst.label, workshop)}")
        text = "<br>".join(escape(line) for line in lines)
        cells.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    note = "Changed answers first, then the largest errors."
    return _section("Furthest from the source", note, f'<div class="tiles">{"".join(cells)}</div>')


def _operators(details: Details) -> str:
    names = sorted({op for detail in details.variants for op in detail.operators})
    rows = [
        (f"<code>{escape(op)}</code>", *(str(d.operators.get(op, 0)) for d in details.variants))
        for op in names
    ]
    table = _table(("operator", *(escape(d.name) for d in details.variants)), rows)
    text = "Nodes of each type in the artefact, before the engine fuses them."
    return _section("Operators", text, table)


def _evidence(found: BundleReport) -> str:
    rows = []
    for v in found.variants:
        known = v.figure_evidence
        each = (known.agreement, known.max_abs_error, known.latency_ms, known.placement)
        rows.append((f"<b>{escape(v.name)}</b>", v.evidence, *(e or "-" for e in each)))
    head = ("variant", "artefact", "agreement", "largest error", "latency", "placement")
    seen = {cell for row in rows for cell in row[1:]}
    meanings = "".join(
        f"<dt>{level}</dt><dd>{escape(text)}</dd>"
        for level, text in _MEANING.items()
        if level in seen
    )
    return _section("Evidence", "", f"{_table(head, rows)}<dl>{meanings}</dl>")


def _reproduce(found: BundleReport, details: Details, workshop: Workshop) -> str:
    data = found.data
    command = f"edgekit build {workshop.source.path.name} --profile {found.profile}"
    command += f" --name {found.name} --version {found.version}"
    for name, shape in workshop.shapes.items():
        command += f" --input {name}={'x'.join(map(str, shape))}"
    if data.origin == "given":
        command += " --data SAMPLES"
    facts = [
        ("source", f"sha256:{workshop.source.sha256}"),
        (
            "samples",
            f"{data.calibration} calibration, {data.golden} golden ({data.origin}),"
            f" {data.evaluation} evaluation, from {data.groups} groups",
        ),
        ("tools", ", ".join(f"{name} {version}" for name, version in details.tools.items())),
        ("machine", details.machine),
        ("build time", f"{found.seconds:.0f} s"),
        *(("note", note) for note in found.notes),
    ]
    rows = [(escape(title), escape(text)) for title, text in facts]
    text = "The same source, data, recipe, profile and tools give the same digest."
    return _section("Again", text, f"<pre>{escape(command)}</pre>{_table(('', ''), rows)}")


def _section(title: str, text: str, body: str) -> str:
    lead = f"<p>{escape(text)}</p>" if text else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{body}</section>"


def _figure(drawing: str, caption: str = "") -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{drawing}{below}</figure>"


def _card(value: str, title: str, detail: str) -> str:
    return f"<div><b>{escape(value)}</b><span>{escape(title)}</span><i>{escape(detail)}</i></div>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are markup already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    header = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{header}<tbody>{body}</tbody></table></div>'


def _style(detail: VariantDetail) -> str:
    return "ship" if detail.name.startswith("int8") else "float"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _interval(ends: tuple[float, float] | None) -> str:
    return f"95 % interval {ends[0]:.3f} to {ends[1]:.3f}" if ends else ""


def _class_name(label: int, workshop: Workshop) -> str:
    names = workshop.data.names if workshop.data else ()
    return names[label] if label < len(names) else f"class {label}"
