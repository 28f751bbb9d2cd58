"""The page's middle: what happened inside the networks while they trained."""

from __future__ import annotations

from normalform.lab.report import histories, style, words
from normalform.lab.report.canvas import Canvas
from normalform.lab.report.findings import Findings, Network
from normalform.lab.report.markup import choices, mini, slot, still, text


def learning(canvas: Canvas, svg: str) -> str:
    """Learning curves, one small chart a norm."""
    rows = "".join(
        f"<h3>{text(network.heading)}</h3>"
        f'<div class="minis">{"".join(_curve(canvas, network, key) for key in canvas.titles)}</div>'
        for network in canvas.findings.networks
    )
    kinds = histories.curve_kinds(canvas.findings)
    caption = (
        "Strong lines are means over the seeds, thin ones single seeds, grey ones all other norms. "
        f"The test {canvas.findings.metric.quantity} uses running statistics. Log scales. "
        "A line stops where a run diverged."
    )
    return (
        "<section><h2>While training</h2>"
        f"{choices('curve', kinds, 'What the learning curves show')}"
        f'<figure><div class="live">{rows}</div>{still(svg, "Learning curves")}'
        f"<figcaption>{text(caption)}</figcaption></figure></section>"
    )


def _curve(canvas: Canvas, network: Network, key: str) -> str:
    arms = [arm for arm in network.arms if arm.key == key]
    title = words.key_title(canvas.findings, key)
    if not any(arm.details for arm in arms):
        reason = next((arm.impossible for arm in arms if arm.impossible), "")
        said = f"Cannot run: {reason}." if reason else "Not run yet."
        return mini(title, f'<p class="none">{text(said)}</p>')
    label = f"Learning curves of {title}, {network.called}"
    return mini(title, slot("curve", label, {"network": network.name, "key": key}, "curve"))


def blends(findings: Findings, svg: str) -> str:
    """The weights that switchable norm learned; empty where there is none."""
    networks = [n for n in findings.networks if histories.blended(n)]
    if not networks:
        return ""
    epochs = findings.meta["config"]["epochs"]
    panels = "".join(
        f"<div><h3>{text(n.heading)}: weights of the {kind}</h3>"
        f"{slot(f'blend:{n.name}', _blend_label(n, kind), {'kind': kind})}</div>"
        for n in networks
        for kind in ("mean", "variance")
    )
    names = histories.blended(networks[0])
    swatches = "".join(
        f'<span><svg viewBox="0 0 10 10" width="12" height="12" aria-hidden="true">'
        f'<rect width="10" height="10" fill="{colour}"/></svg> {text(name)}</span> '
        for name, colour in zip(names, style.colours(names), strict=True)
    )
    return (
        "<section><h2>What switchable norm chose</h2>"
        "<p>How much of each kind of statistics it uses, layer by layer, a bar for each NBS. "
        "Every layer starts with equal shares. Means over the seeds.</p>"
        f'<p class="swatches">{swatches}</p>'
        '<div class="controls"><label class="slide">after epoch '
        f'<input type="range" min="0" max="{epochs}" value="{epochs}"> '
        f"<output>{epochs}</output></label></div>"
        f'<figure><div class="live pair">{panels}</div>{still(svg, "Learned weights")}'
        f"<figcaption>{text(_left_out(networks))}</figcaption></figure></section>"
    )


def _blend_label(network: Network, kind: str) -> str:
    return f"Learned weights of the {kind}, {network.called}"


def _left_out(networks: list[Network]) -> str:
    """Which branches had to be left out, because their statistics would be of one value."""
    said = [
        f"In layer {layer} of the {network.called} the {name} branch"
        f"{f' at NBS {arm.nbs}' if name == 'batch' else ''} is left out: "
        "it would have one value a mean."
        for network in networks
        for arm in network.arms
        if (names := histories.branches(arm)) and arm.values is not None
        for layer, counts in enumerate(arm.values, 1)
        for name, count in zip(names, counts, strict=True)
        if count == 1
    ]
    return " ".join(dict.fromkeys(said))


def activations(findings: Findings, svg: str) -> str:
    """Activations with and without norms, one small chart a layer."""
    rows = "".join(
        f"<h3>{text(n.heading)}</h3>"
        f'<div class="minis wide">{"".join(_layer(n, i + 1) for i in range(len(n.layers)))}</div>'
        for n in findings.networks
    )
    kinds = histories.activation_kinds(findings)
    caption = (
        f"Measured on the same training {findings.samples} before training (epoch 0) and after "
        "each epoch; means over the seeds. Spread is the standard deviation over all channels, "
        f"positions and {findings.samples}, on a log scale."
    )
    return (
        "<section><h2>Activations, with and without norms</h2>"
        f"{choices('activation', kinds, 'What the activation charts show')}"
        f'<figure><div class="live">{rows}</div>{still(svg, "Activations over training")}'
        f"<figcaption>{text(caption)}</figcaption></figure></section>"
    )


def _layer(network: Network, layer: int) -> str:
    title = f"layer {layer}, {network.layers[layer - 1]}"
    label = f"Activations of {title}, {network.called}"
    values = {"network": network.name, "layer": layer}
    return mini(title, slot("activation", label, values, "activation"))
