"""Answers: how each variant's answers differ from the float model's, on the evaluation samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from edgekit_converters import plots
from edgekit_converters.axes import Axis
from edgekit_converters.evaluate import Evaluation
from edgekit_converters.metrics.changes import MIN_CLASS_GROUPS, ClassChange, Flips
from edgekit_converters.metrics.spread import OutputSpread, Spread
from edgekit_converters.report import BundleReport, Details
from edgekit_converters.sections import Section, is_float
from edgekit_converters.sections.markup import absent, facts, figure, fold, pair, paragraph, table
from edgekit_converters.sections.names import class_name
from edgekit_converters.sections.numbers import (
    NOT_MEASURED,
    count,
    metric_name,
    points,
    probability,
    share,
    within,
)
from edgekit_converters.workshop import Workshop

_DRAWN_CLASSES = 12
_LISTED_CLASSES = 200
_LISTED_OUTPUTS = 40


def answers(found: BundleReport, details: Details, workshop: Workshop) -> Section | None:
    """A part for each variant that is not float; None where none was evaluated."""
    by_name = {detail.name: detail.evaluation for detail in details.variants}
    evaluated = [
        (v, e) for v in found.variants if not is_float(v) and (e := by_name[v.name]) is not None
    ]
    if not evaluated:
        return None
    parts = []
    for position, (variant, evaluation) in enumerate(evaluated):
        body = _part(variant.name, evaluation, workshop)
        title = f"{variant.name}, {variant.precision}"
        parts.append(f"<h3>{escape(title)}</h3>{body}" if position == 0 else fold(title, f"{body}"))
    lead = (
        "Both models answered the same samples, which nothing was chosen by, so every comparison"
        " is paired."
    )
    return Section("answers", "Accuracy in detail", "".join(parts), lead)


def _part(name: str, evaluation: Evaluation, workshop: Workshop) -> str:
    drawings = [*_errors(evaluation), *_confidences(name, evaluation)]
    return "".join(
        (
            facts(_paired(evaluation)),
            pair(drawings) if drawings else "",
            _classes(name, evaluation, workshop),
            _outputs(name, evaluation.outputs),
        )
    )


def _paired(evaluation: Evaluation) -> Iterable[tuple[str, str]]:
    extent = f"{count(evaluation.samples, 'sample')} in {count(evaluation.groups, 'group')}"
    yield "compared on", escape(extent)
    if evaluation.flips is not None:
        yield from _flips(evaluation.flips)
    metric = evaluation.metric
    both = f"{metric.value:.4g}, float {metric.float_value:.4g}"
    yield metric_name(metric.name), escape(both)
    drop = f"{points(metric.drop)}, {within(metric.drop_ci95)}"
    yield "drop", escape(drop)
    if evaluation.finite:
        largest = f"{evaluation.max_abs_error:.3g}, outputs have a root mean square of"
        yield "largest error", escape(f"{largest} {evaluation.scale:.3g}")
    else:
        yield "largest error", "answers that are not numbers"


def _flips(flips: Flips) -> Iterable[tuple[str, str]]:
    changed = f"{flips.changed}, {share(flips.rate)} ({within(flips.rate_ci95)})"
    yield "changed answers", escape(changed)
    if flips.lost is None or flips.won is None:
        yield "right or wrong", f"{NOT_MEASURED}: there are no labels"
        return
    yield "right → wrong", str(flips.lost)
    yield "wrong → right", str(flips.won)
    test = f"{probability(flips.mcnemar_p)}, exact, as if samples were independent"
    yield "McNemar test", escape(test)


def _errors(evaluation: Evaluation) -> Iterable[str]:
    if evaluation.errors and evaluation.max_abs_error > 0:
        drawing = plots.histogram(
            evaluation.errors,
            high=evaluation.max_abs_error,
            label="largest error of a sample",
            title="Largest error of each sample",
        )
        caption = f"Outputs have a root mean square of {evaluation.scale:.3g}."
        yield figure(drawing, caption, title="Errors")


def _confidences(name: str, evaluation: Evaluation) -> Iterable[str]:
    if evaluation.confidences:
        drawing = plots.cloud(
            evaluation.confidences,
            x=Axis(label="float", low=0.0, high=1.0, unit="share"),
            y=Axis(label=name, low=0.0, high=1.0, unit="share"),
            title="Confidence in the float model's answer",
        )
        caption = "Probability of the float model's top answer, one point a sample."
        yield figure(drawing, caption, title="Confidence")


def _classes(name: str, evaluation: Evaluation, workshop: Workshop) -> str:
    if not evaluation.classes:
        return ""
    moved = sorted(
        (change for change in evaluation.classes if change.drop != 0),
        key=lambda change: (-abs(change.drop), change.label),
    )
    text = f"{len(moved)} of {count(len(evaluation.classes), 'class', 'classes')} changed"
    if not moved:
        return f"<h4>Classes</h4>{paragraph(f'{text}.')}"
    drawn = moved[:_DRAWN_CLASSES]
    text += "; largest changes first, float above, artefact below."
    if any(change.drop_ci95 is None for change in drawn):
        text += (
            f" * fewer than {MIN_CLASS_GROUPS} groups show the class: too few to say more than"
            " that these samples changed."
        )
    rows = [
        (
            f"{class_name(c.label, workshop)}{'*' if c.drop_ci95 is None else ''}",
            [
                (c.float_right, "float", share(c.float_right)),
                (c.right, "ship", f"{share(c.right)} of {c.samples}"),
            ],
        )
        for c in drawn
    ]
    drawing = figure(plots.bars(rows, title=f"Classes, float and {name}"), title="Classes")
    head = ("class", "samples", "groups", "float", name, "drop", "95 % interval")
    listed = table(
        head, [_class_row(c, workshop) for c in moved[:_LISTED_CLASSES]], numbers=range(1, 7)
    )
    more = f", the first {_LISTED_CLASSES}" if len(moved) > _LISTED_CLASSES else ""
    return drawing + paragraph(text) + fold(f"Changed classes as a table{more}", listed)


def _class_row(change: ClassChange, workshop: Workshop) -> Sequence[str]:
    ends = change.drop_ci95
    interval = f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f} points" if ends else "too few groups"
    return (
        escape(class_name(change.label, workshop)),
        str(change.samples),
        str(change.groups),
        share(change.float_right),
        share(change.right),
        points(change.drop),
        interval,
    )


def _outputs(name: str, outputs: Sequence[OutputSpread]) -> str:
    if not outputs:
        return ""
    head = ("output", "model", "mean", "std", "lowest", "highest", "cut off", "constant", "finite")
    rows = [
        row
        for output in outputs[:_LISTED_OUTPUTS]
        for row in (
            _spread_row(f"<code>{escape(output.name)}</code>", "float", output.source),
            _spread_row("", escape(name), output.artefact),
        )
    ]
    shown = table(head, rows, numbers=range(2, 9))
    note = paragraph(
        "Cut off: share of numbers at the very ends of the range, where saturation shows."
        " Constant: share that no sample changes."
    )
    more = f", the first {_LISTED_OUTPUTS}" if len(outputs) > _LISTED_OUTPUTS else ""
    return fold(f"Statistics of the outputs{more}", note + shown)


def _spread_row(output: str, model: str, spread: Spread | None) -> Sequence[str]:
    if spread is None:
        return output, model, *(absent() for _ in range(7))
    numbers = (spread.mean, spread.std, spread.low, spread.high)
    shares = (spread.saturated, spread.constant, spread.finite)
    return output, model, *(f"{value:.4g}" for value in numbers), *(share(s) for s in shares)
