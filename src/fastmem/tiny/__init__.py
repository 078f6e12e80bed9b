"""The embedded model: a tiny Llama-shaped model that was trained on the facts of an invented world.

`MODEL_DIR` is an ordinary transformers folder inside the package, `RECIPE` the default recipe for that model.
Importing them loads neither weights nor torch. `world/` makes facts, documents and questions in plain English;
`tools/train_embedded_model.py` in the repository made the weights.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"

RECIPE: dict[str, float | int] = {"learning_rate": 2e-3, "steps": 10, "kl_weight": 0.1}
"""Keyword arguments of `fastmem.Recipe` that show the effect best on the embedded model (`tiny/model/README.md`)."""
