"""The paper's published figures, to stand beside measured ones: Tables 1 to 4 of arXiv 2406.16069, as they are shown
in IAAR-Shanghai/FastMem `assets/experiment/`. One greedy run each; the paper gives no intervals.
"""

import re

SOURCE = "arXiv 2406.16069"

_METHODS = ("base", "dola", "cad", "fastmem", "fastmem+cd", "fastmem+dola")


def _accuracies(*columns: tuple[str, tuple[float | None, ...]]) -> dict[tuple[str, str, str], float]:
    return {
        (task, method, "paper_correct"): value
        for task, values in columns
        for method, value in zip(_METHODS, values, strict=True)
        if value is not None
    }


def _summaries(task: str, rows: tuple[tuple[float, float, float], ...]) -> dict[tuple[str, str, str], float]:
    names = ("factkb", "rougeL", "bertscore_precision")
    return {
        (task, method, name): value
        for method, row in zip(_METHODS, rows, strict=True)
        for name, value in zip(names, row, strict=True)
    }


def _failures(task: str, **rows: tuple[float, float]) -> dict[tuple[str, str, str], float]:
    found: dict[tuple[str, str, str], float] = {}
    for method, (failure, accuracy) in rows.items():
        name = {"one_shot": "one-shot", "fastmem_cd": "fastmem+cd"}.get(method, method)
        found |= {(task, name, "paper_failure"): failure, (task, name, "paper_correct"): accuracy}
    return found


# Model -> (task, method, score) -> value.
FIGURES: dict[str, dict[tuple[str, str, str], float]] = {
    "Llama-3-8B-Instruct": {
        **_accuracies(
            ("nq_swap", (0.591, 0.594, 0.691, 0.715, 0.716, 0.714)),
            ("memotrap", (0.779, 0.785, 0.924, 0.861, 0.889, 0.893)),
            ("nq", (0.845, 0.852, 0.799, 0.863, 0.810, 0.863)),
            ("hotpotqa", (0.671, 0.671, 0.642, 0.671, 0.693, 0.679)),
        ),
        **_summaries(
            "cnndm",
            (
                (0.986, 0.236, 0.905),
                (0.987, 0.236, 0.906),
                (0.955, 0.234, 0.906),
                (0.988, 0.239, 0.907),
                (0.987, 0.242, 0.909),
                (0.986, 0.241, 0.909),
            ),
        ),
        **_summaries(
            "xsum",
            (
                (0.635, 0.200, 0.911),
                (0.637, 0.200, 0.911),
                (0.670, 0.186, 0.913),
                (0.710, 0.195, 0.917),
                (0.718, 0.192, 0.918),
                (0.758, 0.187, 0.921),
            ),
        ),
        **_summaries(
            "wikihow",
            (
                (0.336, 0.174, 0.852),
                (0.327, 0.174, 0.852),
                (0.543, 0.170, 0.859),
                (0.439, 0.173, 0.861),
                (0.509, 0.164, 0.862),
                (0.377, 0.170, 0.853),
            ),
        ),
    },
    "Llama-3-70B-Instruct": _accuracies(
        ("nq_swap", (0.630, None, None, 0.746, 0.779, None)),
        ("memotrap", (0.761, None, None, 0.795, 0.805, None)),
        ("nq", (0.873, None, None, 0.892, 0.888, None)),
        ("hotpotqa", (0.731, None, None, 0.754, 0.753, None)),
    ),
    "Qwen1.5-7B-Chat": _accuracies(
        ("nq_swap", (0.719, None, None, 0.747, 0.752, None)),
        ("memotrap", (0.888, None, None, 0.917, 0.919, None)),
        ("nq", (0.829, None, None, 0.826, 0.823, None)),
        ("hotpotqa", (0.602, None, None, 0.594, 0.589, None)),
    ),
    "Qwen1.5-14B-Chat": _accuracies(
        ("nq_swap", (0.699, None, None, 0.756, 0.746, None)),
        ("memotrap", (0.834, None, None, 0.914, 0.925, None)),
        ("nq", (0.862, None, None, 0.860, 0.860, None)),
        ("hotpotqa", (0.650, None, None, 0.652, 0.654, None)),
    ),
    "Qwen1.5-4B-Chat": {
        **_failures(
            "nq",
            base=(0.338, 0.492),
            one_shot=(0.600, 0.282),
            cad=(0.833, 0.121),
            fastmem=(0.316, 0.538),
            fastmem_cd=(0.261, 0.581),
        ),
        **_failures(
            "nq_swap",
            base=(0.349, 0.400),
            cad=(0.818, 0.122),
            fastmem=(0.295, 0.489),
            fastmem_cd=(0.255, 0.518),
        ),
    },
}


def published(model: str, task: str, method: str, score: str) -> float | None:
    """The paper's figure; None where it gives none for this model, task, method and score."""
    name = paper_model(model)
    return FIGURES[name].get((task, method, score)) if name else None


def paper_model(model: str) -> str | None:
    """Which of the paper's models a hub id or folder names (`meta-llama/Meta-Llama-3-8B-Instruct`)."""
    last = model.rstrip("/").rsplit("/", 1)[-1].lower()
    return next((name for name in FIGURES if re.fullmatch(rf"(meta-)?{re.escape(name.lower())}", last)), None)
