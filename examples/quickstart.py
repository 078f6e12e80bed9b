"""FastMem on the embedded model: nothing to download, a few seconds on a CPU.

    python examples/quickstart.py

For a model of your own: FastMem.from_pretrained("org/model-or-folder"), or FastMem(model, tokenizer).
"""

from fastmem import FastMem, Recipe
from fastmem.tiny import world

llm = FastMem.from_pretrained()

# Documents that say something else than the model knows by heart; the first one that it contradicts.
for row in world.examples("world_swap", limit=20):
    alone = llm.answer(row.question, row.context, method="base")
    if row.original_answers[0] in alone.text:
        break
print("document:    ", row.context)
print("question:    ", row.question)
print("alone:       ", alone.text)

# Memorize the document once, answer any number of questions about it. The model itself is never written to.
memory = llm.memorize(row.context)  # llm.memorize(context, Recipe(steps=20, kl_weight=0.3)) for another recipe
print("with FastMem:", llm.answer(row.question, row.context, memory=memory).text)
print(f"the document's loss fell from {memory.trace[0].loss:.2f} to {memory.trace[-1].loss:.2f} nats per token")

# Other methods, other recipes, piece by piece.
for method, recipe in (("cad", None), ("fastmem+cd", Recipe(learning_rate=1e-3, steps=20, kl_weight=0.3))):
    print(f"{method}: ", end="")
    for piece in llm.ask(row.question, row.context, method, recipe):
        print(piece, end="", flush=True)
    print()
