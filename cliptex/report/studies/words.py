"""What was seen in a study, and what that does not prove: two sentences, made from the numbers by rule.

A difference is called one only where its interval over images leaves out zero and, with several seeds, where it is
larger than their spread. Everything else is "no difference seen", whatever its sign.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from cliptex.evaluation.corruptions import CLEAN
from cliptex.report.bootstrap import LEVEL, interval
from cliptex.report.statistics import ranging, signed
from cliptex.report.studies.measures import Compared, Measure

Findings = Sequence[tuple[Measure, Mapping[str, Compared]]]
"""Each measure with all models compared by it."""


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else ""


def amount(measure: Measure, one: Compared) -> str:
    """`+1.2 (0.4 to 2.1)`, signed so that + is better."""
    digits = measure.digits
    bounds = f" ({ranging(one.bounds, digits)})" if one.bounds else ""
    return f"{signed(one.difference, digits)}{bounds}"


def _others(compared: Mapping[str, Compared], reference: str) -> list[Compared]:
    return [one for model, one in compared.items() if model != reference]


def _told(found: Sequence[Compared], measure: Measure, labels: Mapping[str, str], count: int) -> str:
    """Who it is, the largest difference first; of many only their number and the two at the ends."""
    said = [f"“{labels[one.model]}” {amount(measure, one)}" for one in found]
    if len(said) <= 2:
        return listed(said)
    return f"{'all' if len(said) == count else len(said)} of the {count}, most with {said[0]}, least with {said[-1]}"


def differences(findings: Findings, labels: Mapping[str, str], reference: str) -> str:
    """By measure: who is better, who is worse, and of whom no difference is seen."""
    parts = []
    for measure, compared in findings:
        groups: dict[str, list[Compared]] = {"better": [], "worse": [], "no difference seen": []}
        others = _others(compared, reference)
        for one in others:
            groups[one.state].append(one)
        said = []
        for state in ("better", "worse"):
            found = sorted(groups[state], key=lambda one: -abs(one.difference))
            if found:
                said.append(f"{'is ' * (not said)}{state} with {_told(found, measure, labels, len(others))}")
        rest = groups["no difference seen"]
        if rest and said:
            who = listed([f"“{labels[one.model]}”" for one in rest]) if len(rest) <= 3 else f"the other {len(rest)}"
            said.append(f"not seen to differ with {who}")
        elif rest:
            said.append("is not seen to differ with any of them" if len(rest) > 1 else "is not seen to differ")
        value = f"{measure.shown(compared[reference].value)} {measure.unit}".rstrip()
        parts.append(f"{measure.title}, {value}, {listed(said)}")
    return f"Against “{labels[reference]}”: {'; '.join(parts)}."


def tradeoff(findings: Findings, labels: Mapping[str, str], reference: str) -> str:
    """Where zero-shot is lost, and which model gains most in dense metrics where it is not."""
    zeroshot = [(m, c) for m, c in findings if m.head == "zero_shot"]
    dense = [(m, c) for m, c in findings if m.dense]
    lost: dict[str, str] = {}
    for measure, compared in zeroshot:
        for one in _others(compared, reference):
            if one.state == "worse":
                lost.setdefault(one.model, f"“{labels[one.model]}” {amount(measure, one)}")
    count = len(_others(zeroshot[0][1], reference))
    where = listed([measure.title for measure, _ in zeroshot])
    text = f"Against “{labels[reference]}”, {where} is lost beyond the noise of the images "
    text += f"with {listed(list(lost.values()))}" if lost else f"with none of the {count} weightings"
    for measure, compared in dense:
        kept = [one for one in _others(compared, reference) if one.model not in lost]
        gains = [one for one in kept if one.state == "better"]
        if not gains:
            text += f"; in {measure.title} no gain is seen with any of the weightings that keep it"
            continue
        best = max(gains, key=lambda one: one.difference)
        text += (
            f"; in {measure.title} {len(gains)} of the {len(kept)} weightings that keep it gain, "
            f"“{labels[best.model]}” most, {amount(measure, best)}"
        )
        lower = [one for one in kept if one.state == "worse"]
        if lower:
            text += f", and a loss is seen with {listed([f'“{labels[one.model]}”' for one in lower])}"
    return text + "."


def cost(findings: Findings, labels: Mapping[str, str], reference: str, flops: Mapping[str, float]) -> str:
    """By dense measure: the best, and the cheapest that is not seen to be worse than it."""
    parts = []
    for measure, compared in findings:
        if not measure.dense:
            continue
        others = _others(compared, reference)
        best = max(others, key=lambda one: one.difference)
        if best.state != "better":
            parts.append(f"in {measure.title} no gain is seen with any of the {len(others)}")
            continue
        equal = [one for one in others if one.model == best.model or not _below(one, best)]
        cheapest = min(equal, key=lambda one: flops[one.model])
        said = f"in {measure.title} the most is gained with “{labels[best.model]}”, {amount(measure, best)}"
        said += f", at {flops[best.model]:.2f} times the forward computation"
        if cheapest.model != best.model:
            said += (
                f", from which no difference is seen to the cheaper “{labels[cheapest.model]}”, "
                f"{amount(measure, cheapest)} at {flops[cheapest.model]:.2f} times"
            )
        parts.append(said)
    return f"Against “{labels[reference]}”, {'; '.join(parts)}."


def _below(one: Compared, best: Compared) -> bool:
    """Whether `one` is worse than `best` beyond the noise of the images."""
    bounds = interval(one.draws - best.draws)
    return bounds is not None and bounds.high < 0


def robustness(findings: Findings, labels: Mapping[str, str], reference: str, subject: str) -> str:
    """By measure: the difference on clean images and its mean over all others, and in how many it is seen."""
    parts = []
    for key in dict.fromkeys(measure.key for measure, _ in findings):
        own = [(m, c[subject]) for m, c in findings if m.key == key]
        ((measure, clean),) = [(m, one) for m, one in own if m.variant == CLEAN]
        others = [one for m, one in own if m.variant != CLEAN]
        states = [one.state for one in others]
        bounds = interval(np.mean([one.draws for one in others], axis=0))
        mean = fmean(one.difference for one in others)
        digits = measure.digits
        parts.append(
            f"in {measure.title} it is {amount(measure, clean)} on clean images and {signed(mean, digits)}"
            + (f" ({ranging(bounds, digits)})" if bounds else "")
            + f" in the mean of the {len(others)} others, better in {states.count('better')} of them, worse in "
            f"{states.count('worse')}, without a difference seen in {states.count('no difference seen')}"
        )
    return f"The difference of “{labels[subject]}” to “{labels[reference]}”: {'; '.join(parts)}."


def finetuning(findings: Findings, labels: Mapping[str, str], reference: str, subject: str) -> str:
    """By measure: the difference of frozen encoders, and of those that were tuned with the head."""
    parts, kept, had = [], 0, 0
    for key in dict.fromkeys(measure.key for measure, _ in findings):
        said = []
        states = {}
        for measure, compared in findings:
            if measure.key == key:
                one = compared[subject]
                how = "tuned" if measure.tuned else "frozen"
                states[how] = one.state
                seen = "" if one.state != "no difference seen" else ", no difference seen"
                said.append(f"{how} {amount(measure, one)}{seen}")
                title = measure.title
        had += states.get("frozen") == "better"
        kept += states.get("frozen") == "better" and states.get("tuned") == "better"
        parts.append(f"in {title} {', '.join(said)}")
    lead = (
        f"Of {had} gains of frozen “{labels[subject]}” over “{labels[reference]}” {kept} are seen after fine-tuning too"
        if had
        else f"Frozen, no gain of “{labels[subject]}” over “{labels[reference]}” is seen"
    )
    return f"{lead}: {'; '.join(parts)}."


def not_proved(findings: Findings, seeds: int, intervals: int, limits: str, miniature: bool) -> str:
    """What the numbers leave open."""
    images = sorted({measure.images for measure, _ in findings})
    number = f"{images[0]}" if len(images) == 1 else f"{images[0]} to {images[-1]}"
    runs = "one training run a model" if seeds == 1 else f"{seeds} training runs a model"
    scenes = "rendered images" if miniature else "images"
    chance = (100 - LEVEL) / 100 * intervals
    by_chance = f"about {chance:.0f}" if chance >= 1.5 else "about one" if chance >= 0.5 else "hardly any"
    other = "for photographs, at full size or in another training run" if miniature else "in another training run"
    return (
        f"This rests on {runs} and {number} {scenes} a benchmark, and of the {intervals} intervals {by_chance} would "
        f"leave out zero by chance alone; it does not prove that the same holds {other}, nor {limits}."
    )
