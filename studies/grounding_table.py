"""The tables and the figure of docs/results/grounding.md: `python -m studies.grounding_table DIR --figure FILE.svg`.

DIR holds a folder for every model, as `grounding.py` writes them. Question, design and decision rule stand there.
Intervals are 95 %, bootstrap over questions (one is drawn with all its documents), paired in differences.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from fastmem.lab.run.run_files import complete_rows, write_json
from studies.area_under_curve import auroc, interval, resampled, shown

ABSTAIN = (0.1, 0.2, 0.5)
DECIDING = ("(a) right, all kinds", "(b) document, not memory", "(c) answerable")  # labels of the decision rule
TURNING = ("contradicts", "turned")  # kinds whose documents contradict what the model knows

Score = Callable[[np.ndarray], float]  # of tokens [T, 4]: log p memorized, original, without document; divergence
REDUCED: Mapping[str, Callable[[np.ndarray], float]] = {
    "mean": lambda v: float(v.mean()),
    "min": lambda v: float(v.min()),
    "first": lambda v: float(v[0]),
}


def _scores(name: str, values: Callable[[np.ndarray], np.ndarray], ways: Sequence[str]) -> dict[str, Score]:
    def score(way: str) -> Score:
        return lambda tokens: REDUCED[way](values(tokens))

    return {f"{name}, {way}": score(way) for way in ways}


def _negative(score: Score) -> Score:
    return lambda tokens: -score(tokens)


PLAIN = _scores("probability", lambda t: t[:, 0], ("mean", "min"))
CONTEXT = _scores("document in the prompt", lambda t: t[:, 1] - t[:, 2], ("mean", "min"))
POSITIVE = (
    _scores("log difference", lambda t: t[:, 0] - t[:, 1], ("mean", "min", "first"))
    | _scores("probability difference", lambda t: np.exp(t[:, 0]) - np.exp(t[:, 1]), ("mean", "min", "first"))
    | _scores("divergence", lambda t: t[:, 3], ("mean", "min", "first"))
)
CANDIDATES = POSITIVE | {f"- {name}": _negative(score) for name, score in POSITIVE.items()}
SCORES = PLAIN | CONTEXT | CANDIDATES


@dataclass(frozen=True)
class Answers:
    """Answers of one model. kinds, groups, right, remembered: [N]. scores: by name, [N]."""

    kinds: np.ndarray
    groups: np.ndarray
    right: np.ndarray
    remembered: np.ndarray
    scores: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> "Answers":
        tokens = [np.array(row["tokens"], dtype=float) for row in rows]
        kinds, groups, right, remembered = (
            np.array([row[name] for row in rows]) for name in ("kind", "group", "right", "remembered")
        )
        scores = {name: np.array([score(t) for t in tokens]) for name, score in SCORES.items()}
        return cls(kinds, groups, right, remembered, scores)

    def labels(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By name: (which rows count [N], the label [N])."""
        everything, turning = np.full(len(self.kinds), True), np.isin(self.kinds, TURNING)
        found = {"(a) right, all kinds": (everything, self.right)}
        for kind in dict.fromkeys(self.kinds.tolist()):
            if kind != "irrelevant":
                found[f"(a) right, {kind}"] = (self.kinds == kind, self.right)
        found["(b) document, not memory"] = (turning & (self.right != self.remembered), self.right)
        found["(c) answerable"] = (everything, self.kinds != "irrelevant")
        return found


def kept_accuracy(values: np.ndarray, right: np.ndarray, weights: np.ndarray, kept: float) -> np.ndarray:
    """[R]: the share of right answers among the share `kept` of the rows with the highest values."""
    order = np.argsort(-values, kind="stable")
    drawn = weights[:, order]
    before = np.cumsum(drawn, axis=1) - drawn
    inside = np.clip(kept * drawn.sum(1, keepdims=True) - before, 0, drawn)
    return (inside * right[order]).sum(1) / inside.sum(1)


def on_dev(models: Mapping[str, Answers], label: str) -> dict[str, list[float]]:
    """By score, the AUROC on every model's development rows."""
    found: dict[str, list[float]] = {}
    for name in SCORES:
        for answers in models.values():
            rows, truth = answers.labels()[label]
            once = np.ones((1, int(rows.sum())))
            found.setdefault(name, []).append(float(auroc(answers.scores[name][rows], truth[rows], once)[0]))
    return found


def best(found: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """The score with the highest mean over the models."""
    return max(names, key=lambda name: np.mean(found[name]))


def dev_table(models: Mapping[str, Answers], labels: Sequence[str]) -> list[str]:
    """What every score reaches on development rows; the candidates with a minus sign reach 1 less this."""
    cells = [f"{label[:3]} {model}" for label in labels for model in models]
    lines = ["| score | " + " | ".join(cells) + " |", "|---" * (len(cells) + 1) + "|"]
    found = {label: on_dev(models, label) for label in labels}
    for name in (*PLAIN, *CONTEXT, *POSITIVE):
        values = [value for label in labels for value in found[label][name]]
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return lines


@dataclass(frozen=True)
class Area:
    """Of one model and label. rows, true: how many rows count, and of how many the label is true. by_score: AUROC
    [1 + R], of the rows and of every resample."""

    rows: int
    true: int
    by_score: Mapping[str, np.ndarray]

    def gain(self, score: str, plain: str) -> np.ndarray:
        """[1 + R]: the difference from the probability."""
        difference: np.ndarray = self.by_score[score] - self.by_score[plain]
        return difference


def areas(models: Mapping[str, Answers], names: Sequence[str]) -> dict[str, dict[str, Area]]:
    """By model and label."""
    found: dict[str, dict[str, Area]] = {model: {} for model in models}
    for model, answers in models.items():
        weights = resampled(answers.groups)
        for label, (rows, truth) in answers.labels().items():
            by_score = {name: auroc(answers.scores[name][rows], truth[rows], weights[:, rows]) for name in names}
            found[model][label] = Area(int(rows.sum()), int(truth[rows].sum()), by_score)
    return found


def test_table(found: Mapping[str, Mapping[str, Area]], names: Sequence[str], plain: str) -> list[str]:
    """AUROC of the probability and of these scores for every label, and the differences to the probability."""
    heads = "".join(f" | {name} | less the probability" for name in names)
    lines = [f"| model | label | rows, true | {plain}{heads} |", "|---" * (4 + 2 * len(names)) + "|"]
    for model, labels in found.items():
        for label, area in labels.items():
            cells = [model, label, f"{area.rows}, {area.true}", shown(area.by_score[plain])]
            for name in names:
                cells += [shown(area.by_score[name]), shown(area.gain(name, plain), "+")]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def fitted(x: np.ndarray, label: np.ndarray) -> np.ndarray:
    """[F + 1]: the coefficients of a logistic regression of the label on x [N, F], the constant last; by Newton's
    method, with a small ridge so that separable rows have a solution."""
    columns = np.column_stack([x, np.ones(len(x))])
    found, ridge = np.zeros(columns.shape[1]), 1e-2 * np.eye(columns.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-columns @ found))
        curvature = (columns * (p * (1 - p))[:, None]).T @ columns + ridge
        found = found + np.linalg.solve(curvature, columns.T @ (label - p) - ridge @ found)
    return found


def together(dev: Mapping[str, Answers], test: Mapping[str, Answers], names: Sequence[str], plain: str) -> list[str]:
    """Does anything come on top of the probability? All of `names` in one regression for (a), fitted to a model's
    development rows, against the probability on its test rows. Not part of the rule."""
    said = []
    for model, answers in test.items():
        known, new = (np.column_stack([one.scores[name] for name in names]) for one in (dev[model], answers))
        centre, spread = known.mean(0), known.std(0)
        score = (new - centre) / spread @ fitted((known - centre) / spread, dev[model].right)[:-1]
        weights = resampled(answers.groups)
        first, second = (auroc(v, answers.right, weights) for v in (answers.scores[plain], score))
        said.append(f"{model}: {shown(second)}, less the probability {shown(second - first, '+')}")
    return said


def kept(models: Mapping[str, Answers], names: Sequence[str]) -> dict[str, dict[str, dict[float, np.ndarray]]]:
    """By model, score and share that is left out: the share of right answers (a) among the others, [1 + R]."""
    found: dict[str, dict[str, dict[float, np.ndarray]]] = {}
    for model, answers in models.items():
        weights = resampled(answers.groups)
        found[model] = {
            name: {
                share: kept_accuracy(answers.scores[name], answers.right, weights, 1 - share)
                for share in (0, *ABSTAIN)
            }
            for name in names
        }
    return found


def abstention_table(found: Mapping[str, Mapping[str, Mapping[float, np.ndarray]]], plain: str) -> list[str]:
    """The share of right answers, after abstaining on those with the lowest scores."""
    columns = " | ".join(f"lowest {share:.0%} left out" for share in ABSTAIN)
    lines = [f"| model | all | score | {columns} |", "|---" * (3 + len(ABSTAIN)) + "|"]
    for model, scores in found.items():
        for name, shares in scores.items():
            texts = [shown(shares[share]) for share in ABSTAIN]
            if name != plain:
                gains = [shares[share] - scores[plain][share] for share in ABSTAIN]
                texts = [f"{text}; {shown(gain, '+')}" for text, gain in zip(texts, gains, strict=True)]
            lines.append(f"| {model} | {shown(shares[0])} | {name} | {' | '.join(texts)} |")
    return lines


def decide(found: Mapping[str, Mapping[str, Area]], score: str, plain: str) -> list[str]:
    """The rule's conditions on test rows, one line each."""
    said, passed = [], True
    for model, labels in found.items():
        for label in DECIDING:
            gain = labels[label].gain(score, plain)
            low, high = np.nanpercentile(gain[1:], [2.5, 97.5])
            holds = bool(low > 0 if label == DECIDING[0] else high >= 0)
            passed &= holds
            said.append(f"{model}, {label}: {shown(gain, '+')}: {'holds' if holds else 'fails'}")
    return [*said, f"`{score}` against `{plain}`: {'product' if passed else 'a page of results'}"]


def document(
    dev: Mapping[str, Answers],
    found: Mapping[str, Mapping[str, Area]],
    abstained: Mapping[str, Mapping[str, Mapping[float, np.ndarray]]],
    plain: str,
) -> dict[str, Any]:
    """Every number of the tables; a list is a value with the two ends of its interval."""
    tested = {
        model: {
            label: {"rows": area.rows, "true": area.true}
            | {
                name: {
                    "auroc": interval(area.by_score[name]),
                    "less the probability": interval(area.gain(name, plain)),
                }
                for name in area.by_score
            }
            for label, area in labels.items()
        }
        for model, labels in found.items()
    }
    left_out = {
        model: {name: {str(share): interval(one) for share, one in shares.items()} for name, shares in scores.items()}
        for model, scores in abstained.items()
    }
    chosen = {label: on_dev(dev, label) for label in DECIDING}
    return {"models": list(dev), "probability": plain, "dev": chosen, "test": tested, "left out": left_out}


def figure(models: Mapping[str, Answers], names: Mapping[str, str], path: Path) -> None:
    """The share of wrong answers by the share of questions that are answered."""
    drawn, axes = plt.subplots(1, len(models), figsize=(4.5 * len(models), 3.6), layout="constrained", squeeze=False)
    shares = np.linspace(0.05, 1, 96)
    for side, (model, answers) in zip(axes[0], models.items(), strict=True):
        once = np.ones((1, len(answers.right)))
        for (name, title), style in zip(names.items(), ("-", "--", ":"), strict=True):
            right = [kept_accuracy(answers.scores[name], answers.right, once, share)[0] for share in shares]
            side.plot(shares, 1 - np.array(right), style, label=title)
        least = np.maximum(0, 1 - answers.right.mean() / shares)
        side.plot(shares, least, color="#bbbbbb", linewidth=1, label="a perfect score", zorder=0)
        side.set_title(model, fontsize=10)
        side.set_xlabel("share of the questions that are answered")
        side.set_ylim(0, None)
        side.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("share of these answers that are\nnot what the document says")
    axes[0][0].legend(frameon=False, fontsize=8)
    drawn.savefig(path)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.grounding_table", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path, help="every number of the tables as one JSON document")
    args = parser.parse_args()
    models = [name for name in ("embedded", "nq-mini") if (args.folder / name / "dev.jsonl").exists()]
    dev, test = (
        {n: Answers.of(complete_rows(args.folder / n / f"{part}.jsonl")[1]) for n in models}
        for part in ("dev", "test")
    )
    found = on_dev(dev, DECIDING[0])
    score, plain, context = (best(found, list(scores)) for scores in (CANDIDATES, PLAIN, CONTEXT))
    counts = ", ".join(f"{n} {len(dev[n].kinds)} and {len(test[n].kinds)}" for n in models)
    print(f"Development and test rows: {counts}\n\nAUROC on development rows\n", *dev_table(dev, DECIDING), sep="\n")
    print(f"\nChosen on development rows: {score}; {plain}; {context}")
    names = [plain, score, context]
    measured, abstained = areas(test, names), kept(test, names)
    print("\nTest rows\n", *test_table(measured, names[1:], plain), sep="\n")
    print("\nAbstention, test rows\n", *abstention_table(abstained, plain), sep="\n")
    for title, more in (("the two tails", list(POSITIVE)[::3]), ("with and without the document", [context])):
        lines = together(dev, test, [plain, *more], plain)
        print(f"\nThe probability and {title} in one regression\n", *(f"- {line}" for line in lines), sep="\n")
    print("\nDecision\n", *(f"- {line}" for line in decide(measured, score, plain)), sep="\n")
    if args.figure:
        titles = {
            plain: "the answer's probability",
            score: f"two tails: {score}",
            context: "with and without document",
        }
        figure(test, titles, args.figure)
    if args.json:
        write_json(args.json, document(dev, measured, abstained, plain))


if __name__ == "__main__":
    main()
