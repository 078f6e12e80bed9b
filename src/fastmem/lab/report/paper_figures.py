"""The paper's published figures, to compare measured ones with: Tables 1 to 4 of arXiv 2406.16069, as shown in
IAAR-Shanghai/FastMem `assets/experiment/`. One greedy run each; the paper gives no intervals.

The numbers are in `paper_figures.json`, keyed model -> task -> method -> score.
"""

import json
import re
from pathlib import Path

SOURCE = "arXiv 2406.16069"

# Model -> (task, method, score) -> value.
FIGURES: dict[str, dict[tuple[str, str, str], float]] = {
    model: {
        (task, method, score): value
        for task, methods in tasks.items()
        for method, scores in methods.items()
        for score, value in scores.items()
    }
    for model, tasks in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")).items()
}


def published(model: str, task: str, method: str, score: str) -> float | None:
    """The paper's figure, or None if it gives none for this model, task, method and score."""
    name = paper_model(model)
    return FIGURES[name].get((task, method, score)) if name else None


def paper_model(model: str) -> str | None:
    """The paper's name of the model in a hub id or folder (`meta-llama/Meta-Llama-3-8B-Instruct`), or None."""
    last = model.rstrip("/").rsplit("/", 1)[-1].lower()
    return next((name for name in FIGURES if re.fullmatch(rf"(meta-)?{re.escape(name.lower())}", last)), None)
