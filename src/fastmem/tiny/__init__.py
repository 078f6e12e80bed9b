"""The embedded model: a made-up world of facts that a tiny Llama-shaped model knows by heart.

`MODEL_DIR` is an ordinary transformers folder inside the package, `RECIPE` the default recipe for that model. Neither
import reads a weight or loads torch. `world.py` makes facts, contexts and questions; `train.py` made the weights.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"

RECIPE: dict[str, float | int] = {"learning_rate": 5e-4, "steps": 10, "kl_weight": 0.1}
"""Keyword arguments of `fastmem.Recipe`: what shows the effect best on the embedded model (`tiny/model/README.md`)."""
