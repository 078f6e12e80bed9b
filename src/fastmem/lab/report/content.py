"""The facts, notes and numbers that the Markdown tables and the HTML page both show."""

from fastmem.lab.report.paper_figures import SOURCE, paper_model, published
from fastmem.lab.report.results import Results
from fastmem.lab.scores.grading import Record
from fastmem.lab.scores.statistics import Mean


def facts(r: Results) -> dict[str, str]:
    """What was run, and where: name -> value."""
    identity, environment = r.about["identity"], r.summary.get("environment") or {}
    recipe, data = identity["recipe"], identity["data"]
    git = environment.get("git") or {}
    commit = (git.get("commit") or "")[:10] + (", changed" if git.get("changed") else "")
    return {
        "examples": str(len(r.examples)),
        "data": ", ".join([data["source"], data["revision"], *filter(None, [data.get("selection")])]),
        "rate": f"{recipe['learning_rate']:g}",
        "steps": str(recipe["steps"]),
        "KL weight": f"{recipe['kl_weight']:g}",
        "layers": ", ".join(map(str, recipe["layers"])),
        "placement": recipe["placement"],
        "alpha": _contrast_strength(identity["decoding"]),
        "type": identity["model"]["dtype"].removeprefix("torch."),
        "system turn": identity["model"].get("system_turn", "the template's"),
        "device": environment.get("device", "unknown"),
        "torch": (environment.get("packages") or {}).get("torch", "unknown"),
        "fastmem": environment.get("fastmem", "unknown"),
        "commit": commit or "unknown",
    }


def notes(r: Results) -> list[str]:
    """Rows that are missing, errors, and scores that could not be computed."""
    lines = []
    if not r.complete:
        missing = sum(len(r.examples) - len(rows) for rows in r.rows.values())
        lines.append(f"Not finished: {missing} rows are missing; run the same `fastmem eval` again to continue.")
    for method in r.methods:
        if errors := r.errors(method):
            lines.append(f"{method}: {len(errors)} errors, counted as wrong; the first: {errors[0]}")
    names = r.own_names
    if recorded := [name for name in names if name not in r.computed and name not in r.task_scores]:
        of_task = [r.task] if r.own_headline and not r.task_scores else []
        files = ", ".join([*of_task, *r.about["identity"].get("metrics", ())])
        lines.append(f"{', '.join(recorded)}: computed by {files} when the rows were written, and not graded again.")
    for file in dict.fromkeys(r.computed.values()):
        of_file = [name for name in names if r.computed.get(name) == file]
        lines.append(f"{', '.join(of_file)}: computed by {file} for this report.")
    for name in r.task_scores:
        if any(r.mean(method, name).missing for method in r.methods):
            counts = ", ".join(f"{method} {r.mean(method, name).n}" for method in r.methods)
            lines.append(f"{name}: a mean over the rows to which it applies ({counts}).")
    for method in r.methods:
        for name in names:
            if name not in r.task_scores and (missing := r.mean(method, name).missing):
                lines.append(f"{method}: {name} is missing in {missing} rows; its mean is that of the others.")
    return lines + [f"{', '.join(methods)}: {reason}" for reason, methods in r.missing.items()]


def label(r: Results, method: str) -> str:
    """The method, with the number of its rows if some are missing: `fastmem (144 of 240 rows)`."""
    return f"{method} ({r.partial(method)})" if r.partial(method) else method


def figure(r: Results, method: str, score: str) -> str:
    """The mean with its interval, and in brackets what the paper publishes: `0.715 [0.702, 0.728] (0.715)`."""
    paper = published(r.model, r.task, method, score)
    return mean_text(r.mean(method, score)) + ("" if paper is None else f" ({paper:.3f})")


def brackets(model: str) -> str:
    """What the brackets of `figure` hold; empty for a model that the paper does not have."""
    name = paper_model(model)
    return f"in brackets what {SOURCE} publishes for {name}" if name else ""


def shown_scores(r: Results) -> list[str]:
    """The scores that some method has, in the order of tables."""
    return [name for name in r.columns if any(r.mean(m, name).value is not None for m in r.rows)]


def score_table(r: Results) -> tuple[list[str], list[list[str]]]:
    """(header, one line per method): the number of rows and errors, and every score that has a value."""
    titles, shown = r.columns, shown_scores(r)
    lines = [
        [label(r, m), str(len(r.rows[m])), str(len(r.errors(m))), *(figure(r, m, name) for name in shown)]
        for m in r.methods
    ]
    return ["method", "n", "errors", *(titles[name] for name in shown)], lines


def mean_text(mean: Mean, sign: str = "") -> str:
    """`0.715 [0.702, 0.728]`, or "missing". sign: "+" writes the sign of positive numbers too."""
    return "missing" if mean.value is None else interval_text(mean.value, mean.low, mean.high, sign)


def interval_text(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    """A number and its interval, if it has one."""
    interval = "" if low is None or high is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"{value:{sign}.3f}{interval}"


def _contrast_strength(decoding: Record) -> str:
    """`2`, or `2 among tokens of at least 0.05 of the top probability, repetition penalty 1.2`."""
    cut = decoding.get("relative_top")
    among = "" if cut is None else f" among tokens of at least {cut:g} of the top probability"
    penalty = f", repetition penalty {decoding['repetition_penalty']:g}" if "repetition_penalty" in decoding else ""
    return f"{decoding['alpha']:g}{among}{penalty}"
