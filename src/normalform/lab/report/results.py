"""The page's upper half: what was done, the main figure, and the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from normalform.lab.report import series, style, words
from normalform.lab.report.findings import Findings, Network
from normalform.lab.report.markup import slot, still, symbol, table, text
from normalform.lab.report.questions import Comparison, Question

_DETECTABLE = (
    "Differences are paired: the same seeds and the same test {samples} on both sides. {point}The "
    "95 % interval is for other seeds and other test {samples}. "
    "What the run could have detected is the true difference that four runs in five like this one "
    "would have told from zero; smaller ones can hide."
)


def _about(findings: Findings) -> str:
    point = f"A point is one percentage point of test {findings.metric.quantity}. "
    point = point if findings.metric.percent else ""
    return _DETECTABLE.format(point=point, samples=findings.samples)


def header(findings: Findings, asked: Sequence[Question]) -> str:
    """Title, what was done, and the shortest answers."""
    data, config = findings.meta["data"], findings.meta["config"]
    arms = len(findings.networks[0].arms)
    done, planned = len(findings.rows), len(findings.meta["runs"])
    ends = " and ".join(n.ends for n in findings.networks)
    where = f"small networks that end in maps of {ends}"
    if findings.own:
        where = f"the network {findings.networks[0].title}"
    epochs, seeds = words.count(config["epochs"], "epoch"), words.count(findings.seeds, "seed")
    lead = (
        f"{arms} ways to normalize or not, in {where}, trained on {data['title']}: "
        f"{epochs}, {seeds}, {words.count(done, 'run')}. "
        f"NBS, the normalization batch size, is how many {findings.samples} share their batch "
        "statistics."
    )
    short = words.summary(findings, asked)
    parts = [f"<h1>Normalization and batch size on {text(data['title'])}</h1>"]
    parts.append(f'<p class="lead">{text(lead)}</p>')
    if done < planned:
        unfinished = f"{planned - done} of {planned} runs are not finished. This report is partial."
        parts.append(f'<div class="short warning">{text(unfinished)}</div>')
    for damaged in findings.damaged:
        parts.append(f'<div class="short warning">{text(damaged)}</div>')
    if findings.seeds == 1:
        alone = text(words.about_seeds(1, findings.samples))
        parts.append(f'<div class="short warning">{alone}</div>')
    if short:
        items = "".join(f"<li>{text(line)}</li>" for line in short)
        parts.append(f'<div class="short"><h2>In short</h2><ul>{items}</ul></div>')
    return "\n".join(parts)


def legend(titles: Mapping[str, str], sizes: Sequence[str]) -> str:
    """Buttons that show and hide a norm in every chart, and what the dashes mean.

    Args:
        titles: what to call each key of :attr:`Arm.key`.
        sizes: the normalization batch sizes that have a dash.
    """
    keys = list(titles)
    buttons = [
        f'<button type="button" aria-pressed="true" data-key="{text(key)}">'
        f"{symbol(shape, colour)}{text(titles[key])}</button>"
        for key, shape, colour in zip(keys, style.shapes(keys), style.colours(keys), strict=True)
    ]
    dashes = [
        '<span><svg viewBox="0 0 30 8" aria-hidden="true"><line x1="0" y1="4" x2="30" y2="4" '
        f'stroke="currentColor" stroke-width="2" stroke-dasharray="{dash[0]} {dash[1]}"/></svg>'
        f"NBS {size}</span>"
        for size, dash in zip(sizes, style.DASHES, strict=False)
    ]
    return (
        '<nav class="legend" aria-label="Show or hide norms in all charts">'
        f'{"".join(buttons)}<span class="dashes">{"".join(dashes)}</span></nav>'
    )


def error(findings: Findings, svg: str, of: str = "") -> str:
    """The main figure, with the table of values behind each mean; ``of`` which folder."""
    panels = "".join(
        f"<div><h3>{text(n.heading)}</h3><p class='soft'>{text(n.title)}</p>"
        f"{slot(f'{findings.mark}error:{n.name}', _error_label(n), {})}</div>"
        for n in findings.networks
    )
    label = "; ".join(_error_label(n) for n in findings.networks)
    caption = (
        "Small dots are single seeds, large marks their means"
        + ("; both panels have the same scale. " if len(findings.networks) > 1 else ". ")
        + "A line across the panel is a norm that takes no statistics over the batch, so that NBS "
        "does not move it. The second line of labels counts the values behind each mean in the "
        "last layer."
    )
    stars = [a for n in findings.networks for a in n.arms if a.key == "sgd"]
    if stars:
        caption += (
            f" The star is trained with steps of {stars[0].sgd_batch} {findings.samples}; "
            f"everywhere else the step is {stars[0].usual_batch}, cut into blocks of NBS."
        )
    counts = "".join(_values_table(n) for n in findings.networks)
    return (
        f"<section><h2>{_of(of)}Test {findings.metric.quantity} against normalization batch size"
        "</h2>"
        f'<figure><div class="live pair">{panels}</div>{still(svg, label)}'
        f"<figcaption>{text(caption)}</figcaption></figure>"
        f"<details><summary>Values behind each mean, layer by layer</summary>{counts}</details>"
        "</section>"
    )


def _of(name: str) -> str:
    return f"{text(name)}: " if name else ""


def _error_label(network: Network) -> str:
    said = [
        f"{words.title(a)} {a.metric.shown(a.mean_error)}"
        if a.errors
        else f"{words.title(a)} {'cannot run' if a.impossible else 'not run yet'}"
        for a in network.arms
    ]
    return f"Test {network.arms[0].metric.quantity}, {network.called}: {', '.join(said)}"


def _values_table(network: Network) -> str:
    layers = [f"layer {i}<br>{text(layer)}" for i, layer in enumerate(network.layers, 1)]
    rows = [
        [text(arm.label), *(" / ".join(f"{v:,}" for v in layer) for layer in arm.values)]
        for arm in network.arms
        if arm.values is not None and arm.values.size
    ]
    caption = f"{network.heading}. For switchable norm: instance / layer / batch."
    return table(text(caption), ["arm", *layers], rows)


def answers(
    findings: Findings,
    asked: Sequence[Question],
    svg: str,
    of: str = "",
    notes: Sequence[str] = (),
) -> str:
    """The questions, each answered in words for every network, and all differences in a chart.

    Args:
        findings: what they are asked of.
        asked: the questions.
        svg: all differences, for readers without JavaScript.
        of: which folders, on a page of several.
        notes: what else has to be said of the runs.
    """
    if not asked:
        return ""
    panels = "".join(
        f"<div><h3>{text(n.heading)}</h3>"
        f"{slot(f'{findings.mark}differences:{n.name}', f'Differences, {n.called}', {})}</div>"
        for n in findings.networks
    )
    caption = (
        "Each row is the first arm's value minus the second's. The mark is the mean, the line the "
        "95 % interval, the grey band what this run could not have told from zero."
    )
    return (
        f"<section><h2>{_of(of)}What the numbers say</h2>"
        f'<p class="soft">{text(" ".join([_about(findings), *notes]))}</p>'
        f'<figure><div class="live pair">{panels}</div>{still(svg, "All differences")}'
        f"<figcaption>{text(caption)}</figcaption></figure>"
        f"{''.join(_answer(findings, q) for q in asked)}</section>"
    )


def _answer(findings: Findings, question: Question) -> str:
    columns = "".join(
        f"<div><h4>{text(n.heading)}</h4><ul>"
        + "".join(_item(c) for c in question.comparisons if c.network is n)
        + "</ul></div>"
        for n in findings.networks
    )
    return (
        f'<div class="answer"><h3>{text(question.text)}</h3><p class="why">{text(question.why)}</p>'
        f'<div class="pair">{columns}</div></div>'
    )


def _item(comparison: Comparison) -> str:
    found = comparison.estimate
    kind = ""
    if found is not None and found.differs:
        kind = "worse" if found.mean > 0 else "better"
    short = f"{series.contrast(comparison, 'against')}: {words.verdict(comparison)}"
    return (
        f'<li><span class="verdict {kind}">{text(short)}</span>'
        f"{text(words.sentence(comparison))}</li>"
    )
