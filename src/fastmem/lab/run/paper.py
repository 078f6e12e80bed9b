"""The runs that give all tables of the paper for one model, each with the paper's recipe.

Recipes and limits are those published for Llama-3-8B-Instruct (arXiv 2406.16069; IAAR-Shanghai/FastMem
`scripts/run_qa.sh`, `scripts/run_summary.sh`). fastmem+cd has its own KL weight on the three summary tasks.
"""

from dataclasses import replace

from fastmem.lab.run.planned_runs import Run
from fastmem.memory.recipe import Recipe

MAX_CONTEXT_TOKENS = 7500  # IAAR-Shanghai/FastMem, `doc_token`
QUESTIONS = ("base", "one-shot", "dola", "cad", "fastmem", "fastmem+cd", "fastmem+dola")
SUMMARIES = ("base", "dola", "cad", "fastmem", "fastmem+dola")


def runs(base: Recipe, same_recipe: bool = False) -> tuple[Run, ...]:
    """The paper's tables. base: supplies the values that are not published (placement, layers, ...).

    same_recipe: use `base` for all runs instead of the paper's recipes, for models that need other rates.
    """

    def recipe(rate: float, kl: float, steps: int) -> Recipe:
        return base if same_recipe else replace(base, learning_rate=rate, kl_weight=kl, steps=steps)

    question = recipe(1e-5, 0.1, 10)
    planned = [
        Run(task, "accuracy, format failure" if task in ("nq", "nq_swap") else "accuracy", task, QUESTIONS, question)
        for task in ("nq_swap", "memotrap", "nq", "hotpotqa")
    ]
    for task, plain, contrasted in (
        ("cnndm", recipe(3e-6, 1.0, 10), recipe(3e-6, 0.01, 10)),
        ("xsum", recipe(1e-5, 1.0, 10), recipe(1e-5, 0.3, 10)),
        ("wikihow", recipe(1e-5, 0.03, 20), recipe(1e-5, 0.03, 20)),
    ):
        planned.append(Run(task, "summaries", task, SUMMARIES, plain))
        planned.append(Run(f"{task}_cd", "summaries", task, ("fastmem+cd",), contrasted))
    return tuple(planned)
