"""What a user's editor and `mypy --strict` see: checked by `tests/test_types.py`, never run."""

from typing import assert_type

from fastmem import Answer, FastMem, Memory, Recipe, Tokens

llm = FastMem.from_pretrained()
assert_type(llm.memorize("a document"), Memory)
assert_type(llm.memorize(Tokens([1, 2, 3]), Recipe(steps=3)), Memory)
assert_type(llm.memorize(["one", "two"], truncate=True), list[Memory])
assert_type(llm.memorize([Tokens([1, 2]), Tokens([3, 4])]), list[Memory])

memory = llm.memorize("a document", on_step=lambda step: print(step.loss))
memories = llm.memorize(["one", "two"])
assert_type(llm.generate("a prompt"), Answer)
assert_type(llm.generate([{"role": "user", "content": "a prompt"}], memory, "fastmem+cd"), Answer)
assert_type(llm.generate(Tokens([1, 2, 3])), Answer)
assert_type(llm.generate(["one", "two"], memories, "fastmem"), list[Answer])
assert_type(llm.generate([Tokens([1, 2]), Tokens([3])], memory), list[Answer])
chats = [[{"role": "user", "content": "one"}], [{"role": "user", "content": "two"}]]
assert_type(llm.generate(chats), list[Answer])

assert_type(llm.answer("Who?", "a document"), Answer)
assert_type(llm.answer("Who?", "a document").memory, Memory | None)
assert_type(llm.ask("Who?", "a document").run(), Answer)
assert_type(Memory.load("memory.safetensors", model=llm), Memory)
